//! A leader that nobody answers steps aside.
//!
//! As long as its messages arrive, the others take a leader for alive, even when none of their
//! answers come back: an asymmetric partition would stop the cluster for as long as it lasts. So
//! a leader that has not heard from a quorum for too long falls silent, for long enough that the
//! others elect one of themselves, and then tries again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::consensus::Consensus;

/// Whether this node refrains from acting as the leader. Shared with what sends for consensus.
#[derive(Clone, Debug, Default)]
pub(crate) struct Silence(Arc<AtomicBool>);

impl Silence {
    pub(crate) fn is_kept(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn keep(&self, silent: bool) {
        self.0.store(silent, Ordering::Relaxed);
    }
}

/// Runs until the store is shut down. `patience` is how late answers may be without notice.
pub(crate) async fn run(consensus: Consensus, silence: Silence, patience: Duration) {
    let mut unheard_since = None;
    loop {
        sleep(patience).await;
        if !consensus.leads_unheard(patience) {
            unheard_since = None;
            continue;
        }
        let since: Instant = *unheard_since.get_or_insert_with(Instant::now);
        if since.elapsed() > consensus.isolation() {
            tracing::warn!("leading without an answer from a quorum: stepping aside for a while");
            silence.keep(true);
            sleep(consensus.isolation()).await;
            silence.keep(false);
            // A full term of patience again, so that answers have time to come back.
            unheard_since = None;
        }
    }
}
