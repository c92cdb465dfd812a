//! etcd's former API: the v2 keys over HTTP, which etcd 3.4 and 3.5 serve with `--enable-v2=true`.
//!
//! ```text
//! follow ── list, watch ──▶ Replica ──▶ Publisher ──▶ the daemon
//!    │ client                   │ copy
//!    ▼                          ▼
//! propose ──── decide ──── one compare-and-swap, then a look at what it led to
//! ```
//!
//! * [`protocol`]: what is asked and what an answer means. Pure.
//! * [`client`]: asks it, of whichever endpoint answers.
//! * [`follow`]: one task that keeps the replica up with etcd.
//! * [`propose`]: carries commands out.
//!
//! # What holds without transactions
//!
//! There is one guard, on the one key that is written. Every write of ours has it, so between any
//! number of nodes no acknowledged change of an object is lost or made twice: of several that saw
//! the same record one succeeds, and the others decide again on what it left. What a decision rests
//! on besides the written key is looked at after the write, at the write's own index, when every
//! earlier change is known; a write that turns out to contradict an earlier one is taken back, by its
//! index, and decided again. What is taken back was never acknowledged. In between, the rules of
//! [`replica`](crate::replica), which are the same on every node, keep it out of every catalog.
//!
//! | race | outcome |
//! |---|---|
//! | two creations of one object | `prevExist=false`: the second is refused |
//! | two updates of one object | `prevIndex`: the second is decided again on the first |
//! | two services claim one key | the later write is taken back and refused |
//! | a server is created while its service is deleted | whichever comes second sees the other: the creation is taken back, or the deletion finds the server |
//! | a service moves while a server is added that suits the old key only | the later one is taken back and refused |
//!
//! A deletion takes the service's key first and its servers then: cut short, it leaves servers without
//! a service, which no catalog has and every status tells of, never a service without its servers.
//! They are cleared away by the next creation or deletion of that service. They are deleted one by
//! one by their index, so a deletion never takes servers of a service that was made anew meanwhile.
//!
//! What remains:
//!
//! * A node that dies between a write and its second look leaves the contradiction in the store. It is
//!   in no catalog, it is told as a problem, and an operator deletes it.
//! * A service that moves to a key in the same moment in which a younger one takes it has that key
//!   until its move is taken back, some milliseconds later.
//! * A request id is claimed before the write and answered after it. A node that dies between the
//!   two leaves a retry, once the claim has run out, to be decided as a new command: it finds the
//!   object changed, and says so.
//! * Nodes of the earlier system guard nothing. What they overwrite is lost, as it always was.
//!
//! Keys with a segment that begins with `_` are hidden from listings and watches. A service of such a
//! name could be written and never be seen, so it is refused. The answers to requests are kept there.

mod answers;
mod client;
mod follow;
mod propose;
mod protocol;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::sync::watch;

pub(crate) use follow::{holds_records, run};

use self::client::Client;
use self::protocol::Index;
use crate::publish::Views;

/// What following and proposing share.
#[derive(Debug)]
pub(crate) struct Shared {
    views: Views,
    /// The present client, while etcd answers.
    client: watch::Sender<Option<Arc<Client>>>,
    /// Index up to which the replica is known to be complete.
    horizon: watch::Sender<Index>,
    /// How many lists were asked for, and up to which of them they were made.
    lists_wanted: watch::Sender<u64>,
    lists_made: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn new(views: Views) -> Arc<Self> {
        Arc::new(Self {
            views,
            client: watch::Sender::new(None),
            horizon: watch::Sender::new(0),
            lists_wanted: watch::Sender::new(0),
            lists_made: watch::Sender::new(0),
        })
    }
}
