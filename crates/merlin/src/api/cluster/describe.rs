//! The cluster as this node sees it.

use merlin_proto::v1::{ClusterMember, DescribeResponse};
use merlin_raft::{Member, RaftStore, Role};

pub(super) async fn describe(raft: &RaftStore) -> DescribeResponse {
    let status = raft.status();
    let member = |member: Member| ClusterMember {
        id: member.id,
        name: member.name,
        addr: member.addr,
        role: member.role.as_str().to_owned(),
        voter: member.role != Role::Learner,
        lag: member.lag,
    };
    let levels = raft.levels().await;
    DescribeResponse {
        cluster_id: status.cluster.to_string(),
        incarnation: status.incarnation,
        node_id: status.node,
        leader: status.leader.unwrap_or_default(),
        term: status.term,
        revision: raft.catalog().borrow().revision().0,
        unavailable: status.unavailable.unwrap_or_default(),
        members: status.members.into_iter().map(member).collect(),
        level: levels.agreed.number(),
        known_level: levels.known.number(),
        behind: levels.behind,
    }
}
