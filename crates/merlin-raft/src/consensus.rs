//! The one place that talks to openraft's handle: who leads, writing an entry, confirming a read.

use std::time::Duration;

use merlin_model::Actor;
use merlin_model::store::ProposeError;
use openraft::ServerState;
use openraft::error::{CheckIsLeaderError, ClientWriteError, Fatal, RaftError};

use crate::cluster::{ClusterAnswer, ClusterChange, ClusterCommand};
use crate::peers::Target;
use crate::proposer::{now, unavailable, unknown};
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
    isolation: Duration,
}

impl Consensus {
    pub(crate) fn new(raft: Raft, isolation: Duration) -> Self {
        Self { raft, isolation }
    }

    pub(crate) fn leadership(&self) -> Leadership {
        self.leadership_in(&self.raft.metrics().borrow())
    }

    pub(crate) fn leadership_in(&self, metrics: &Metrics) -> Leadership {
        leadership(metrics, self.isolation)
    }

    /// Ready when this node takes another one for the leader.
    pub(crate) async fn another_leads(&self, than: NodeId) {
        let mut metrics = self.raft.server_metrics();
        let another =
            metrics.wait_for(|metrics| metrics.current_leader.is_some_and(|id| id != than));
        if another.await.is_err() {
            // Consensus has ended, so nobody will.
            std::future::pending().await
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

    /// The same for a cluster command. Only the leader can.
    pub(crate) async fn write_cluster(
        &self,
        change: ClusterChange,
        by: Actor,
    ) -> Result<ClusterAnswer, ProposeError> {
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

fn leadership(metrics: &Metrics, isolation: Duration) -> Leadership {
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
