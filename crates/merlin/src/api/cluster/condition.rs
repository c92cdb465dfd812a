//! What an operator has to see to in a cluster. Pure.

use std::time::Duration;

use merlin_model::Timestamp;
use merlin_proto::v1::{ClusterMember, DescribeResponse};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate is renewed a month before it ends, so two weeks mean that it does not work.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * DAY.as_secs());

/// Clocks further apart make certificates and tokens valid here and invalid there.
const SKEW: Duration = Duration::from_secs(1);

/// Percent of a file system; a snapshot and some log have to fit into it.
const DISK_FREE: u32 = 5;

/// Log entries. Far more than a node lacks that only has to catch its breath.
const LAG: u64 = 2000;

/// What is known of a member beside its entry in the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) id: u64,
    /// How far its clock is from this node's, as far as that can be told.
    pub(super) skew: Duration,
    pub(super) disk_free: Option<u32>,
    /// Why the members do not take its new address.
    pub(super) not_moved: String,
}

/// Completes a description with what there is to say about it.
pub(super) fn judge(
    cluster: &mut DescribeResponse,
    facts: &[Facts],
    changing: bool,
    now: Timestamp,
) {
    let mut warnings = Vec::new();
    let mut notes = Vec::new();
    let voters = cluster.members.iter().filter(|member| member.voter);
    let (voters, answering) = (
        voters.clone().count(),
        voters.filter(|member| member.reachable).count(),
    );
    if voters > 0 && answering <= voters / 2 {
        warnings.push(format!(
            "only {answering} of {voters} voters answer this node, which are too few to decide \
             anything: bring one back"
        ));
    }
    if changing {
        warnings.push("a change of the voters is under way; the leader finishes it".to_owned());
    }
    for member in &cluster.members {
        warnings.extend(of_member(member, now));
    }
    for facts in facts {
        let name = cluster.members.iter().find(|member| member.id == facts.id);
        let Some(name) = name.map(called) else {
            continue;
        };
        if facts.skew > SKEW {
            warnings.push(format!(
                "the clock of {name} is {:.1} s off this node's: see to its time synchronisation",
                facts.skew.as_secs_f64()
            ));
        }
        if let Some(free) = facts.disk_free.filter(|free| *free < DISK_FREE) {
            warnings.push(format!(
                "the disk of {name} is nearly full ({free} % free): a node that cannot write stops"
            ));
        }
        if !facts.not_moved.is_empty() {
            warnings.push(format!(
                "{name} was started with another address, which is not taken: {}",
                facts.not_moved
            ));
        }
    }
    if voters > 1 && voters % 2 == 0 {
        notes.push(format!(
            "{voters} voters tolerate no more failures than {}: add one, or demote one",
            voters - 1
        ));
    }
    cluster.warnings = warnings;
    cluster.notes = notes;
}

fn of_member(member: &ClusterMember, now: Timestamp) -> Vec<String> {
    let mut warnings = Vec::new();
    let name = called(member);
    let trouble = match member.trouble.as_str() {
        "" => String::new(),
        trouble => format!(": {trouble}"),
    };
    match member.role.as_str() {
        "joining" => warnings.push(format!(
            "{name} was let in and is no member yet{trouble}{}",
            if trouble.is_empty() {
                "; is merlin running on it?"
            } else {
                "; a wrong --advertise-addr there, NAT or a firewall?"
            }
        )),
        _ if !member.reachable => warnings.push(format!("{name} does not answer{trouble}")),
        "learner" if !trouble.is_empty() => {
            warnings.push(format!("{name} does not get its vote{trouble}"));
        }
        _ => {}
    }
    if member.lag.is_some_and(|lag| lag > LAG) && member.reachable {
        let lag = member.lag.unwrap_or_default();
        warnings.push(format!(
            "{name} lacks {lag} log entries: its disk or network is slow"
        ));
    }
    let expires = member.certificate_expires.as_ref();
    if let Some(expires) = expires {
        let expires = u64::try_from(expires.seconds).unwrap_or(0);
        let left = expires.saturating_sub(now.0 / 1000);
        if left < EXPIRES_SOON.as_secs() {
            warnings.push(format!(
                "the certificate of {name} ends in {} days and was not renewed: run `merlin \
                 cluster cert renew` there, its log says why",
                left / DAY.as_secs()
            ));
        }
    }
    warnings
}

fn called(member: &ClusterMember) -> String {
    format!("node {} ({})", member.id, member.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn member(id: u64, role: &str) -> ClusterMember {
        ClusterMember {
            id,
            name: format!("lb{id}"),
            role: role.into(),
            voter: matches!(role, "leader" | "follower"),
            reachable: true,
            certificate_expires: Some(prost_types::Timestamp {
                seconds: 1_800_000_000 + 80 * 24 * 3600,
                nanos: 0,
            }),
            ..Default::default()
        }
    }

    fn judged(members: Vec<ClusterMember>, facts: &[Facts]) -> DescribeResponse {
        let mut cluster = DescribeResponse {
            members,
            ..Default::default()
        };
        judge(&mut cluster, facts, false, NOW);
        cluster
    }

    fn three() -> Vec<ClusterMember> {
        vec![
            member(1, "leader"),
            member(2, "follower"),
            member(3, "follower"),
        ]
    }

    #[test]
    fn there_is_nothing_to_say_about_a_healthy_cluster() {
        for mut members in [vec![member(1, "leader")], three()] {
            members.push(member(4, "learner"));
            let facts = members.iter().map(|member| Facts {
                id: member.id,
                skew: Duration::from_millis(900),
                disk_free: Some(5),
                not_moved: String::new(),
            });
            let cluster = judged(members.clone(), &facts.collect::<Vec<_>>());
            assert_eq!((cluster.warnings, cluster.notes), (vec![], vec![]));
        }
    }

    #[test]
    fn each_trouble_is_named_with_its_node() {
        let mut away = member(3, "follower");
        away.reachable = false;
        away.trouble = "Connection refused".into();
        let mut old = member(2, "follower");
        old.certificate_expires = Some(prost_types::Timestamp {
            seconds: 1_800_000_000 + 13 * 24 * 3600,
            nanos: 0,
        });
        old.lag = Some(LAG + 1);
        let mut stuck = member(4, "learner");
        stuck.trouble = "does not answer".into();
        let mut joining = member(5, "joining");
        joining.trouble = "node 5 at 192.0.2.5:4284 cannot be reached: timed out".into();
        let facts = [Facts {
            id: 1,
            skew: Duration::from_millis(3_600_100),
            disk_free: Some(4),
            not_moved: "node 3 at 192.0.2.9:4284 does not answer".into(),
        }];
        let members = vec![member(1, "leader"), old, away, stuck, joining];
        let warnings = judged(members, &facts).warnings;
        let expected = [
            "node 2 (lb2) lacks 2001 log entries",
            "certificate of node 2 (lb2) ends in 13 days",
            "node 3 (lb3) does not answer: Connection refused",
            "node 4 (lb4) does not get its vote: does not answer",
            "node 5 (lb5) was let in and is no member yet: node 5 at 192.0.2.5:4284 cannot",
            "clock of node 1 (lb1) is 3600.1 s off",
            "disk of node 1 (lb1) is nearly full (4 % free)",
            "node 1 (lb1) was started with another address, which is not taken: node 3 at",
        ];
        assert_eq!(warnings.len(), expected.len(), "{warnings:#?}");
        for (warning, expected) in warnings.iter().zip(expected) {
            assert!(warning.contains(expected), "{warning}");
        }
    }

    #[test]
    fn a_lost_quorum_and_an_even_number_of_voters_are_said() {
        let mut members = three();
        members[1].reachable = false;
        members[2].reachable = false;
        let cluster = judged(members, &[]);
        assert!(cluster.warnings[0].contains("only 1 of 3 voters"));
        let even = judged(three().into_iter().take(2).collect(), &[]);
        assert_eq!(even.warnings, Vec::<String>::new());
        assert!(
            even.notes[0].contains("than 1: add one"),
            "{:?}",
            even.notes
        );
    }

    #[test]
    fn a_change_under_way_is_said() {
        let mut cluster = DescribeResponse::default();
        judge(&mut cluster, &[], true, NOW);
        assert!(cluster.warnings[0].contains("under way"));
    }
}
