//! What the driver counts, for whoever exports it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one driver. Each is read on its own: together they may be a probe apart.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(crate) started: AtomicU64,
    pub(crate) succeeded: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) inconclusive: AtomicU64,
    pub(crate) transitions: AtomicU64,
    pub(crate) in_flight: AtomicU64,
}

/// [`Metrics`] at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub started: u64,
    pub succeeded: u64,
    pub failed: u64,
    /// Probes that failed on this node's own account.
    pub inconclusive: u64,
    /// Verdicts changed.
    pub transitions: u64,
    /// Probes under way: the one value that goes down again.
    pub in_flight: u64,
}

impl Metrics {
    pub fn read(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            started: read(&self.started),
            succeeded: read(&self.succeeded),
            failed: read(&self.failed),
            inconclusive: read(&self.inconclusive),
            transitions: read(&self.transitions),
            in_flight: read(&self.in_flight),
        }
    }
}

pub(crate) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}
