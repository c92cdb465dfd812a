//! Who changed what, and when: the trail that every accepted change leaves.
//!
//! The trail is part of the replicated state, so it is bounded, and it takes its time from the
//! commands. A command that changed nothing, a repeated one above all, leaves nothing: so nobody
//! can push the trail's beginning out of it by asking for the same thing again and again.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::Vector;

use crate::access::Role;
use crate::catalog::Revision;
use crate::command::Timestamp;

/// Who asked for a change.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Actor {
    /// Nothing is known, as of changes that an earlier version logged.
    #[default]
    Unknown,
    /// A user of a node's host, by that node's unix socket.
    User {
        uid: u32,
        /// Empty for a user without a name.
        name: Arc<str>,
        node: u64,
    },
    /// A client with a certificate, as the cluster knew it then.
    Client { name: Arc<str>, role: Role },
    /// Whoever reached a plaintext port from this address.
    Plaintext(IpAddr),
    /// A node, by itself.
    Node(u64),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("unknown"),
            Self::User { uid, name, node } if name.is_empty() => {
                write!(f, "uid {uid} on node {node}")
            }
            Self::User { uid, name, node } => write!(f, "{name} (uid {uid}) on node {node}"),
            Self::Client { name, role } => write!(f, "client {name} ({role})"),
            Self::Plaintext(address) => write!(f, "{address} in plaintext"),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// One change that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// Counts the changes of a cluster's whole life, from 1.
    pub number: u64,
    /// When the leader accepted it.
    pub at: Timestamp,
    pub by: Actor,
    /// One line of words.
    pub what: String,
    /// Of the catalog, with the change.
    pub revision: Revision,
}

/// The newest changes, oldest first. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditTrail {
    records: Vector<Arc<AuditRecord>>,
    /// Of the newest record; 0 before the first.
    newest: u64,
}

impl AuditTrail {
    /// How many changes are kept: some 2 MiB.
    pub const MAX: usize = 10_000;
    /// Longest text of a record in bytes; what is longer is cut.
    pub const MAX_WORDS: usize = 240;

    /// Notes a change.
    pub fn push(&mut self, at: Timestamp, by: Actor, what: impl fmt::Display, revision: Revision) {
        self.newest += 1;
        self.records.push_back(Arc::new(AuditRecord {
            number: self.newest,
            at,
            by,
            what: cut(what.to_string()),
            revision,
        }));
        while self.records.len() > Self::MAX {
            self.records.pop_front();
        }
    }

    /// Rebuilds a trail from its records, oldest first.
    pub fn restore(records: impl IntoIterator<Item = AuditRecord>) -> Self {
        let records: Vector<_> = records.into_iter().map(Arc::new).collect();
        let newest = records.last().map_or(0, |record| record.number);
        Self { records, newest }
    }

    /// Newest first.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &Arc<AuditRecord>> {
        self.records.iter().rev()
    }
}

fn cut(mut words: String) -> String {
    if words.len() > AuditTrail::MAX_WORDS {
        let mut end = AuditTrail::MAX_WORDS - 3;
        while !words.is_char_boundary(end) {
            end -= 1;
        }
        words.truncate(end);
        words += "...";
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(trail: &mut AuditTrail, at: u64) {
        let by = Actor::Node(1);
        trail.push(Timestamp(at), by, format!("change {at}"), Revision(at));
    }

    #[test]
    fn the_newest_changes_are_kept_and_counted_on() {
        let mut trail = AuditTrail::default();
        let all = AuditTrail::MAX as u64 + 5;
        (1..=all).for_each(|at| push(&mut trail, at));
        assert_eq!(trail.records().count(), AuditTrail::MAX);
        assert_eq!(
            trail.records().next().unwrap().what,
            format!("change {all}")
        );
        assert_eq!(trail.records().next_back().unwrap().number, 6);

        let records = trail.records().rev().map(|record| (**record).clone());
        let mut restored = AuditTrail::restore(records.collect::<Vec<_>>());
        assert_eq!(restored, trail);
        push(&mut restored, all + 1);
        assert_eq!(restored.records().next().unwrap().number, all + 1);
    }

    #[test]
    fn long_words_are_cut_between_letters() {
        let mut trail = AuditTrail::default();
        let words = "ä".repeat(AuditTrail::MAX_WORDS);
        trail.push(Timestamp(1), Actor::Unknown, words, Revision(1));
        let what = &trail.records().next().unwrap().what;
        assert!(
            what.len() <= AuditTrail::MAX_WORDS && what.ends_with("ä..."),
            "{what}"
        );
    }

    #[test]
    fn actors_are_named_in_words() {
        let user = |name: &str| Actor::User {
            uid: 0,
            name: name.into(),
            node: 2,
        };
        let client = Actor::Client {
            name: "ana".into(),
            role: Role::Operator,
        };
        for (actor, words) in [
            (Actor::Unknown, "unknown"),
            (user("root"), "root (uid 0) on node 2"),
            (user(""), "uid 0 on node 2"),
            (client, "client ana (operator)"),
            (
                Actor::Plaintext([127, 0, 0, 1].into()),
                "127.0.0.1 in plaintext",
            ),
            (Actor::Node(3), "node 3"),
        ] {
            assert_eq!(actor.to_string(), words);
        }
    }
}
