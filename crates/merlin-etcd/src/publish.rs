//! What the rest of the node sees of a store: its catalog, its recent changes, how it is doing.
//!
//! One [`Publisher`] belongs to whoever drives the store, everybody else holds [`Views`]. While the
//! store is away the views keep the last good state.

use std::sync::Arc;

use imbl::ordset::DiffItem;
use merlin_model::{Catalog, Change, EventRing};
use tokio::sync::watch;
use tokio::time::Instant;

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

#[derive(Debug)]
pub struct Publisher {
    catalog: watch::Sender<Arc<Catalog>>,
    events: watch::Sender<EventRing>,
    status: watch::Sender<Status>,
    replica: watch::Sender<Replica>,
}

impl Publisher {
    /// Begins with the catalog as it was last known, and no records.
    pub fn new(replica: Replica, catalog: Catalog, status: Status) -> (Self, Views) {
        let (events, events_view) = watch::channel(EventRing::starting_at(catalog.revision()));
        let (catalog, catalog_view) = watch::channel(Arc::new(catalog));
        let (status, status_view) = watch::channel(status);
        let (replica, replica_view) = watch::channel(replica);
        let publisher = Self {
            catalog,
            events,
            status,
            replica,
        };
        let views = Views {
            catalog: catalog_view,
            events: events_view,
            status: status_view,
            replica: replica_view,
        };
        (publisher, views)
    }

    /// The records went one step further, which changed this in the catalog.
    pub fn step(&self, replica: &Replica, changes: Vec<Change>) {
        let revision = replica.revision();
        if !changes.is_empty() {
            self.catalog
                .send_replace(Arc::new(replica.catalog().clone()));
            self.events.send_modify(|ring| {
                if revision > ring.newest() {
                    ring.push_later(revision, changes);
                } else {
                    *ring = EventRing::starting_at(revision);
                }
            });
        }
        self.problems(replica);
        // Last: whoever has seen the records finds their effects in the other views.
        self.replica.send_replace(replica.clone());
    }

    /// The records were read anew. Which steps led here is not known, so watches of events begin
    /// anew too, unless nothing has changed.
    pub fn jump(&self, replica: &Replica, changes: &[Change]) {
        let revision = replica.revision();
        if !changes.is_empty() || self.catalog.borrow().revision() != revision {
            self.catalog
                .send_replace(Arc::new(replica.catalog().clone()));
            self.events.send_replace(EventRing::starting_at(revision));
        }
        self.problems(replica);
        self.replica.send_replace(replica.clone());
    }

    /// Tells of records that are passed over, each once.
    fn problems(&self, replica: &Replica) {
        self.status.send_if_modified(|status| {
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
        self.status
            .send_modify(|status| status.backend = Some(backend));
    }

    /// The store answers and the views follow it.
    pub fn connected(&self, endpoint: &str, history: &str) {
        tracing::info!(endpoint, history, "following the store");
        self.status.send_modify(|status| {
            status.unavailable = None;
            status.lost = None;
            status.endpoint = endpoint.to_owned();
            status.history = history.to_owned();
        });
    }

    /// The store is away, or not found yet. The first reason is told, and every new one.
    pub fn away(&self, reason: &str) {
        self.status.send_if_modified(|status| {
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
