//! How the store is doing, as one node sees it.

use std::time::Duration;

use openraft::ServerState;

use crate::cluster::ClusterState;
use crate::consensus::{Consensus, Leadership, Metrics};
use crate::identity::{self, ClusterId};
use crate::keeper::Troubles;
use crate::peers::Peers;
use crate::peers::route::Me;
use crate::standing::Standing;
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
    /// Why the members do not take the address that this node was started with.
    pub not_moved: Option<String>,
    /// Whether this node is a member still.
    pub standing: Standing,
    /// How long ago this node heard from its leader. A leader does not.
    pub leader_contact: Option<Duration>,
    /// In order of their ids.
    pub members: Vec<Member>,
    /// Let in, but not members yet. In order of their ids.
    pub waiting: Vec<Waiting>,
}

/// A node that a token let in, and that the leader has not made a member yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub id: NodeId,
    pub name: String,
    pub addr: String,
    /// What keeps the leader from it. Only a leader knows.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: NodeId,
    pub name: String,
    pub addr: String,
    pub role: Role,
    /// What it is to be, where that was ever decided.
    pub wanted: Option<identity::Role>,
    /// Entries the member has yet to acknowledge. Only a leader knows.
    pub lag: Option<u64>,
    /// How long ago it answered this node; none when this node does not call it, or in vain.
    pub contact: Option<Duration>,
    /// Why it does not answer this node, or why the leader does not promote it.
    pub trouble: Option<String>,
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
    pub(crate) fn read(
        me: Me,
        consensus: &Consensus,
        peers: &Peers,
        cluster: &ClusterState,
        troubles: &Troubles,
    ) -> Self {
        let metrics = consensus.raft.metrics();
        let metrics = metrics.borrow();
        let mut members = members(&metrics);
        for member in &mut members {
            let id = member.id;
            member.wanted = cluster.enrollment.wanted(id);
            member.contact = peers.contacts().silence(id);
            member.trouble = peers.contacts().trouble(id).or_else(|| troubles.of(id));
        }
        let known = |id: NodeId| members.iter().any(|member| member.id == id);
        let enrolled = cluster.enrollment.nodes.iter();
        let waiting = enrolled.filter(|(id, _)| !known(**id));
        let waiting = waiting.map(|(&id, node)| Waiting {
            id,
            name: node.name.clone(),
            addr: node.addr.clone(),
            trouble: troubles.of(id),
        });
        let (unavailable, not_moved) = match consensus.leadership_in(&metrics) {
            Leadership::None { reason } => (Some(reason), None),
            Leadership::Leading | Leadership::Following(_) => (None, consensus.not_moved()),
        };
        Self {
            cluster: me.cluster,
            incarnation: me.incarnation,
            node: metrics.id,
            role: role(&metrics),
            // What a node that is no member believed last is of no use.
            leader: metrics
                .current_leader
                .filter(|_| consensus.standing() == Standing::Member),
            term: metrics.current_term,
            last_log: metrics.last_log_index,
            applied: metrics.last_applied.map(|at| at.index),
            snapshot: metrics.snapshot.map(|at| at.index),
            quorum_contact: metrics.millis_since_quorum_ack.map(Duration::from_millis),
            unavailable,
            not_moved,
            changing: metrics
                .membership_config
                .membership()
                .get_joint_config()
                .len()
                > 1,
            standing: consensus.standing(),
            leader_contact: (metrics.state != ServerState::Leader).then(|| consensus.unheard()),
            waiting: waiting.collect(),
            members,
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
        wanted: None,
        contact: None,
        trouble: None,
    };
    membership.nodes().map(member).collect()
}
