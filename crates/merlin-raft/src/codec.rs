//! The one encoding of consensus's types, for the disk and for the wire: the messages of
//! `merlin.log.v1`, which are only ever extended.
//!
//! Encoding cannot fail. Decoding never panics, and refuses what it does not understand entirely:
//! an entry that is taken for another one would make nodes differ.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use merlin_proto::log;
use openraft::CommittedLeaderId;
use prost::Message;

use crate::identity::DecodeEnrollmentError;
use crate::level::Level;
use crate::typ::{Entry, EntryPayload, LogId, Membership, MerlinNode, Proposal, Vote};

/// Stored or received bytes are not what they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("not a valid {what}")]
    Malformed {
        what: &'static str,
        #[source]
        source: prost::DecodeError,
    },
    #[error("{what} is missing or of a kind this version does not know")]
    Missing { what: &'static str },
    #[error("it needs a newer merlin: commands of level {found}, this one knows level {known}")]
    Newer { found: Level, known: Level },
    #[error("it does not describe a catalog")]
    Model(#[from] merlin_proto::DecodeError),
    #[error("it does not describe how nodes join")]
    Enrollment(#[from] DecodeEnrollmentError),
}

pub(crate) fn encode_entry(entry: &Entry) -> Vec<u8> {
    entry_to_proto(entry).encode_to_vec()
}

pub(crate) fn decode_entry(bytes: Bytes) -> Result<Entry, DecodeError> {
    let malformed = |source| DecodeError::Malformed {
        what: "log entry",
        source,
    };
    entry_from_proto(log::Entry::decode(bytes).map_err(malformed)?)
}

pub(crate) fn log_id_to_proto(id: &LogId) -> log::LogId {
    log::LogId {
        term: id.leader_id.term,
        index: id.index,
    }
}

pub(crate) fn log_id_from_proto(id: &log::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub(crate) fn vote_to_proto(vote: &Vote) -> log::Vote {
    log::Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for.unwrap_or_default(),
        committed: vote.committed,
    }
}

pub(crate) fn vote_from_proto(vote: &log::Vote) -> Vote {
    ballot(vote.term, vote.node, vote.committed)
}

/// A position as consensus has it. A term has one leader, so the term alone tells who wrote it.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 0), index)
}

/// A vote as consensus has it. A vote for nobody exists in term 0 only, where it loses to any other.
pub(crate) fn ballot(term: u64, node: u64, committed: bool) -> Vote {
    if committed {
        Vote::new_committed(term, node)
    } else {
        Vote::new(term, node)
    }
}

pub(crate) fn membership_to_proto(membership: &Membership) -> log::Membership {
    let configs = membership.get_joint_config().iter();
    let nodes = membership.nodes();
    log::Membership {
        configs: configs
            .map(|voters| log::membership::Config {
                voters: voters.iter().copied().collect(),
            })
            .collect(),
        nodes: nodes
            .map(|(id, node)| log::membership::Member {
                id: *id,
                name: node.name.clone(),
                addr: node.addr.clone(),
            })
            .collect(),
    }
}

pub(crate) fn membership_from_proto(membership: log::Membership) -> Membership {
    let configs = membership.configs.into_iter();
    let configs: Vec<BTreeSet<_>> = configs
        .map(|config| config.voters.into_iter().collect())
        .collect();
    let nodes: BTreeMap<_, _> = membership
        .nodes
        .into_iter()
        .map(|node| {
            let (id, name, addr) = (node.id, node.name, node.addr);
            (id, MerlinNode { name, addr })
        })
        .collect();
    Membership::new(configs, nodes)
}

pub(crate) fn entry_to_proto(entry: &Entry) -> log::Entry {
    use log::entry::Payload;
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank(log::entry::Blank {}),
        EntryPayload::Normal(Proposal(bytes)) => Payload::Proposal(bytes.clone()),
        EntryPayload::Membership(membership) => {
            Payload::Membership(membership_to_proto(membership))
        }
    };
    log::Entry {
        id: Some(log_id_to_proto(&entry.log_id)),
        payload: Some(payload),
    }
}

pub(crate) fn entry_from_proto(entry: log::Entry) -> Result<Entry, DecodeError> {
    use log::entry::Payload;
    let missing = |what| DecodeError::Missing { what };
    let id = entry.id.ok_or(missing("the position of a log entry"))?;
    let payload = match entry.payload.ok_or(missing("the payload of a log entry"))? {
        Payload::Blank(_) => EntryPayload::Blank,
        Payload::Proposal(bytes) => EntryPayload::Normal(Proposal(bytes)),
        Payload::Membership(membership) => {
            EntryPayload::Membership(membership_from_proto(membership))
        }
    };
    Ok(Entry {
        log_id: log_id_from_proto(&id),
        payload,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log_id() -> impl Strategy<Value = LogId> {
        any::<(u64, u64)>().prop_map(|(term, index)| super::log_id(term, index))
    }

    fn membership() -> impl Strategy<Value = Membership> {
        let voters = prop::collection::btree_set(1..9u64, 1..4);
        let configs = prop::collection::vec(voters, 1..3);
        let learners = prop::collection::btree_set(10..14u64, 0..3);
        (configs, learners, ".{0,9}", ".{0,9}").prop_map(|(configs, learners, name, addr)| {
            let ids = configs.iter().flatten().chain(&learners).copied();
            let node = MerlinNode { name, addr };
            let nodes: BTreeMap<_, _> = ids.map(|id| (id, node.clone())).collect();
            Membership::new(configs, nodes)
        })
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let payload = prop_oneof![
            Just(EntryPayload::Blank),
            prop::collection::vec(any::<u8>(), 0..64)
                .prop_map(|bytes| EntryPayload::Normal(Proposal(bytes.into()))),
            membership().prop_map(EntryPayload::Membership),
        ];
        (log_id(), payload).prop_map(|(log_id, payload)| Entry { log_id, payload })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn an_entry_survives_its_encoding(entry in entry()) {
            let decoded = decode_entry(encode_entry(&entry).into()).unwrap();
            prop_assert_eq!(decoded, entry);
        }

        #[test]
        fn positions_and_votes_survive_their_encoding(id in log_id(), node: u64, committed: bool) {
            prop_assert_eq!(log_id_from_proto(&log_id_to_proto(&id)), id);
            let vote = ballot(id.leader_id.term, node, committed);
            prop_assert_eq!(vote_from_proto(&vote_to_proto(&vote)), vote);
        }

        #[test]
        fn arbitrary_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode_entry(bytes.into());
        }
    }

    #[test]
    fn an_entry_of_an_unknown_kind_is_refused() {
        let entry = log::Entry {
            id: Some(log::LogId::default()),
            payload: None,
        };
        assert!(entry_from_proto(entry).is_err());
    }
}
