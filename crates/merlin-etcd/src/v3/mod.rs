//! etcd's present API: multi-version keys, transactions, watches over gRPC.
//!
//! ```text
//! follow ── list, watch ──▶ Replica ──▶ Publisher ──▶ the daemon
//!    │ session                  │ copy
//!    ▼                          ▼
//! propose ──── decide ──── one guarded transaction
//! ```
//!
//! * [`follow`]: one task that keeps the replica up with etcd, whatever happens to either side.
//! * [`propose`]: decides on the replica and lets a transaction confirm it.
//! * [`session`]: one connection to one member, and what can be asked on it.
//!
//! One member is used at a time, the same for watching and for writing: a member that does not
//! answer is then noticed by either, and left by both.

mod answers;
mod error;
mod follow;
mod propose;
mod read;
mod session;
mod tail;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use merlin_model::Revision;
use tokio::sync::{Notify, watch};

pub(crate) use follow::{holds_records, run};

use self::answers::Leases;
use self::session::Session;
use crate::publish::Views;

/// What following and proposing share.
#[derive(Debug)]
pub(crate) struct Shared {
    views: Views,
    /// The present connection, once the replica is up to date on it.
    session: watch::Sender<Option<Session>>,
    /// Revision of etcd up to which the replica is known to be complete.
    horizon: AtomicU64,
    /// Somebody found the present session not to answer.
    suspicion: Notify,
    /// Somebody found the replica to differ from what etcd holds.
    doubt: Notify,
    leases: Leases,
    /// etcd does not permit keeping answers to requests.
    forgets: AtomicBool,
}

impl Shared {
    pub(crate) fn new(views: Views) -> Arc<Self> {
        Arc::new(Self {
            views,
            session: watch::Sender::new(None),
            horizon: AtomicU64::new(0),
            suspicion: Notify::new(),
            doubt: Notify::new(),
            leases: Leases::default(),
            forgets: AtomicBool::new(false),
        })
    }

    fn horizon(&self) -> Revision {
        Revision(self.horizon.load(Ordering::Acquire))
    }

    fn set_horizon(&self, horizon: Revision) {
        let horizon = horizon.0;
        self.horizon.store(horizon, Ordering::Release);
    }
}
