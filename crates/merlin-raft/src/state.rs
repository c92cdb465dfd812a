//! The state machine: what the committed log amounts to, and its publication.
//!
//! * [`State`] is pure. Every node that applied the same entries holds the same state.
//! * [`StateMachine`] lets consensus drive it and publishes each step to the rest of the node:
//!
//! ```text
//! openraft --entries--> StateMachine --watch--> catalog, events, cluster, audit, then applied
//! ```
//!
//! Invariants:
//!
//! * A refused command is an answer. An entry that cannot be understood is an error, which stops
//!   the node: going on without it would make this node differ from the others for ever.
//! * `applied` is published last, so whoever saw it reach an index sees the effects up to there.
//! * The cost of a step does not depend on the size of the catalog: every map is persistent.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use merlin_model::catalog::Answer;
use merlin_model::{
    AuditTrail, Catalog, Change, Command, EventRing, Mutation, Revision, Timestamp,
};
use merlin_proto::log;
use openraft::storage::RaftStateMachine;
use openraft::{RaftSnapshotBuilder, StorageIOError};
use tokio::sync::watch;

use crate::audit;
use crate::cluster::{ClusterAnswer, ClusterCommand, ClusterState};
use crate::codec::{self, DecodeError};
use crate::level::Level;
use crate::mutants::{self, Mutant};
use crate::proposal::{self, Request};
use crate::snapshot::Snapshots;
use crate::typ::{
    Entry, EntryPayload, LogId, Outcome, Snapshot, SnapshotData, SnapshotMeta, StorageError,
    StoredMembership, TypeConfig,
};

/// What the log up to `applied` amounts to. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    pub(crate) applied: Option<LogId>,
    pub(crate) membership: StoredMembership,
    pub(crate) cluster: Arc<ClusterState>,
    pub(crate) catalog: Catalog,
    pub(crate) audit: AuditTrail,
}

/// What each accepted command changed, in order.
type Changes = Vec<(Revision, Vec<Change>)>;

impl State {
    /// Applies one entry, the next one.
    pub(crate) fn apply(
        &mut self,
        entry: Entry,
        changes: &mut Changes,
    ) -> Result<Outcome, DecodeError> {
        let outcome = match entry.payload {
            EntryPayload::Blank => Outcome::Nothing,
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Outcome::Nothing
            }
            EntryPayload::Normal(proposal) => match proposal.decode()? {
                Request::Commands(commands) => {
                    if mutants::active(Mutant::HashOrder) {
                        self.in_any_order(&commands, changes)
                    } else {
                        let answer = |command| self.command(command, changes);
                        Outcome::Answers(commands.iter().map(answer).collect())
                    }
                }
                Request::Cluster(command) => Outcome::Cluster(self.cluster_command(command)),
            },
        };
        self.applied = Some(entry.log_id);
        Ok(outcome)
    }

    fn in_any_order(&mut self, commands: &[Command], changes: &mut Changes) -> Outcome {
        let shuffled: HashMap<usize, &Command> = commands.iter().enumerate().collect();
        let answer = |(at, command)| (at, self.command(command, changes));
        let answers: BTreeMap<usize, Answer> = shuffled.into_iter().map(answer).collect();
        Outcome::Answers(answers.into_values().collect())
    }

    fn command(&mut self, command: &Command, changes: &mut Changes) -> Answer {
        if mutants::active(Mutant::NoDedup) && command.request_id.is_some() {
            let request_id = None;
            return self.command(
                &Command {
                    request_id,
                    ..command.clone()
                },
                changes,
            );
        }
        let applied = self.catalog.apply(command)?;
        if !applied.changes.is_empty() {
            let revision = applied.reply.revision;
            let (by, what) = (command.by.clone(), &command.mutation);
            self.audit.push(command.at, by, what, revision);
            changes.push((revision, applied.changes));
        }
        Ok(applied.reply)
    }

    fn cluster_command(&mut self, command: ClusterCommand) -> ClusterAnswer {
        let before = Arc::clone(&self.cluster);
        let ClusterCommand { at, by, .. } = command.clone();
        let answer = Arc::make_mut(&mut self.cluster).apply(command.clone());
        if self.cluster != before
            && let Some(what) = audit::words(&command.change, &answer)
        {
            self.audit.push(at, by, what, self.catalog.revision());
        }
        answer
    }

    pub(crate) fn to_proto(&self) -> log::Snapshot {
        let membership = self.membership.membership();
        log::Snapshot {
            cluster: Some((&*self.cluster).into()),
            catalog: Some((&self.catalog).into()),
            membership_at: self
                .membership
                .log_id()
                .as_ref()
                .map(codec::log_id_to_proto),
            membership: Some(codec::membership_to_proto(membership)),
            audit: Some((&self.audit).into()),
        }
    }

    pub(crate) fn from_proto(
        applied: Option<LogId>,
        message: log::Snapshot,
    ) -> Result<Self, DecodeError> {
        let missing = |what| DecodeError::Missing { what };
        let cluster = message.cluster.ok_or(missing("the cluster"))?;
        // Before anything is read: all of it may mean something else.
        proposal::check(Level::of_message(cluster.level), Level::LATEST)?;
        let catalog = message.catalog.ok_or(missing("the catalog"))?;
        let membership = message.membership.ok_or(missing("the membership"))?;
        let membership_at = message.membership_at.as_ref();
        Ok(Self {
            applied,
            membership: StoredMembership::new(
                membership_at.map(codec::log_id_from_proto),
                codec::membership_from_proto(membership),
            ),
            cluster: Arc::new(cluster.try_into()?),
            catalog: (&catalog).try_into()?,
            // Absent in snapshots of earlier versions.
            audit: (&message.audit.unwrap_or_default()).into(),
        })
    }
}

/// What the rest of the node sees of the state machine.
#[derive(Clone, Debug)]
pub(crate) struct Views {
    pub(crate) catalog: watch::Receiver<Arc<Catalog>>,
    pub(crate) events: watch::Receiver<EventRing>,
    pub(crate) cluster: watch::Receiver<Arc<ClusterState>>,
    pub(crate) audit: watch::Receiver<AuditTrail>,
    pub(crate) applied: watch::Receiver<Option<LogId>>,
    pub(crate) whole: Whole,
    /// What was published last stays, also when consensus has ended.
    publisher: Arc<Publisher>,
}

/// The whole state, for whoever makes a copy of it. It is at least as new as what is published.
#[derive(Clone, Debug)]
pub(crate) struct Whole(Arc<Mutex<State>>);

impl Whole {
    pub(crate) fn state(&self) -> State {
        self.lock().clone()
    }

    /// Never held for long: a step is some commands on persistent maps.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Publisher {
    catalog: watch::Sender<Arc<Catalog>>,
    events: watch::Sender<EventRing>,
    cluster: watch::Sender<Arc<ClusterState>>,
    audit: watch::Sender<AuditTrail>,
    applied: watch::Sender<Option<LogId>>,
}

/// The [`State`] as consensus drives it.
#[derive(Debug)]
pub(crate) struct StateMachine {
    whole: Whole,
    snapshots: Arc<Snapshots>,
    publisher: Arc<Publisher>,
    /// What this node knows; an entry that needs more is never taken for something else.
    level: Level,
}

impl StateMachine {
    /// Begins with the newest usable snapshot's state, which is published at once.
    pub(crate) fn new(state: State, snapshots: Arc<Snapshots>, level: Level) -> (Self, Views) {
        let (catalog, catalog_view) = watch::channel(Arc::new(state.catalog.clone()));
        let ring = EventRing::starting_at(state.catalog.revision());
        let (events, events_view) = watch::channel(ring);
        let (cluster, cluster_view) = watch::channel(Arc::clone(&state.cluster));
        let (audit, audit_view) = watch::channel(state.audit.clone());
        let (applied, applied_view) = watch::channel(state.applied);
        let whole = Whole(Arc::new(Mutex::new(state)));
        let publisher = Arc::new(Publisher {
            catalog,
            events,
            cluster,
            audit,
            applied,
        });
        let views = Views {
            catalog: catalog_view,
            events: events_view,
            cluster: cluster_view,
            audit: audit_view,
            applied: applied_view,
            whole: whole.clone(),
            publisher: Arc::clone(&publisher),
        };
        let machine = Self {
            whole,
            snapshots,
            publisher,
            level,
        };
        (machine, views)
    }
}

impl Views {
    /// Has the rest of the node believe in an empty catalog. Only for a node that has no part in
    /// the cluster any more.
    pub(crate) fn publish_empty(&self) -> Revision {
        let mut catalog = (**self.catalog.borrow()).clone();
        let services: Vec<_> = catalog
            .services()
            .map(|service| service.id.clone())
            .collect();
        for id in services {
            let delete = Command::new(Timestamp(0), Mutation::DeleteService { id });
            // It is there: nobody else changes this catalog.
            let _ = catalog.apply(&delete);
        }
        let revision = catalog.revision();
        self.publisher.catalog.send_replace(Arc::new(catalog));
        self.publisher
            .events
            .send_replace(EventRing::starting_at(revision));
        revision
    }
}

impl Publisher {
    /// Publishes a step from one state to the next.
    fn step(&self, state: &State, changes: Changes) {
        if self.catalog.borrow().revision() != state.catalog.revision() {
            self.catalog.send_replace(Arc::new(state.catalog.clone()));
        }
        if !changes.is_empty() {
            self.events.send_modify(|ring| {
                for (revision, mut changes) in changes {
                    if mutants::active(Mutant::LostEvent) && revision.0 % 50 == 0 {
                        changes.clear();
                    }
                    ring.push(revision, changes);
                }
            });
        }
        self.cluster.send_if_modified(|cluster| {
            let changed = !Arc::ptr_eq(cluster, &state.cluster);
            *cluster = Arc::clone(&state.cluster);
            changed
        });
        self.audit.send_replace(state.audit.clone());
        self.applied.send_replace(state.applied);
    }

    /// Publishes a state that has nothing to do with the one before. Watches of events begin anew.
    fn jump(&self, state: &State) {
        self.events
            .send_replace(EventRing::starting_at(state.catalog.revision()));
        self.step(state, Changes::new());
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let state = self.whole.lock();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut changes = Changes::new();
        let mut outcomes = Vec::new();
        let mut state = self.whole.lock();
        for entry in entries {
            let id = entry.log_id;
            let known = known(&entry, self.level);
            let outcome = known.and_then(|()| state.apply(entry, &mut changes));
            outcomes.push(outcome.map_err(|error| StorageIOError::apply(id, &error))?);
        }
        self.publisher.step(&state, changes);
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            state: self.whole.state(),
            snapshots: Arc::clone(&self.snapshots),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotData>, StorageError> {
        Ok(Box::new(SnapshotData(bytes::Bytes::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<SnapshotData>,
    ) -> Result<(), StorageError> {
        let snapshots = Arc::clone(&self.snapshots);
        let install = move || snapshots.install(snapshot.0);
        let state = blocking(install)
            .await
            .map_err(|error| StorageIOError::write_snapshot(Some(meta.signature()), &error))?;
        if let Err(error) = proposal::check(state.cluster.level, self.level) {
            return Err(StorageIOError::read_snapshot(Some(meta.signature()), &error).into());
        }
        let mut whole = self.whole.lock();
        *whole = state;
        self.publisher.jump(&whole);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let snapshots = Arc::clone(&self.snapshots);
        match blocking(move || snapshots.newest()).await {
            Ok(newest) => Ok(newest),
            // The file has been damaged, the state in memory has not.
            Err(error) => {
                tracing::warn!(%error, "the newest snapshot is unusable, writing a new one");
                let mut builder = self.get_snapshot_builder().await;
                builder.build_snapshot().await.map(Some)
            }
        }
    }
}

/// Writes a snapshot of the state at the time it was made.
#[derive(Debug)]
pub(crate) struct Builder {
    state: State,
    snapshots: Arc<Snapshots>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let (state, snapshots) = (self.state.clone(), Arc::clone(&self.snapshots));
        // Durable when this returns: the log is purged on the strength of it.
        blocking(move || snapshots.write(&state))
            .await
            .map_err(|error| StorageIOError::write_snapshot(None, &error).into())
    }
}

/// Whether a node of this level can apply an entry.
fn known(entry: &Entry, level: Level) -> Result<(), DecodeError> {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal::check(proposal.level()?, level),
        EntryPayload::Blank | EntryPayload::Membership(_) => Ok(()),
    }
}

/// Runs file IO off the runtime's workers.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(f).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is shutting down cancels a blocking task, and then nothing
            // polls this future any more.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod suite;
#[cfg(test)]
pub(crate) mod tests;
