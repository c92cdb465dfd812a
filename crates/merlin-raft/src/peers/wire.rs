//! Consensus's messages as the peer protocol writes them.

use bytes::Bytes;
use merlin_proto::peer;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use prost::Message;

use crate::codec::{
    DecodeError, entry_from_proto, entry_to_proto, log_id_from_proto, log_id_to_proto,
    vote_from_proto, vote_to_proto,
};
use crate::typ::{NodeId, TypeConfig, Vote};

pub(crate) type AppendRequest = AppendEntriesRequest<TypeConfig>;
pub(crate) type AppendAnswer = AppendEntriesResponse<NodeId>;

/// A message that crosses the wire inside an envelope.
pub(crate) trait Wire: Sized {
    fn encode(&self) -> Bytes;
    fn decode(bytes: Bytes) -> Result<Self, DecodeError>;
}

/// Messages that are used as they are generated.
macro_rules! plain {
    ($($message:ty),*) => {$(
        impl Wire for $message {
            fn encode(&self) -> Bytes {
                self.encode_to_vec().into()
            }

            fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
                proto(bytes, "peer message")
            }
        }
    )*};
}

plain!(
    peer::HelloRequest,
    peer::Greeting,
    peer::ProposeRequest,
    peer::Decisions,
    peer::ReadPosition,
    peer::SnapshotHeader,
    peer::ChangeRequest,
    peer::ChangeAnswer,
    peer::TakeOverRequest,
    peer::TakeOverAnswer,
    peer::KnockRequest,
    peer::KnockAnswer
);

fn proto<M: Message + Default>(bytes: Bytes, what: &'static str) -> Result<M, DecodeError> {
    M::decode(bytes).map_err(|source| DecodeError::Malformed { what, source })
}

fn missing(what: &'static str) -> DecodeError {
    DecodeError::Missing { what }
}

fn vote(vote: Option<&merlin_proto::log::Vote>) -> Result<Vote, DecodeError> {
    vote.map(vote_from_proto).ok_or(missing("a vote"))
}

/// Nothing, for questions without content.
impl Wire for () {
    fn encode(&self) -> Bytes {
        Bytes::new()
    }

    fn decode(_: Bytes) -> Result<Self, DecodeError> {
        Ok(())
    }
}

/// Already encoded by someone else.
impl Wire for Bytes {
    fn encode(&self) -> Bytes {
        self.clone()
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        Ok(bytes)
    }
}

impl Wire for AppendRequest {
    fn encode(&self) -> Bytes {
        let message = peer::AppendRequest {
            vote: Some(vote_to_proto(&self.vote)),
            previous: self.prev_log_id.as_ref().map(log_id_to_proto),
            entries: self.entries.iter().map(entry_to_proto).collect(),
            committed: self.leader_commit.as_ref().map(log_id_to_proto),
        };
        message.encode_to_vec().into()
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let message: peer::AppendRequest = proto(bytes, "request to append")?;
        let entries = message.entries.into_iter().map(entry_from_proto);
        Ok(Self {
            vote: vote(message.vote.as_ref())?,
            prev_log_id: message.previous.as_ref().map(log_id_from_proto),
            entries: entries.collect::<Result<_, _>>()?,
            leader_commit: message.committed.as_ref().map(log_id_from_proto),
        })
    }
}

impl Wire for AppendAnswer {
    fn encode(&self) -> Bytes {
        use peer::append_answer::{Answer, Conflict, Success};
        let answer = match self {
            Self::Success => Answer::Success(Success {}),
            Self::PartialSuccess(None) => Answer::Success(Success {}),
            Self::PartialSuccess(Some(upto)) => Answer::Partial(log_id_to_proto(upto)),
            Self::Conflict => Answer::Conflict(Conflict {}),
            Self::HigherVote(vote) => Answer::HigherVote(vote_to_proto(vote)),
        };
        let answer = Some(answer);
        peer::AppendAnswer { answer }.encode_to_vec().into()
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        use peer::append_answer::Answer;
        let message: peer::AppendAnswer = proto(bytes, "answer to an append")?;
        Ok(match message.answer.ok_or(missing("an answer"))? {
            Answer::Success(_) => Self::Success,
            Answer::Partial(upto) => Self::PartialSuccess(Some(log_id_from_proto(&upto))),
            Answer::Conflict(_) => Self::Conflict,
            Answer::HigherVote(vote) => Self::HigherVote(vote_from_proto(&vote)),
        })
    }
}

impl Wire for VoteRequest<NodeId> {
    fn encode(&self) -> Bytes {
        let message = peer::VoteRequest {
            vote: Some(vote_to_proto(&self.vote)),
            last: self.last_log_id.as_ref().map(log_id_to_proto),
        };
        message.encode_to_vec().into()
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let message: peer::VoteRequest = proto(bytes, "request for a vote")?;
        Ok(Self {
            vote: vote(message.vote.as_ref())?,
            last_log_id: message.last.as_ref().map(log_id_from_proto),
        })
    }
}

impl Wire for VoteResponse<NodeId> {
    fn encode(&self) -> Bytes {
        let message = peer::VoteAnswer {
            vote: Some(vote_to_proto(&self.vote)),
            granted: self.vote_granted,
            last: self.last_log_id.as_ref().map(log_id_to_proto),
        };
        message.encode_to_vec().into()
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let message: peer::VoteAnswer = proto(bytes, "vote")?;
        Ok(Self {
            vote: vote(message.vote.as_ref())?,
            vote_granted: message.granted,
            last_log_id: message.last.as_ref().map(log_id_from_proto),
        })
    }
}

impl Wire for SnapshotResponse<NodeId> {
    fn encode(&self) -> Bytes {
        vote_to_proto(&self.vote).encode_to_vec().into()
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let message: merlin_proto::log::Vote = proto(bytes, "answer to a snapshot")?;
        Ok(Self::new(vote_from_proto(&message)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::tests::{at, entry};

    fn survives<W: Wire + std::fmt::Debug>(message: &W) {
        let decoded = W::decode(message.encode()).unwrap();
        assert_eq!(format!("{decoded:?}"), format!("{message:?}"));
    }

    #[test]
    fn every_message_survives_its_encoding() {
        let vote = Vote::new_committed(3, 1);
        for (previous, committed) in [(None, None), (Some(at(4)), Some(at(3)))] {
            survives(&AppendRequest {
                vote,
                prev_log_id: previous,
                entries: (5..8).map(entry).collect(),
                leader_commit: committed,
            });
            survives(&VoteRequest::new(vote, previous));
            survives(&VoteResponse::new(vote, committed, previous.is_some()));
        }
        survives(&AppendAnswer::Success);
        survives(&AppendAnswer::PartialSuccess(Some(at(9))));
        survives(&AppendAnswer::Conflict);
        survives(&AppendAnswer::HigherVote(Vote::new(4, 2)));
        survives(&SnapshotResponse::new(vote));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn arbitrary_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let bytes = Bytes::from(bytes);
            let _ = AppendRequest::decode(bytes.clone());
            let _ = AppendAnswer::decode(bytes.clone());
            let _ = VoteRequest::decode(bytes.clone());
            let _ = VoteResponse::<NodeId>::decode(bytes);
        }
    }
}
