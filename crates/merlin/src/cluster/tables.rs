//! Answers as tables for people.

use std::fmt::Write as _;
use std::path::Path;

use merlin_proto::v1::{
    CreateClientResponse, DescribeResponse, ListClientsResponse, ListTokensResponse, SnapshotInfo,
};

pub(super) fn status(cluster: &DescribeResponse) -> String {
    let voters = cluster.members.iter().filter(|member| member.voter).count();
    let quorum = voters / 2 + 1;
    let leader = cluster
        .members
        .iter()
        .find(|member| member.id == cluster.leader);
    let leader = leader.map_or("none".to_owned(), |leader| {
        format!("{} ({})", leader.id, leader.name)
    });
    let writes = match cluster.unavailable.as_str() {
        "" => "yes".to_owned(),
        reason => format!("no: {reason}"),
    };
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{name:<10}{value}");
    };
    line(
        "Cluster",
        &format_args!("{} incarnation {}", cluster.cluster_id, cluster.incarnation),
    );
    line("Leader", &leader);
    line("Term", &cluster.term);
    line("Revision", &cluster.revision);
    let tolerated = voters.saturating_sub(quorum);
    let failures = if tolerated == 1 {
        "failure"
    } else {
        "failures"
    };
    line(
        "Quorum",
        &format_args!("{quorum} of {voters} - tolerates {tolerated} {failures}"),
    );
    line("Writes", &writes);
    if cluster.level < cluster.known_level {
        let (level, known) = (cluster.level, cluster.known_level);
        let behind = match cluster.behind.as_slice() {
            [] => "about to rise".to_owned(),
            behind => format!("upgrade {}", behind.join(", ")),
        };
        line("Level", &format_args!("{level} of {known}: {behind}"));
    } else {
        line("Level", &cluster.level);
    }
    for warning in &cluster.warnings {
        line("Warning", warning);
    }
    for note in &cluster.notes {
        line("Note", note);
    }
    text.push('\n');
    text + &members(cluster)
}

pub(super) fn members(cluster: &DescribeResponse) -> String {
    let head = [
        "ID",
        "NAME",
        "ROLE",
        "ADDRESS",
        "REACHABLE",
        "APPLIED",
        "LAG",
        "CONTACT",
        "VERSION",
        "CERTIFICATE",
        "",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    rows.extend(cluster.members.iter().map(|member| {
        [
            member.id.to_string(),
            member.name.clone(),
            member.role.clone(),
            member.addr.clone(),
            if member.reachable { "yes" } else { "no" }.to_owned(),
            or_none(member.applied.map(|at| at.to_string())),
            or_none(member.lag.map(|lag| lag.to_string())),
            or_none(member.last_contact.as_ref().map(ago)),
            or_none(Some(member.version.clone()).filter(|version| !version.is_empty())),
            or_none(member.certificate_expires.as_ref().map(day)),
            if member.id == cluster.node_id {
                "this node".to_owned()
            } else {
                String::new()
            },
        ]
    }));
    table(&rows)
}

fn ago(since: &prost_types::Duration) -> String {
    match since.seconds {
        0 => "now".to_owned(),
        seconds => format!("{seconds} s ago"),
    }
}

/// The day of a time.
fn day(at: &prost_types::Timestamp) -> String {
    let text = at.to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

pub(super) fn tokens(listed: &ListTokensResponse) -> String {
    let mut rows = vec![["ID", "NAME", "ROLE", "USES LEFT", "EXPIRES"].map(str::to_owned)];
    rows.extend(listed.tokens.iter().map(|token| {
        let expires = token
            .expires
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        [
            token.id.clone(),
            token.name.clone(),
            token.role.clone(),
            token.uses_left.to_string(),
            if token.revoked {
                "revoked".to_owned()
            } else {
                expires
            },
        ]
    }));
    table(&rows)
}

pub(super) fn created_client(
    name: &str,
    role: &str,
    file: &Path,
    created: &CreateClientResponse,
) -> String {
    let (id, file) = (&created.id, file.display());
    let expires = time(created.expires.as_ref());
    format!(
        "client {name} ({role}), id {id}, until {expires}\n\
         {file} makes whoever has it this client; on its host: meradm login {file}\n"
    )
}

pub(super) fn clients(listed: &ListClientsResponse) -> String {
    let mut rows = vec![["ID", "NAME", "ROLE", "EXPIRES"].map(str::to_owned)];
    rows.extend(listed.clients.iter().map(|client| {
        [
            client.id.clone(),
            client.name.clone(),
            client.role.clone(),
            if client.revoked {
                "revoked".to_owned()
            } else {
                time(client.expires.as_ref())
            },
        ]
    }));
    table(&rows)
}

fn time(at: Option<&prost_types::Timestamp>) -> String {
    at.map(|at| prost_types::Timestamp { nanos: 0, ..*at }.to_string())
        .unwrap_or_default()
}

pub(super) fn snapshot(info: &SnapshotInfo) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{name:<10}{value}");
    };
    line(
        "Cluster",
        &format_args!("{} incarnation {}", info.cluster_id, info.incarnation),
    );
    line("Revision", &info.revision);
    line(
        "Log",
        &format_args!("up to entry {} of term {}", info.last_index, info.last_term),
    );
    line("Services", &info.services);
    line("Servers", &info.servers);
    line(
        "File",
        &format_args!("format {}, {} bytes", info.format, info.bytes),
    );
    line("Checksum", &info.checksum);
    if info.without_authority {
        line("Authority", &"left out, a restore makes a new one");
    }
    text.push('\n');
    let mut rows = vec![["ID", "NAME", "ADDRESS", "ROLE"].map(str::to_owned)];
    rows.extend(info.members.iter().map(|member| {
        [
            member.id.to_string(),
            member.name.clone(),
            member.addr.clone(),
            member.role.clone(),
        ]
    }));
    text + &table(&rows)
}

/// Rows in columns as wide as their widest cell.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use merlin_proto::v1::ClusterMember;

    use super::*;

    fn described() -> DescribeResponse {
        let member = |id, name: &str, role: &str| ClusterMember {
            id,
            name: name.into(),
            addr: format!("10.0.0.{id}:4284"),
            role: role.into(),
            voter: role != "learner",
            lag: (id != 3).then_some(0),
            reachable: id != 3,
            applied: (id != 3).then_some(40),
            last_contact: Some(prost_types::Duration {
                seconds: if id == 3 { 75 } else { 0 },
                nanos: 5,
            }),
            version: if id == 3 { "" } else { "0.3.0" }.into(),
            certificate_expires: (id != 3).then_some(prost_types::Timestamp {
                seconds: 1_800_000_000,
                nanos: 0,
            }),
            ..Default::default()
        };
        DescribeResponse {
            cluster_id: "9f2c".into(),
            incarnation: 1,
            node_id: 1,
            leader: 1,
            term: 4,
            revision: 17,
            level: 2,
            known_level: 2,
            members: vec![
                member(1, "lb-one", "leader"),
                member(2, "lb2", "follower"),
                member(3, "lb3", "learner"),
            ],
            warnings: vec!["node 3 (lb3) does not answer".into()],
            notes: vec!["2 voters".into()],
            ..Default::default()
        }
    }

    #[test]
    fn status_says_how_many_failures_the_cluster_survives() {
        let expected = "\
Cluster   9f2c incarnation 1
Leader    1 (lb-one)
Term      4
Revision  17
Quorum    2 of 2 - tolerates 0 failures
Writes    yes
Level     2
Warning   node 3 (lb3) does not answer
Note      2 voters

ID  NAME    ROLE      ADDRESS        REACHABLE  APPLIED  LAG  CONTACT   VERSION  CERTIFICATE
1   lb-one  leader    10.0.0.1:4284  yes        40       0    now       0.3.0    2027-01-15   this node
2   lb2     follower  10.0.0.2:4284  yes        40       0    now       0.3.0    2027-01-15
3   lb3     learner   10.0.0.3:4284  no         -        -    75 s ago  -        -
";
        assert_eq!(status(&described()), expected);
    }

    #[test]
    fn status_says_why_writes_are_not_possible() {
        let lost = DescribeResponse {
            leader: 0,
            unavailable: "no leader".into(),
            ..described()
        };
        let text = status(&lost);
        assert!(text.contains("Leader    none\n"), "{text}");
        assert!(text.contains("Writes    no: no leader\n"), "{text}");
    }

    #[test]
    fn status_says_which_nodes_are_left_to_upgrade() {
        let upgrading = DescribeResponse {
            level: 1,
            behind: vec!["node 2 (lb2)".into(), "node 3 (lb3)".into()],
            ..described()
        };
        let text = status(&upgrading);
        let line = "Level     1 of 2: upgrade node 2 (lb2), node 3 (lb3)\n";
        assert!(text.contains(line), "{text}");
    }
}
