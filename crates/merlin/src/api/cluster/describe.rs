//! The cluster as this node sees it, and as its members say.

use std::time::Duration;

use merlin_model::Timestamp;
use merlin_proto::peer::MemberReport;
use merlin_proto::v1::{ClusterMember, DescribeResponse};
use merlin_raft::{Member, RaftStore, Role, Standing, Waiting};

use super::condition::{self, Facts};
use crate::clock;
use crate::fleet::{self, Asked};
use crate::node::Node;

/// Only what this node knows by itself.
pub(super) fn local(raft: &RaftStore) -> DescribeResponse {
    let status = raft.status();
    let members = status.members.into_iter().map(member);
    DescribeResponse {
        cluster_id: status.cluster.to_string(),
        incarnation: status.incarnation,
        node_id: status.node,
        leader: status.leader.unwrap_or_default(),
        term: status.term,
        revision: raft.catalog().borrow().revision().0,
        unavailable: status.unavailable.unwrap_or_default(),
        members: members
            .chain(status.waiting.into_iter().map(waiting))
            .collect(),
        ..Default::default()
    }
}

/// With what every member says of itself, and the leader of the others.
pub(super) async fn cluster(node: &Node, raft: &RaftStore) -> DescribeResponse {
    let mut described = local(raft);
    if raft.standing() != Standing::Member {
        // Nobody answers it, and what there is to say is said.
        return described;
    }
    let (reports, levels) = tokio::join!(fleet::members(node), raft.levels());
    described.level = levels.agreed.number();
    described.known_level = levels.known.number();
    described.behind = levels.behind;
    let mut facts = Vec::new();
    for Asked {
        id,
        at,
        took,
        answer,
    } in &reports
    {
        let Some(member) = described.members.iter_mut().find(|member| member.id == *id) else {
            continue;
        };
        match answer {
            Ok(report) => {
                facts.push(Facts {
                    id: *id,
                    skew: skew(report, *at, *took),
                    disk_free: report.disk_free,
                    not_moved: report.not_moved.clone(),
                });
                first_hand(member, report);
            }
            Err(reason) => member.trouble.clone_from(reason),
        }
    }
    let leader = reports.iter().find_map(|asked| {
        let report = asked.answer.as_ref().ok()?;
        report.leads.then_some(report)
    });
    if let Some(leader) = leader {
        as_the_leader_sees(&mut described.members, leader);
    }
    let changing = raft.status().changing;
    condition::judge(&mut described, &facts, changing, clock::now());
    let rotation = raft.rotation_under_way().map(str::to_owned);
    described.notes.extend(rotation);
    described
}

fn member(member: Member) -> ClusterMember {
    ClusterMember {
        id: member.id,
        name: member.name,
        addr: member.addr,
        role: member.role.as_str().to_owned(),
        voter: member.role != Role::Learner,
        lag: member.lag,
        trouble: member.trouble.unwrap_or_default(),
        last_contact: member.contact.and_then(|since| since.try_into().ok()),
        ..Default::default()
    }
}

fn waiting(node: Waiting) -> ClusterMember {
    ClusterMember {
        id: node.id,
        name: node.name,
        addr: node.addr,
        role: "joining".to_owned(),
        trouble: node.trouble.unwrap_or_default(),
        ..Default::default()
    }
}

fn first_hand(member: &mut ClusterMember, report: &MemberReport) {
    member.reachable = true;
    member.trouble.clear();
    member.applied = Some(report.applied);
    member.last_contact = prost_types::Duration::try_from(Duration::ZERO).ok();
    member.version.clone_from(&report.version);
    member.certificate_expires = report.certificate_expires;
}

fn as_the_leader_sees(members: &mut [ClusterMember], leader: &MemberReport) {
    for seen in leader.followers.iter().chain(&leader.waiting) {
        let Some(member) = members.iter_mut().find(|member| member.id == seen.id) else {
            continue;
        };
        member.lag = member.lag.or(seen.lag);
        if !member.reachable {
            member.last_contact = member.last_contact.or(seen.last_contact);
        }
        if member.trouble.is_empty() {
            member.trouble.clone_from(&seen.trouble);
        }
    }
}

/// How far a clock is off, beyond what the time for question and answer explains.
fn skew(report: &MemberReport, at: Timestamp, took: Duration) -> Duration {
    let Some(there) = &report.clock else {
        return Duration::ZERO;
    };
    let there = i128::from(there.seconds) * 1000 + i128::from(there.nanos / 1_000_000);
    let here = i128::from(at.0);
    let apart = u64::try_from((here - there).unsigned_abs()).unwrap_or(u64::MAX);
    Duration::from_millis(apart).saturating_sub(took)
}
