//! A watch tells every revision after the one it began at, each once, in order, with exactly what
//! that revision changed; and one that resumes goes on as if it had never been interrupted.

use super::replay::Replay;
use super::{Law, Violations};
use crate::ops::{History, Watch};

pub(super) fn check(history: &History, replay: &Replay, violations: &mut Violations) {
    for watch in &history.watches {
        if let Some(what) = flaw(watch, replay) {
            let Watch { node, start, .. } = watch;
            let what = format!("the watch at n{node} that began at {start} us {what}");
            violations.add(Law::WatchesAreComplete, what);
        }
    }
}

fn flaw(watch: &Watch, replay: &Replay) -> Option<String> {
    let mut reached = watch.from;
    for frame in &watch.frames {
        let revision = frame.revision;
        let Some(before) = reached else {
            // Its first answer says where it begins.
            reached = Some(revision);
            continue;
        };
        if frame.events.is_empty() {
            if revision != before {
                return Some(format!("stood at {before} and claims {revision}"));
            }
            continue;
        }
        if revision != before + 1 {
            return Some(format!("tells revision {revision} after {before}"));
        }
        reached = Some(revision);
        let step = replay.step(revision);
        if let Some(step) = step
            && step.verified
            && step.events != frame.events
        {
            let (told, made) = (&frame.events, &step.events);
            return Some(format!("tells of {revision}: {told:?} instead of {made:?}"));
        }
        if revision > replay.ceiling(frame.at) {
            return Some(format!("tells {revision} before anybody asked for it"));
        }
    }
    None
}
