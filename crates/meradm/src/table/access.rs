//! `meradm audit` and `meradm contexts`.

use merlin_proto::v1::{AuditEntry, AuditResponse};
use prost_types::Timestamp;

use super::aligned;
use crate::commands::Listed;

/// A line per change.
pub(crate) fn audit(answer: &AuditResponse) -> String {
    let mut rows = vec![
        ["Time", "Revision", "Who", "What"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(answer.entries.iter().map(|entry: &AuditEntry| {
        vec![
            time(entry.time.as_ref()),
            entry.revision.to_string(),
            entry.who.clone(),
            entry.what.clone(),
        ]
    }));
    aligned(&rows)
}

/// A line per context; the one in use has a star.
pub(crate) fn contexts(listed: &[Listed]) -> String {
    let header = ["", "Name", "Client", "Role", "Cluster", "Expires", "Nodes"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(listed.iter().map(|context| {
        let star = if context.current { "*" } else { "" };
        let last = match context.error.as_str() {
            "" => context.nodes.join(","),
            error => error.to_owned(),
        };
        vec![
            star.to_owned(),
            context.name.clone(),
            context.client.clone(),
            context.role.clone(),
            context.cluster.clone(),
            context.expires.clone(),
            last,
        ]
    }));
    aligned(&rows)
}

/// To the second, in UTC.
pub(crate) fn time(at: Option<&Timestamp>) -> String {
    at.map(|at| Timestamp { nanos: 0, ..*at }.to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::snapshot;

    #[test]
    fn the_audit_trail_is_a_line_per_change() {
        let entry = |number, who: &str, what: &str| AuditEntry {
            number,
            time: Some(Timestamp {
                seconds: 1_800_000_000 + i64::try_from(number).unwrap(),
                nanos: 5_000_000,
            }),
            who: who.to_owned(),
            what: what.to_owned(),
            revision: 7 * number,
        };
        let entries = vec![
            entry(
                2,
                "client ana (operator)",
                "edit server 10.1.0.1:80 of web: weight 0",
            ),
            entry(
                1,
                "root (uid 0) on node 1",
                "add service web TCP 10.0.0.1:80 wrr",
            ),
        ];
        snapshot!(audit(&AuditResponse { entries }));
    }
}
