//! A client that watches, is cut off, and resumes where it was, at any node.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::Code;

use super::Shared;
use crate::checker::Law;
use crate::client::{Client, events};
use crate::ops::{Frame, Revision, Watch};

/// A stream tells its progress every 5 s; one that is silent for longer is dead.
const SILENCE: Duration = Duration::from_secs(7);
const CONNECT: Duration = Duration::from_secs(2);

pub(super) async fn run(shared: Arc<Shared>, mut dice: StdRng) -> Result<()> {
    let mut reached: Option<Revision> = Some(0);
    let mut incarnation = String::new();
    while !shared.stop.is_cancelled() {
        let node = shared.any_node(&mut dice);
        let machine = shared.lab.machine(node);
        let client = Client::new(machine);
        let mut watch = Watch {
            start: shared.recorder.clock.now(),
            node,
            life: machine.life(),
            from: reached,
            frames: Vec::new(),
        };
        let stream = match timeout(CONNECT, client.watch(reached, &incarnation)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(status)) if status.code() == Code::OutOfRange => {
                // As it is told to: from now on. Others have seen what is missed.
                (reached, incarnation) = (None, String::new());
                None
            }
            Ok(Err(_)) | Err(_) => None,
        };
        let Some(mut stream) = stream else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let until = Instant::now() + Duration::from_millis(dice.random_range(500..8000));
        loop {
            let frame = tokio::select! {
                frame = timeout_at(until, timeout(SILENCE, stream.message())) => frame,
                () = shared.stop.cancelled() => break,
            };
            let frame = match frame {
                Ok(Ok(Ok(Some(frame)))) => frame,
                Ok(Ok(Err(status))) if status.code() == Code::OutOfRange => {
                    (reached, incarnation) = (None, String::new());
                    break;
                }
                // Ended, broken, silent, or cut off by us.
                _ => break,
            };
            let at = shared.recorder.clock.now();
            let events = match events(&frame) {
                Ok(events) => events,
                Err(odd) => {
                    let what = format!("a watch at n{node} told: {odd}");
                    shared.recorder.violation(Law::OnlyWhatWasWritten, what);
                    break;
                }
            };
            let revision = frame.revision;
            (reached, incarnation) = (Some(revision), frame.incarnation);
            watch.frames.push(Frame {
                at,
                revision,
                events,
            });
        }
        shared.recorder.watch(watch);
    }
    Ok(())
}
