//! Clients that use merlin, each for its own reason, until they are told to stop.

mod health;
pub mod monitor;
pub mod watcher;
pub mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::lab::Lab;
use crate::model::CHECKED;
use crate::ops::{Node, Serial};
use crate::recorder::Recorder;

/// What all clients share.
#[derive(Debug)]
pub struct Shared {
    pub lab: Arc<Lab>,
    pub recorder: Arc<Recorder>,
    pub stop: CancellationToken,
    serials: AtomicU32,
    /// Different in every run, so that request ids are.
    pub run: u64,
}

/// How many clients of each kind.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub writers: u32,
    /// Pause between two operations of a writer, on average.
    pub pause: std::time::Duration,
}

impl Shared {
    #[must_use]
    pub fn new(lab: Arc<Lab>, recorder: Arc<Recorder>, run: u64) -> Self {
        Self {
            lab,
            recorder,
            stop: CancellationToken::new(),
            serials: AtomicU32::new(CHECKED.end() + 1),
            run,
        }
    }

    pub(crate) fn serial(&self) -> Serial {
        self.serials.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn any_node(&self, dice: &mut StdRng) -> Node {
        let nodes: Vec<Node> = self.lab.nodes().collect();
        nodes[dice.random_range(0..nodes.len())]
    }
}

/// Starts every client. Each ends soon after the stop; an error is one of this program.
pub fn start(shared: &Arc<Shared>, load: Load, dice: &mut StdRng) -> JoinSet<Result<()>> {
    let mut clients = JoinSet::new();
    for _ in 0..load.writers {
        let dice = StdRng::seed_from_u64(dice.random());
        clients.spawn(writer::run(Arc::clone(shared), load.pause, dice));
    }
    for server in CHECKED {
        let dice = StdRng::seed_from_u64(dice.random());
        clients.spawn(health::run(Arc::clone(shared), server, dice));
    }
    for node in shared.lab.nodes() {
        let dice = StdRng::seed_from_u64(dice.random());
        clients.spawn(watcher::run(Arc::clone(shared), dice));
        clients.spawn(monitor::run(Arc::clone(shared), node));
    }
    clients
}
