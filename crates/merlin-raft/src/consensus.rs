//! The one place that talks to openraft's handle: who leads, writing an entry, confirming a read.
//!
//! The gate: writes and reads pass it, and a leader that hands over closes it, so that its
//! successor misses nothing and nothing prolongs its lease. What waits at the gate has not begun.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use merlin_model::Actor;
use merlin_model::store::ProposeError;
use openraft::ServerState;
use openraft::error::{CheckIsLeaderError, ClientWriteError, Fatal, RaftError};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::time::Instant;

use crate::cluster::{ClusterAnswer, ClusterChange, ClusterCommand};
use crate::level::{Level, Levels};
use crate::peers::Target;
use crate::proposer::{now, unavailable, unknown};
use crate::standing::{Dismissal, Standing};
use crate::typ::{MerlinNode, NodeId, Outcome, Proposal, Raft};

pub(crate) type Metrics = openraft::RaftMetrics<NodeId, MerlinNode>;

/// Where a command can be decided now, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leadership {
    Leading,
    Following(Target),
    None { reason: String },
}

#[derive(Clone)]
pub(crate) struct Consensus {
    pub(crate) raft: Raft,
    pub(crate) levels: Levels,
    isolation: Duration,
    dismissal: Dismissal,
    gate: Arc<RwLock<()>>,
    /// When a leader was heard last; at first, when this node began to listen.
    heard: Arc<Mutex<Instant>>,
    /// Why the cluster has not taken this node in yet, as far as it is known.
    uncalled: Arc<Mutex<Option<Uncalled>>>,
}

/// Lets its holder write or read; while there is one, no other node takes over.
#[derive(Debug)]
pub(crate) struct Passage {
    _open: OwnedRwLockReadGuard<()>,
}

/// Keeps everybody else from writing and reading.
#[derive(Debug)]
pub(crate) struct Closed {
    _closed: OwnedRwLockWriteGuard<()>,
}

/// Why a node is not called, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Uncalled {
    /// No leader calls it.
    Anywhere(String),
    /// The members look for it elsewhere.
    Here(String),
}

impl Consensus {
    pub(crate) fn new(
        raft: Raft,
        levels: Levels,
        isolation: Duration,
        dismissal: Dismissal,
    ) -> Self {
        Self {
            raft,
            levels,
            isolation,
            dismissal,
            gate: Arc::default(),
            heard: Arc::new(Mutex::new(Instant::now())),
            uncalled: Arc::default(),
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        self.dismissal.standing()
    }

    pub(crate) fn me(&self) -> NodeId {
        self.raft.metrics().borrow().id
    }

    /// Whether every member can apply what needs this level.
    pub(crate) async fn allow(&self, needed: Level) -> Result<(), ProposeError> {
        self.levels.allow(needed, &self.raft.metrics()).await
    }

    pub(crate) fn leadership(&self) -> Leadership {
        self.leadership_in(&self.raft.metrics().borrow())
    }

    pub(crate) fn leadership_in(&self, metrics: &Metrics) -> Leadership {
        match self.dismissal.standing().words() {
            Some(reason) => Leadership::None {
                reason: reason.into(),
            },
            None if is_outside(metrics) => Leadership::None {
                reason: self.waiting_words(),
            },
            None => leadership(metrics, self.isolation, self.unheard()),
        }
    }

    fn waiting_words(&self) -> String {
        let mut words = "this node waits for the cluster to take it in".to_owned();
        let uncalled = self.uncalled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Uncalled::Anywhere(reason)) = &*uncalled {
            words += ": ";
            words += reason;
        }
        words
    }

    /// Why the members do not take the address that this node was started with.
    pub(crate) fn not_moved(&self) -> Option<String> {
        let uncalled = self.uncalled.lock().unwrap_or_else(PoisonError::into_inner);
        match &*uncalled {
            Some(Uncalled::Here(reason)) => Some(reason.clone()),
            Some(Uncalled::Anywhere(_)) | None => None,
        }
    }

    pub(crate) fn set_uncalled(&self, uncalled: Option<Uncalled>) {
        *self.uncalled.lock().unwrap_or_else(PoisonError::into_inner) = uncalled;
    }

    /// A leader has called.
    pub(crate) fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// For how long no leader has called.
    pub(crate) fn unheard(&self) -> Duration {
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }

    /// Ends consensus on this node. Harmless when repeated.
    pub(crate) async fn stop(&self) {
        if self.raft.shutdown().await.is_err() {
            tracing::error!("consensus ended in a panic");
        }
    }

    /// Waits until nobody hands over.
    pub(crate) async fn pass(&self) -> Passage {
        Passage {
            _open: Arc::clone(&self.gate).read_owned().await,
        }
    }

    /// Whether this node is handing over, so that there will be a leader in a moment.
    pub(crate) fn hands_over(&self) -> bool {
        self.gate.try_read().is_err()
    }

    /// Lets what is under way finish, and holds up everything else.
    pub(crate) async fn close(&self) -> Closed {
        Closed {
            _closed: Arc::clone(&self.gate).write_owned().await,
        }
    }

    /// Ready when this node takes another one for the leader.
    pub(crate) async fn another_leads(&self, than: NodeId) -> NodeId {
        let mut metrics = self.raft.server_metrics();
        loop {
            let leader = metrics.borrow_and_update().current_leader;
            if let Some(leader) = leader.filter(|id| *id != than) {
                return leader;
            }
            if metrics.changed().await.is_err() {
                // Consensus has ended, so nobody will.
                return std::future::pending().await;
            }
        }
    }

    /// For how long a leader may hear nothing from a quorum.
    pub(crate) fn isolation(&self) -> Duration {
        self.isolation
    }

    /// Whether this node leads others, and no quorum has answered it within this time.
    pub(crate) fn leads_unheard(&self, within: Duration) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        metrics.state == ServerState::Leader
            && !alone(&metrics)
            && quiet(&metrics).is_none_or(|quiet| quiet > within)
    }

    /// Puts one entry into the log and waits until it is applied here. On any error but
    /// `Unavailable` the entry may be applied yet.
    pub(crate) async fn write(&self, proposal: Proposal) -> Result<Outcome, ProposeError> {
        let needed = proposal.level();
        let needed = needed.map_err(|error| unavailable(error.to_string()))?;
        self.allow(needed).await?;
        self.log(proposal).await
    }

    /// Has the cluster agree on a level that all its members can do.
    pub(crate) async fn raise(&self, level: Level) -> Result<(), ProposeError> {
        let command = ClusterCommand {
            at: now(),
            by: Actor::Node(self.levels.peers.this_node()),
            change: ClusterChange::Raise(level),
        };
        self.log(Proposal::of_cluster(&command)).await.map(drop)
    }

    async fn log(&self, proposal: Proposal) -> Result<Outcome, ProposeError> {
        match self.raft.client_write(proposal).await {
            Ok(written) => Ok(written.data),
            // Also the answer when the entry was in the log already and another leader's came in
            // its place: a third one may still bring it back.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                Err(unknown("this node lost the leadership meanwhile"))
            }
            Err(RaftError::APIError(error)) => Err(unavailable(error.to_string())),
            Err(RaftError::Fatal(error)) => Err(unknown(format!("the store has failed: {error}"))),
        }
    }

    /// The same for a cluster command, in its turn. Only the leader can.
    pub(crate) async fn write_cluster(
        &self,
        change: ClusterChange,
        by: Actor,
    ) -> Result<ClusterAnswer, ProposeError> {
        let _passage = self.pass().await;
        let at = now();
        let command = ClusterCommand { at, by, change };
        match self.write(Proposal::of_cluster(&command)).await? {
            Outcome::Cluster(answer) => Ok(answer),
            _ => Err(unknown("the answer does not match the command")),
        }
    }

    /// Position up to which every write acknowledged before this call has been logged, confirmed
    /// by a quorum. Only the leader can say.
    pub(crate) async fn read_index(&self) -> Result<u64, String> {
        match self.raft.get_read_log_id().await {
            Ok((position, _)) => Ok(position.map_or(0, |position| position.index)),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_))) => {
                Err("this node is not the leader".into())
            }
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
                Err("this node leads, but does not reach a quorum".into())
            }
            Err(RaftError::Fatal(error)) => Err(format!("the store has failed: {error}")),
        }
    }
}

fn leadership(metrics: &Metrics, isolation: Duration, unheard: Duration) -> Leadership {
    let none = |reason: String| Leadership::None { reason };
    match &metrics.running_state {
        Ok(()) => {}
        Err(Fatal::Stopped) => return none("the store is shutting down".into()),
        Err(error) => return none(format!("the store has failed: {error}")),
    }
    match (metrics.state, metrics.current_leader) {
        (ServerState::Leader, _) if alone(metrics) => Leadership::Leading,
        (ServerState::Leader, _) => match quiet(metrics) {
            Some(quiet) if quiet <= isolation => Leadership::Leading,
            Some(quiet) => none(format!(
                "this node leads, but has not heard from a quorum for {} s",
                quiet.as_secs()
            )),
            None => none("this node leads, but no quorum has confirmed it yet".into()),
        },
        // A learner does not look for another, so it would take a lost leader for one for ever.
        (_, Some(leader)) if leader != metrics.id && unheard > isolation => none(format!(
            "node {leader} led last, and has not been heard here for {} s",
            unheard.as_secs()
        )),
        (_, Some(leader)) if leader != metrics.id => {
            match metrics.membership_config.membership().get_node(&leader) {
                Some(node) => Leadership::Following(Target::new(leader, node)),
                None => none(format!(
                    "node {leader} leads, whose address is not known here"
                )),
            }
        }
        _ => none("the cluster has no leader at the moment".into()),
    }
}

/// Whether the node runs, but is no member yet.
fn is_outside(metrics: &Metrics) -> bool {
    let membership = metrics.membership_config.membership();
    metrics.running_state.is_ok() && membership.get_node(&metrics.id).is_none()
}

/// How long ago a leader last heard from a quorum.
fn quiet(metrics: &Metrics) -> Option<Duration> {
    metrics.millis_since_quorum_ack.map(Duration::from_millis)
}

/// Whether this node is a quorum by itself.
fn alone(metrics: &Metrics) -> bool {
    let mut voters = metrics.membership_config.membership().voter_ids();
    voters.all(|voter| voter == metrics.id)
}

impl std::fmt::Debug for Consensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consensus").finish_non_exhaustive()
    }
}
