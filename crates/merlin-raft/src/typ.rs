//! The types that consensus is instantiated with, and short names for openraft's generic ones.
//!
//! None of them derives serde: what is written to disk or sent to another node has one explicit
//! encoding, in [`crate::codec`].

use std::fmt;

use bytes::Bytes;

use crate::cluster::ClusterAnswer;
use merlin_model::catalog::Answer;

/// Number of a node. The leader hands them out from a replicated counter and never twice.
pub type NodeId = u64;

openraft::declare_raft_types!(
    /// The parameters of the replicated log.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Outcome,
        NodeId = NodeId,
        Node = MerlinNode,
        SnapshotData = SnapshotData,
);

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type EntryPayload = openraft::EntryPayload<TypeConfig>;
pub(crate) type LogId = openraft::LogId<NodeId>;
pub(crate) type Vote = openraft::Vote<NodeId>;
pub(crate) type Membership = openraft::Membership<NodeId, MerlinNode>;
pub(crate) type StoredMembership = openraft::StoredMembership<NodeId, MerlinNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<NodeId, MerlinNode>;
pub(crate) type Snapshot = openraft::Snapshot<TypeConfig>;
pub(crate) type StorageError = openraft::StorageError<NodeId>;

/// What the membership says of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MerlinNode {
    /// What operators call it.
    pub name: String,
    /// Where the other nodes reach it, `IP:PORT`.
    pub addr: String,
}

impl fmt::Display for MerlinNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.addr)
    }
}

/// What one log entry asks of the state machine: an encoded `merlin.log.v1.Proposal`, which only
/// the state machine reads. The log and the wire carry it as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proposal(pub Bytes);

/// The state machine's answer to one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The entry was consensus's own.
    Nothing,
    /// One for each command of a batch, in order.
    Answers(Vec<Answer>),
    Cluster(ClusterAnswer),
}

/// A whole encoded snapshot, as [`crate::snapshot`] lays it out. The state is small, so it travels
/// and is kept in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotData(pub(crate) Bytes);
