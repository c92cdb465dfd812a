//! The loop: waits for the agenda, reads the table, carries out the plan, reports.
//!
//! One task owns all of it. It learns of catalog and health through watches, whose last values
//! stay good when their senders are gone, and reaches the kernel through [`Handle`], whose thread
//! may hang without this task hanging with it.
//!
//! ```text
//! watch<Catalog> --+               +--> Handle (a thread of its own) --> kernel
//!                  +--> Reconciler-+
//! watch<HealthView>+               +--> watch<Status>
//! ```
//!
//! Nothing here decides what to delete: an error, a closed channel and a shutdown all leave the
//! table as it is.

use std::future;
use std::sync::Arc;
use std::time::Duration;

use merlin_ipvs::{DataplaneError, Fingerprint, Handle, Refusal};
use merlin_model::table::{Key, Operation};
use merlin_model::{Catalog, HealthView};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::agenda::{Agenda, Backoff, Scope, Task};
use crate::desired::Desired;
use crate::failure::failures;
use crate::plan::{Foreign, plan};
use crate::report;
use crate::status::Status;

/// How long a pass in progress may still take after a shutdown was asked for. It is worth waiting
/// for: half a plan is safe, a whole one is right.
const GRACE: Duration = Duration::from_secs(3);

/// Below this the loop would do nothing but check.
const SHORTEST_PERIOD: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How often to look for changes others made to the table.
    pub sync_period: Duration,
    pub foreign: Foreign,
    pub backoff: Backoff,
}

/// Keeps one table as the catalog and health want it.
#[derive(Debug)]
pub struct Reconciler {
    foreign: Foreign,
    handle: Handle,
    catalog: watch::Receiver<Arc<Catalog>>,
    health: watch::Receiver<HealthView>,
    agenda: Agenda,
    status: watch::Sender<Status>,
}

/// A pass that came to its end.
struct Outcome {
    desired: Desired,
    operations: Arc<Vec<Operation>>,
    /// One per operation.
    answers: Vec<Result<(), Refusal>>,
    /// Foreign services that stay.
    foreign: Vec<Key>,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            sync_period: Duration::from_secs(60),
            foreign: Foreign::default(),
            backoff: Backoff::default(),
        }
    }
}

// === impl Reconciler ===

impl Reconciler {
    /// The catalog has to be one to act upon from the start: a store that is still catching up
    /// keeps its watch at a pristine one, which deletes nothing, rather than replay its history
    /// here, where a service without its servers yet is a service to take them from.
    pub fn new(
        mut catalog: watch::Receiver<Arc<Catalog>>,
        mut health: watch::Receiver<HealthView>,
        handle: Handle,
        config: Config,
    ) -> Self {
        let agenda = Agenda::new(
            config.sync_period.max(SHORTEST_PERIOD),
            config.backoff,
            Arc::clone(&catalog.borrow_and_update()),
            health.borrow_and_update().clone(),
            now(),
        );
        Self {
            foreign: config.foreign,
            handle,
            catalog,
            health,
            agenda,
            status: watch::Sender::new(Status::default()),
        }
    }

    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Runs until shutdown. The table stays as it is then.
    pub async fn run(mut self, shutdown: CancellationToken) {
        // What came to be known between making this and running it.
        let catalog = Arc::clone(&self.catalog.borrow_and_update());
        self.agenda.set_catalog(catalog);
        let health = self.health.borrow_and_update().clone();
        self.agenda.set_health(health);
        while !shutdown.is_cancelled() {
            self.take_news();
            self.publish_revisions();
            match self.agenda.next(now()) {
                // Every arm is cancel safe: a watch forgets nothing and the rest are timers.
                Task::Wait(until) => tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = changed(&mut self.catalog) => {
                        let catalog = Arc::clone(&self.catalog.borrow_and_update());
                        self.agenda.set_catalog(catalog);
                    }
                    () = changed(&mut self.health) => {
                        let health = self.health.borrow_and_update().clone();
                        self.agenda.set_health(health);
                    }
                    () = sleep_until(until.into()) => {}
                },
                Task::Rest(until) => tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = sleep_until(until.into()) => {}
                },
                // Giving up in the middle leaves the prefix of a plan, which is safe.
                task => tokio::select! {
                    () = self.perform(task) => {}
                    () = expired(&shutdown) => {}
                },
            }
        }
    }

    /// Hears of what changed while a pass was under way.
    fn take_news(&mut self) {
        // Without a sender the last value holds.
        if self.catalog.has_changed().unwrap_or(false) {
            let catalog = Arc::clone(&self.catalog.borrow_and_update());
            self.agenda.set_catalog(catalog);
        }
        if self.health.has_changed().unwrap_or(false) {
            let health = self.health.borrow_and_update().clone();
            self.agenda.set_health(health);
        }
    }

    async fn perform(&mut self, task: Task) {
        match task {
            Task::Wait(_) | Task::Rest(_) => {}
            Task::Check => self.check().await,
            Task::Pass(Scope::Whole) => {
                // Taken before the table is read, so that a change in between cannot hide. It only
                // saves work: without one the next comparison is whole again.
                let fingerprint = self.handle.fingerprint().await.ok();
                self.pass(Scope::Whole, fingerprint).await;
            }
            Task::Pass(scope) => self.pass(scope, None).await,
        }
    }

    /// Looks whether the table is as it was left, and sees to it if not.
    async fn check(&mut self) {
        // Taken before the table is read, so that a change in between cannot hide. It only saves
        // work: without one the next comparison is whole again.
        let fingerprint = self.handle.fingerprint().await.ok();
        if fingerprint.is_some_and(|seen| !self.agenda.check(seen, now())) {
            self.status
                .send_modify(|status| status.counts.quiet_checks += 1);
            return;
        }
        // Slices are of the catalog's services: they would not meet one it does not have.
        let keys = self.handle.keys().await;
        let foreign = keys.map(|keys| self.agenda.foreign(keys));
        let known = foreign.is_ok_and(|foreign| foreign == self.status.borrow().foreign);
        if known && self.agenda.catalog().services().len() > 0 {
            self.agenda.sweep(fingerprint);
        } else {
            self.pass(Scope::Whole, fingerprint).await;
        }
    }

    async fn pass(&mut self, scope: Scope, fingerprint: Option<Fingerprint>) {
        let started = Instant::now();
        match self.attempt(&scope).await {
            Ok(outcome) => {
                let took = started.elapsed();
                debug!(?scope, operations = outcome.answers.len(), ?took, "pass");
                self.conclude(&scope, outcome, fingerprint, took);
            }
            Err(error) => {
                self.agenda.broke_off(now());
                self.status.send_modify(|status| {
                    let words = report::chain(&error);
                    if status.dataplane_error.is_none() {
                        status.counts.outages += 1;
                        report::outage(&words);
                    }
                    status.dataplane_error = Some(words);
                });
            }
        }
    }

    async fn attempt(&self, scope: &Scope) -> Result<Outcome, DataplaneError> {
        let view = self.agenda.view(scope);
        let foreign = self.foreign;
        let (desired, plan) = match scope {
            Scope::Services(_) | Scope::Slice(_) => {
                let desired = view.desired();
                let actual = self.handle.read(desired.keys().copied().collect()).await?;
                let plan = plan(&desired, &actual, foreign);
                (desired, plan)
            }
            // With 100,000 real servers this computes for a tenth of a second; others share our
            // thread.
            Scope::Whole => {
                let actual = self.handle.dump().await?;
                let compute = move || {
                    let desired = view.desired();
                    let plan = plan(&desired, &actual, foreign);
                    (desired, plan)
                };
                spawn_blocking(compute)
                    .await
                    .expect("planning does not panic")
            }
        };
        let operations = Arc::new(plan.operations);
        let answers = if operations.is_empty() {
            Vec::new()
        } else {
            self.handle.apply(Arc::clone(&operations)).await?
        };
        Ok(Outcome {
            desired,
            operations,
            answers,
            foreign: plan.foreign,
        })
    }

    /// Draws the conclusions from a pass, for the next one and for whoever watches.
    fn conclude(
        &mut self,
        scope: &Scope,
        outcome: Outcome,
        fingerprint: Option<Fingerprint>,
        took: Duration,
    ) {
        let Outcome {
            desired,
            operations,
            answers,
            foreign,
        } = outcome;
        let done = operations.iter().zip(&answers);
        let done = done.filter_map(|(operation, answer)| answer.is_ok().then_some(operation));
        let done: Vec<_> = done.collect();
        let unexplained =
            |operation: &&Operation| !self.agenda.explains(desired.owner(operation.key()));
        let drift: Vec<_> = done.iter().copied().filter(unexplained).collect();
        report::drift(&desired, &drift);

        let failures = failures(&desired, &operations, &answers);
        let refused: Vec<_> = failures
            .iter()
            .map(|(object, failure)| (failure.service.clone(), object.service))
            .collect();
        let whole = self.agenda.passed(scope, &refused, !done.is_empty(), now());
        if *scope == Scope::Whole && done.is_empty() {
            self.agenda.trust(fingerprint);
        }

        let counted = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        self.status.send_modify(|status| {
            status.counts.passes += 1;
            status.counts.operations += counted(done.len());
            status.counts.refusals += counted(answers.len() - done.len());
            status.counts.drift_repaired += counted(drift.len());
            status.last_pass = Some(took);
            if status.dataplane_error.take().is_some() {
                info!("the data plane answers again");
            }
            if whole {
                status.counts.whole_passes += 1;
                status.last_whole = Some(now());
            }
            if *scope == Scope::Whole {
                if status.foreign != foreign {
                    report::foreign(&foreign);
                    status.foreign = foreign;
                }
                if !status.first_pass_done {
                    info!(
                        operations = done.len(),
                        refused = failures.len(),
                        ?took,
                        "first pass done"
                    );
                    status.first_pass_done = true;
                }
            }
            status.replace_failures(scope, failures);
        });
    }

    fn publish_revisions(&self) {
        let catalog = self.agenda.catalog().revision();
        let settled = self.agenda.is_settled();
        self.status.send_if_modified(|status| {
            let programmed = if settled { catalog } else { status.programmed };
            let news = (catalog, programmed) != (status.catalog, status.programmed);
            (status.catalog, status.programmed) = (catalog, programmed);
            news
        });
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Waits for a new value; for good once the sender is gone, for the last value holds.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        future::pending().await
    }
}

/// Waits until a pass in progress has had its time after a shutdown.
async fn expired(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    sleep(GRACE).await;
}
