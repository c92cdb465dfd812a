//! What a log entry asks for, between its bytes and the model.

use bytes::Bytes;
use merlin_model::Command;
use merlin_proto::log;
use prost::Message;

use crate::cluster::ClusterCommand;
use crate::codec::DecodeError;
use crate::level::Level;
use crate::typ::Proposal;

/// What an entry asks of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Commands(Vec<Command>),
    Cluster(ClusterCommand),
}

impl Proposal {
    /// Commands come encoded, because their size was asked for when they were accepted.
    pub(crate) fn of_commands(commands: Vec<log::Command>) -> Self {
        let body = log::proposal::Body::Commands(log::CommandBatch { commands });
        Self::of(Level::FIRST, body)
    }

    pub(crate) fn of_cluster(command: &ClusterCommand) -> Self {
        let body = log::proposal::Body::Cluster(command.into());
        Self::of(command.change.level(), body)
    }

    fn of(level: Level, body: log::proposal::Body) -> Self {
        let proposal = log::Proposal {
            format: level.number(),
            body: Some(body),
        };
        Self(proposal.encode_to_vec().into())
    }

    /// What a node has to know to apply it. Not much of it is read for that.
    pub(crate) fn level(&self) -> Result<Level, DecodeError> {
        /// The first field of a [`log::Proposal`].
        #[derive(Clone, PartialEq, Message)]
        struct Beginning {
            #[prost(uint32, tag = "1")]
            format: u32,
        }
        let beginning = Beginning::decode(self.0.clone()).map_err(malformed)?;
        Ok(Level::of_message(beginning.format))
    }

    pub(crate) fn decode(&self) -> Result<Request, DecodeError> {
        decode(self.0.clone())
    }
}

fn malformed(source: prost::DecodeError) -> DecodeError {
    DecodeError::Malformed {
        what: "proposal",
        source,
    }
}

/// Refuses what needs more than is known: a node that went on without it would not be like the
/// others.
pub(crate) fn check(found: Level, known: Level) -> Result<(), DecodeError> {
    if found <= known {
        Ok(())
    } else {
        Err(DecodeError::Newer { found, known })
    }
}

fn decode(bytes: Bytes) -> Result<Request, DecodeError> {
    let proposal = log::Proposal::decode(bytes).map_err(malformed)?;
    check(Level::of_message(proposal.format), Level::LATEST)?;
    let missing = DecodeError::Missing {
        what: "the body of a proposal",
    };
    Ok(match proposal.body.ok_or(missing)? {
        log::proposal::Body::Commands(batch) => {
            let commands = batch.commands.iter().map(Command::try_from);
            Request::Commands(commands.collect::<Result<_, _>>()?)
        }
        log::proposal::Body::Cluster(command) => Request::Cluster(command.try_into()?),
    })
}

#[cfg(test)]
mod tests {
    use merlin_model::{Mutation, RequestId, Revision, ServiceId, Timestamp};

    use super::*;

    fn delete(id: &str) -> Command {
        let id = ServiceId::new(id).unwrap();
        Command {
            request_id: Some(RequestId::new("r-1").unwrap()),
            expected_revision: Some(Revision(7)),
            ..Command::new(Timestamp(5), Mutation::DeleteService { id })
        }
    }

    #[test]
    fn a_batch_survives_its_encoding() {
        let commands = vec![delete("a"), delete("b")];
        let encoded = commands.iter().map(Into::into).collect();
        let proposal = Proposal::of_commands(encoded);
        assert_eq!(proposal.decode().unwrap(), Request::Commands(commands));
    }

    #[test]
    fn a_proposal_of_a_later_level_is_refused() {
        let body = log::proposal::Body::Commands(log::CommandBatch::default());
        let later = log::Proposal {
            format: Level::LATEST.number() + 1,
            body: Some(body),
        };
        let error = Proposal(later.encode_to_vec().into()).decode().unwrap_err();
        assert!(matches!(error, DecodeError::Newer { .. }), "{error}");
    }

    #[test]
    fn a_command_of_an_unknown_kind_is_refused() {
        let unknown = log::Command {
            mutation: None,
            ..(&delete("a")).into()
        };
        let proposal = Proposal::of_commands(vec![unknown]);
        assert!(matches!(proposal.decode(), Err(DecodeError::Model(_))));
        assert!(Proposal(Bytes::new()).decode().is_err());
    }
}
