//! How the store is doing, as one node sees it.

use std::time::Duration;

use openraft::ServerState;

use crate::consensus::{Consensus, Leadership, Metrics};
use crate::identity::ClusterId;
use crate::typ::NodeId;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub cluster: ClusterId,
    pub incarnation: u64,
    pub node: NodeId,
    pub role: Role,
    pub leader: Option<NodeId>,
    pub term: u64,
    /// Position of the last entry in the log, and of the last one applied to the catalog.
    pub last_log: Option<u64>,
    pub applied: Option<u64>,
    /// Position the newest snapshot covers.
    pub snapshot: Option<u64>,
    /// How long ago a leader last heard from a quorum. Only a leader knows.
    pub quorum_contact: Option<Duration>,
    /// Why commands cannot be decided at the moment.
    pub unavailable: Option<String>,
    /// Whether a change of the members is under way.
    pub changing: bool,
    /// In order of their ids.
    pub members: Vec<Member>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: NodeId,
    pub name: String,
    pub addr: String,
    pub role: Role,
    /// Entries the member has yet to acknowledge. Only a leader knows.
    pub lag: Option<u64>,
}

/// What part a node takes in consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Leader,
    Follower,
    /// Has no vote, or none yet.
    Learner,
    /// Asks to become the leader.
    Candidate,
    /// The store has stopped.
    Stopped,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Learner => "learner",
            Self::Candidate => "candidate",
            Self::Stopped => "stopped",
        }
    }
}

impl Status {
    pub(crate) fn read(consensus: &Consensus, cluster: ClusterId, incarnation: u64) -> Self {
        let metrics = consensus.raft.metrics();
        let metrics = metrics.borrow();
        Self {
            cluster,
            incarnation,
            node: metrics.id,
            role: role(&metrics),
            leader: metrics.current_leader,
            term: metrics.current_term,
            last_log: metrics.last_log_index,
            applied: metrics.last_applied.map(|at| at.index),
            snapshot: metrics.snapshot.map(|at| at.index),
            quorum_contact: metrics.millis_since_quorum_ack.map(Duration::from_millis),
            unavailable: match consensus.leadership_in(&metrics) {
                Leadership::None { reason } => Some(reason),
                Leadership::Leading | Leadership::Following(_) => None,
            },
            changing: metrics
                .membership_config
                .membership()
                .get_joint_config()
                .len()
                > 1,
            members: members(&metrics),
        }
    }
}

fn role(metrics: &Metrics) -> Role {
    match metrics.state {
        ServerState::Leader => Role::Leader,
        ServerState::Follower => Role::Follower,
        ServerState::Learner => Role::Learner,
        ServerState::Candidate => Role::Candidate,
        ServerState::Shutdown => Role::Stopped,
    }
}

fn members(metrics: &Metrics) -> Vec<Member> {
    let membership = metrics.membership_config.membership();
    let voters: Vec<_> = membership.voter_ids().collect();
    let member = |(id, node): (&NodeId, &crate::typ::MerlinNode)| Member {
        id: *id,
        name: node.name.clone(),
        addr: node.addr.clone(),
        role: match *id {
            id if metrics.current_leader == Some(id) => Role::Leader,
            id if voters.contains(&id) => Role::Follower,
            _ => Role::Learner,
        },
        lag: metrics.replication.as_ref().and_then(|replication| {
            let matching = replication.get(id)?.map_or(0, |at| at.index);
            Some(metrics.last_log_index?.saturating_sub(matching))
        }),
    };
    membership.nodes().map(member).collect()
}
