//! Commands as the replicated log carries them. Lossless: what a node logged, every node applies.
//!
//! A logged mutation is the API's message for it, so the rules of [`service`] and
//! [`server`] read both. Whoever tightens those rules must still accept here what
//! older versions have logged.

use merlin_model::Invalid;
use merlin_model::catalog::{RestoreError, Revision};
use merlin_model::command::{Command, Mutation, RequestId, Timestamp};

use crate::server::{self, UpdateServerError};
use crate::service;
use crate::{access, log};

/// A log entry or a snapshot is not one that any version wrote.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{what} is invalid")]
    Invalid {
        what: &'static str,
        #[source]
        source: Invalid,
    },
    #[error("a real server of service {0} is listed under another service")]
    Orphan(String),
    #[error("the snapshot contradicts itself")]
    Contradiction(#[from] RestoreError),
}

impl DecodeError {
    /// For `map_err`: adds what was being read.
    pub(crate) fn reading(what: &'static str) -> impl Fn(Invalid) -> Self {
        move |source| Self::Invalid { what, source }
    }
}

impl From<&Command> for log::Command {
    fn from(command: &Command) -> Self {
        let request_id = command.request_id.as_ref();
        Self {
            at: command.at.0,
            request_id: request_id.map_or_else(String::new, |id| id.as_str().to_owned()),
            expected_revision: command.expected_revision.map(|revision| revision.0),
            mutation: Some((&command.mutation).into()),
            actor: access::actor_to_log(&command.by),
        }
    }
}

impl TryFrom<&log::Command> for Command {
    type Error = DecodeError;

    fn try_from(message: &log::Command) -> Result<Self, DecodeError> {
        let request_id = match message.request_id.as_str() {
            "" => None,
            id => Some(RequestId::new(id).map_err(DecodeError::reading("the request id"))?),
        };
        let mutation = message.mutation.as_ref();
        Ok(Self {
            at: Timestamp(message.at),
            by: access::actor_from_log(message.actor.as_ref()),
            request_id,
            expected_revision: message.expected_revision.map(Revision),
            mutation: mutation
                .ok_or(DecodeError::Missing("the mutation"))?
                .try_into()?,
        })
    }
}

impl From<&Mutation> for log::command::Mutation {
    fn from(mutation: &Mutation) -> Self {
        match mutation {
            Mutation::CreateService { id, key, config } => {
                Self::CreateService(service::declared(id, key, config))
            }
            Mutation::UpdateService { id, patch } => {
                Self::UpdateService(service::patched(id, patch))
            }
            Mutation::DeleteService { id } => Self::DeleteService(id.to_string()),
            Mutation::CreateServer {
                service,
                key,
                config,
                check,
            } => Self::CreateServer(server::declared(service, key, config, check)),
            Mutation::UpdateServer {
                service,
                key,
                patch,
            } => Self::UpdateServer(server::patched(service, key, patch)),
            Mutation::DeleteServer { service, key } => {
                Self::DeleteServer(server::identified(service, key))
            }
        }
    }
}

impl TryFrom<&log::command::Mutation> for Mutation {
    type Error = DecodeError;

    fn try_from(message: &log::command::Mutation) -> Result<Self, DecodeError> {
        use log::command::Mutation as Logged;

        let mutation = match message {
            Logged::CreateService(message) => service::create(message),
            Logged::UpdateService(message) => service::update(message),
            Logged::DeleteService(id) => service::delete(id),
            Logged::CreateServer(message) => server::create(message),
            Logged::UpdateServer(message) => match server::update(message) {
                Ok(mutation) => Ok(mutation),
                Err(UpdateServerError::Invalid(invalid)) => Err(invalid),
                Err(UpdateServerError::Unnamed(_)) => {
                    return Err(DecodeError::Missing("the real server's key"));
                }
            },
            Logged::DeleteServer(message) => server::delete(message),
        };
        mutation.map_err(DecodeError::reading("the mutation"))
    }
}
