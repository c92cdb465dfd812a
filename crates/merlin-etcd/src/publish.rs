//! What the rest of the node sees of a store: its catalog, its recent changes, how it is doing.
//!
//! One [`Publisher`] belongs to whoever drives the store, everybody else holds [`Views`]. While the
//! store is away the views keep the last good state.
//!
//! The catalog is published when the [guard](crate::guard) lets it pass. The records always are: a
//! command is decided on what the store holds, not on what this node makes of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imbl::ordset::DiffItem;
use merlin_model::{Catalog, Change, EventRing, Revision};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::guard::{AcceptError, Guard, MaxRemoval, Origin, Removal, Verdict};
use crate::replica::{Problem, Replica};
use crate::status::{Backend, Status};

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Views {
    pub catalog: watch::Receiver<Arc<Catalog>>,
    pub events: watch::Receiver<EventRing>,
    pub status: watch::Receiver<Status>,
    /// The records behind the catalog.
    pub replica: watch::Receiver<Replica>,
}

/// Cheap to clone; every clone publishes the same views.
#[derive(Clone, Debug)]
pub struct Publisher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    catalog: watch::Sender<Arc<Catalog>>,
    events: watch::Sender<EventRing>,
    status: watch::Sender<Status>,
    replica: watch::Sender<Replica>,
    /// Whoever has it is the only one to publish.
    gate: Mutex<Gate>,
}

#[derive(Debug)]
struct Gate {
    guard: Guard,
    /// The last catalog has yet to be confirmed.
    suspect: bool,
}

/// What becomes of a catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Heed {
    /// It is published, or held back until somebody accepts it.
    Done,
    /// It removes so much that the records have to be listed once more.
    ListAgain,
}

impl Publisher {
    /// Begins with the catalog as it was last known, and no records.
    pub fn new(
        replica: Replica,
        catalog: Catalog,
        status: Status,
        max_removal: MaxRemoval,
    ) -> (Self, Views) {
        let (events, events_view) = watch::channel(EventRing::starting_at(catalog.revision()));
        let (catalog, catalog_view) = watch::channel(Arc::new(catalog));
        let (status, status_view) = watch::channel(status);
        let (replica, replica_view) = watch::channel(replica);
        let publisher = Self(Arc::new(Inner {
            catalog,
            events,
            status,
            replica,
            gate: Mutex::new(Gate {
                guard: Guard::new(max_removal),
                suspect: false,
            }),
        }));
        let views = Views {
            catalog: catalog_view,
            events: events_view,
            status: status_view,
            replica: replica_view,
        };
        (publisher, views)
    }

    /// The records went one step further, which changed this in the catalog.
    pub fn step(&self, replica: &Replica, changes: Vec<Change>) -> Heed {
        let mut gate = self.gate();
        let deletes = |change: &Change| matches!(change, Change::ServiceDeleted { .. });
        let held = self.0.status.borrow().held.is_some();
        // What removes no service is no matter for the guard, which looks at all of them.
        let heed = if held || changes.iter().any(deletes) {
            self.judge(&mut gate, replica, Origin::Watched)
        } else {
            None
        };
        let heed = heed.unwrap_or_else(|| {
            self.publish(replica, Some(changes));
            Heed::Done
        });
        self.show_records(replica);
        heed
    }

    /// The records were read anew. Which steps led here is not known, so watches of events begin
    /// anew too, unless nothing has changed.
    pub fn jump(&self, replica: &Replica, changes: &[Change]) -> Heed {
        let mut gate = self.gate();
        let is_new = self.0.catalog.borrow().revision() != replica.revision();
        let heed = if !changes.is_empty() || is_new {
            self.judge(&mut gate, replica, Origin::Listed)
        } else {
            Some(Heed::Done)
        };
        let heed = heed.unwrap_or_else(|| {
            self.publish(replica, None);
            Heed::Done
        });
        self.show_records(replica);
        heed
    }

    /// An operator says that what is held back is meant.
    pub fn accept(&self, revision: Option<Revision>) -> Result<Removal, AcceptError> {
        let mut gate = self.gate();
        let held = self.0.status.borrow().held;
        let removal = gate.guard.accept(held, revision)?;
        let replica = self.0.replica.borrow().clone();
        if self.judge(&mut gate, &replica, Origin::Confirmed).is_none() {
            self.publish(&replica, None);
        }
        Ok(removal)
    }

    /// What is to be done instead of publishing a catalog; nothing when it may be published.
    fn judge(&self, gate: &mut Gate, replica: &Replica, origin: Origin) -> Option<Heed> {
        let held = self.0.status.borrow().held;
        let origin = match (origin, held) {
            // Lists are linearizable, and what is held was confirmed: only its size is news.
            (Origin::Listed, _) if gate.suspect => Origin::Confirmed,
            (_, Some(_)) => Origin::Confirmed,
            (origin, None) => origin,
        };
        let current = Arc::clone(&self.0.catalog.borrow());
        let verdict = gate.guard.judge(&current, replica.catalog(), origin);
        gate.suspect = matches!(verdict, Verdict::Confirm(_));
        let removal = match verdict {
            Verdict::Obey => None,
            Verdict::Confirm(removal) => {
                tracing::warn!(%removal, "listing the records again before this is believed");
                return Some(Heed::ListAgain);
            }
            Verdict::Hold(removal) => Some(removal),
        };
        self.0.status.send_if_modified(|status| {
            let was = std::mem::replace(&mut status.held, removal);
            match (was, removal) {
                (None, Some(removal)) => tracing::error!(
                    %removal,
                    "removal held back: `meradm store accept-removal` if it is meant"
                ),
                (Some(_), None) => tracing::info!("no removal is held back any more"),
                _ => {}
            }
            was != removal
        });
        removal.map(|_| Heed::Done)
    }

    /// Publishes the catalog: as a step, or as one to which no known steps lead.
    fn publish(&self, replica: &Replica, step: Option<Vec<Change>>) {
        let before = self.0.catalog.borrow().revision();
        let revision = replica.revision();
        if step.as_ref().is_some_and(Vec::is_empty) {
            return;
        }
        self.0
            .catalog
            .send_replace(Arc::new(replica.catalog().clone()));
        self.0.events.send_modify(|ring| match step {
            Some(changes) if revision > ring.newest() && before == ring.newest() => {
                ring.push_later(revision, changes);
            }
            _ => *ring = EventRing::starting_at(revision),
        });
    }

    fn show_records(&self, replica: &Replica) {
        self.problems(replica);
        // Last: whoever has seen the records finds their effects in the other views.
        self.0.replica.send_replace(replica.clone());
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        // Nothing in there is left half done by a panic.
        self.0.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of records that are passed over, each once.
    fn problems(&self, replica: &Replica) {
        self.0.status.send_if_modified(|status| {
            let mut changed = false;
            // Costs what differs, not what there is.
            for difference in status.problems.diff(replica.problems()) {
                changed = true;
                if let DiffItem::Add(problem) = difference {
                    let Problem { key, reason } = problem;
                    tracing::warn!(key, reason, "record passed over");
                }
            }
            if changed {
                status.problems = replica.problems().clone();
            }
            changed
        });
    }

    /// It is known which store keeps the records.
    pub fn found(&self, backend: Backend) {
        self.0
            .status
            .send_modify(|status| status.backend = Some(backend));
    }

    /// The store answers and the views follow it.
    pub fn connected(&self, endpoint: &str, history: &str) {
        tracing::info!(endpoint, history, "following the store");
        self.0.status.send_modify(|status| {
            status.unavailable = None;
            status.lost = None;
            status.endpoint = endpoint.to_owned();
            status.history = history.to_owned();
        });
    }

    /// The store is away, or not found yet. The first reason is told, and every new one.
    pub fn away(&self, reason: &str) {
        self.0.status.send_if_modified(|status| {
            let news = status.unavailable.as_deref() != Some(reason);
            if news {
                tracing::warn!(reason, "the store is away; the kernel keeps its rules");
                status.unavailable = Some(reason.to_owned());
            }
            status.lost.get_or_insert_with(Instant::now);
            news
        });
    }
}
