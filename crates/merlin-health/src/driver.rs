//! The driver: one task that owns the [`Checker`], and one short-lived task per probe in flight.
//!
//! It decides nothing about health. Around its one wait it feeds the checker what happened and
//! performs what the checker says; the view goes out through a `watch`, so a slow reader neither
//! stalls probing nor piles up work.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use merlin_model::{Catalog, HealthView};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::checker::{Checker, Outcome, Probe, ProbeId, Transition};
use crate::metrics::{Metrics, add};
use crate::probe::{ProbeError, probe};

/// Most probes in flight.
///
/// In flight are rate times duration: 10,000 probes per second of servers that answer within
/// 10 ms are 100, so this room is for servers that do not answer. 4096 of them, each timing out
/// after 1 s and probed every 5 s, may be dead out of however many before probes start late. It
/// costs as many file descriptors and some 15 KiB of memory each. Beyond it probes wait their turn
/// in the checker, longest overdue first.
pub const MAX_IN_FLIGHT: usize = 4096;

/// Checks what the catalog declares and publishes what it finds, until told to stop.
///
/// When the catalog's sender is gone, checking goes on with the last catalog.
pub async fn run(
    catalog: watch::Receiver<Arc<Catalog>>,
    view: watch::Sender<HealthView>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) {
    let driver = Driver {
        checker: Checker::new(now()),
        in_flight: JoinSet::new(),
        view,
        metrics,
        short_of_resources: false,
    };
    driver.run(catalog, shutdown).await;
}

struct Driver {
    checker: Checker,
    /// Dropping it aborts the probes, whose results then matter to nobody.
    in_flight: JoinSet<(ProbeId, Result<(), ProbeError>)>,
    view: watch::Sender<HealthView>,
    metrics: Arc<Metrics>,
    /// Whether the latest probe failed on this node's own account; to log that once.
    short_of_resources: bool,
}

impl Driver {
    async fn run(
        mut self,
        mut catalog: watch::Receiver<Arc<Catalog>>,
        shutdown: CancellationToken,
    ) {
        catalog.mark_changed();
        let mut catalog_open = true;
        loop {
            self.start_due();
            self.publish();
            // Without room a passed deadline is nothing to wait for: only a finished probe helps.
            let has_room = self.in_flight.len() < MAX_IN_FLIGHT;
            let deadline = self.checker.next_deadline().filter(|_| has_room);
            // Each arm only waits, which is cancel safe: nothing is taken until it has won.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                changed = catalog.changed(), if catalog_open => {
                    catalog_open = changed.is_ok();
                    let latest = Arc::clone(&catalog.borrow_and_update());
                    debug!(revision = %latest.revision(), "health checks follow the catalog");
                    self.checker.sync(&latest, now());
                }
                Some(finished) = self.in_flight.join_next() => {
                    self.finish(finished);
                    // Whatever else has finished meanwhile shares this round's view.
                    while let Some(finished) = self.in_flight.try_join_next() {
                        self.finish(finished);
                    }
                }
                () = sleep_until(deadline) => {}
            }
        }
        self.in_flight.shutdown().await;
        self.metrics.in_flight.store(0, Ordering::Relaxed);
    }

    fn start_due(&mut self) {
        let room = MAX_IN_FLIGHT - self.in_flight.len();
        let probes = self.checker.start_due(now(), room);
        add(&self.metrics.started, probes.len());
        add(&self.metrics.in_flight, probes.len());
        for Probe { id, spec } in probes {
            self.in_flight
                .spawn(async move { (id, probe(&spec).await) });
        }
    }

    fn publish(&mut self) {
        if let Some(view) = self.checker.changed_view() {
            self.view.send_replace(view);
        }
    }

    fn finish(&mut self, finished: Result<(ProbeId, Result<(), ProbeError>), JoinError>) {
        let (id, result) = match finished {
            Ok(finished) => finished,
            // A probe never panics; if it does, so does the daemon, like after any other panic.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return,
            },
        };
        self.metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
        let outcome = self.judge(result);
        let transitions = self.checker.finish(id, outcome, now());
        add(&self.metrics.transitions, transitions.len());
        transitions.iter().for_each(log);
    }

    fn judge(&mut self, result: Result<(), ProbeError>) -> Outcome {
        let (counter, outcome) = match result {
            Ok(()) => (&self.metrics.succeeded, Outcome::Success),
            Err(error) if error.is_local() => {
                if !self.short_of_resources {
                    warn!(%error, "this node cannot probe; verdicts stay as they are");
                }
                let reason = format!("cannot probe from here: {error}");
                (
                    &self.metrics.inconclusive,
                    Outcome::Inconclusive(reason.into()),
                )
            }
            Err(error) => (
                &self.metrics.failed,
                Outcome::Failure(error.to_string().into()),
            ),
        };
        add(counter, 1);
        self.short_of_resources = matches!(outcome, Outcome::Inconclusive(_));
        outcome
    }
}

fn log(transition: &Transition) {
    let Transition {
        service,
        server,
        from,
        to,
        reason,
    } = transition;
    let reason = reason.as_deref();
    info!(%service, %server, ?from, ?to, reason, "health changed");
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// The runtime's clock, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
