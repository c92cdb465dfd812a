//! The one place that talks to openraft's handle: who leads, writing an entry, confirming a read.

use std::time::Duration;

use merlin_model::store::ProposeError;
use openraft::ServerState;
use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};

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
    /// For how long a leader may hear nothing from a quorum.
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
    ) -> Result<ClusterAnswer, ProposeError> {
        let command = ClusterCommand { at: now(), change };
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
    if let Err(error) = &metrics.running_state {
        return none(format!("the store has failed: {error}"));
    }
    match (metrics.state, metrics.current_leader) {
        (ServerState::Leader, _) => {
            let quiet = metrics.millis_since_quorum_ack.map(Duration::from_millis);
            match quiet {
                Some(quiet) if quiet > isolation => none(format!(
                    "this node leads, but has not heard from a quorum for {} s",
                    quiet.as_secs()
                )),
                _ => Leadership::Leading,
            }
        }
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

impl std::fmt::Debug for Consensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consensus").finish_non_exhaustive()
    }
}
