//! What a log entry asks for, between its bytes and the model.

use bytes::Bytes;
use merlin_model::Command;
use merlin_proto::log;
use prost::Message;

use crate::cluster::ClusterCommand;
use crate::codec::DecodeError;
use crate::typ::Proposal;

/// The newest format this version writes and reads. It is raised by a change that an older node
/// could not apply faithfully; such a node stops instead.
pub(crate) const FORMAT: u32 = 1;

/// What an entry asks of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Commands(Vec<Command>),
    Cluster(ClusterCommand),
}

impl Proposal {
    /// Commands come encoded, because their size was asked for when they were accepted.
    pub(crate) fn of_commands(commands: Vec<log::Command>) -> Self {
        Self::of(log::proposal::Body::Commands(log::CommandBatch {
            commands,
        }))
    }

    pub(crate) fn of_cluster(command: &ClusterCommand) -> Self {
        Self::of(log::proposal::Body::Cluster(command.into()))
    }

    fn of(body: log::proposal::Body) -> Self {
        let proposal = log::Proposal {
            format: FORMAT,
            body: Some(body),
        };
        Self(proposal.encode_to_vec().into())
    }

    pub(crate) fn decode(&self) -> Result<Request, DecodeError> {
        decode(self.0.clone())
    }
}

fn decode(bytes: Bytes) -> Result<Request, DecodeError> {
    let malformed = |source| DecodeError::Malformed {
        what: "proposal",
        source,
    };
    let proposal = log::Proposal::decode(bytes).map_err(malformed)?;
    if proposal.format > FORMAT {
        return Err(DecodeError::Newer {
            found: proposal.format,
            known: FORMAT,
        });
    }
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
    fn a_proposal_of_a_later_format_is_refused() {
        let body = log::proposal::Body::Commands(log::CommandBatch::default());
        let later = log::Proposal {
            format: FORMAT + 1,
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
