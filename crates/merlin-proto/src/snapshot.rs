//! The whole catalog as snapshots carry it, with the answers it remembers. Lossless.

use std::sync::Arc;

use merlin_model::Invalid;
use merlin_model::catalog::{Answer, Catalog, Remembered, Revision, VirtualService};
use merlin_model::command::{Rejection, Reply, RequestId, Timestamp};

use crate::command::DecodeError;
use crate::log;
use crate::types::list_response::Item;
use crate::{fields, server, service};

impl From<&Catalog> for log::Catalog {
    fn from(catalog: &Catalog) -> Self {
        Self {
            revision: catalog.revision().0,
            items: catalog
                .services()
                .map(|service| (&**service).into())
                .collect(),
            requests: catalog
                .remembered()
                .map(|answer| (&answer).into())
                .collect(),
        }
    }
}

impl TryFrom<&log::Catalog> for Catalog {
    type Error = DecodeError;

    fn try_from(message: &log::Catalog) -> Result<Self, DecodeError> {
        let services: Result<Vec<_>, _> = message.items.iter().map(stored_item).collect();
        let remembered: Result<Vec<_>, _> =
            message.requests.iter().map(Remembered::try_from).collect();
        Ok(Self::restore(
            Revision(message.revision),
            services?,
            remembered?,
        )?)
    }
}

fn stored_item(item: &Item) -> Result<VirtualService, DecodeError> {
    let message = item.service.as_ref();
    let message = message.ok_or(DecodeError::Missing("the service of an item"))?;
    let mut holder = service::stored(message).map_err(DecodeError::reading("a service"))?;
    for message in &item.servers {
        let (service, server) =
            server::stored(message).map_err(DecodeError::reading("a real server"))?;
        if service != holder.id {
            return Err(DecodeError::Orphan(service.to_string()));
        }
        holder.servers.insert(server.key, Arc::new(server));
    }
    Ok(holder)
}

impl From<&Remembered> for log::Remembered {
    fn from(remembered: &Remembered) -> Self {
        Self {
            at: remembered.at.0,
            request_id: remembered.id.as_str().to_owned(),
            answer: Some((&remembered.answer).into()),
        }
    }
}

impl TryFrom<&log::Remembered> for Remembered {
    type Error = DecodeError;

    fn try_from(message: &log::Remembered) -> Result<Self, DecodeError> {
        let id = RequestId::new(&message.request_id);
        let answer = message.answer.as_ref();
        Ok(Self {
            at: Timestamp(message.at),
            id: id.map_err(DecodeError::reading("a request id"))?,
            answer: answer
                .ok_or(DecodeError::Missing("a remembered answer"))?
                .try_into()?,
        })
    }
}

impl From<&Answer> for log::Answer {
    fn from(answer: &Answer) -> Self {
        use log::answer::Answer as Logged;

        let answer = match answer {
            Ok(reply) => Logged::Reply(reply.into()),
            Err(rejection) => Logged::Rejection(rejection.into()),
        };
        Self {
            answer: Some(answer),
        }
    }
}

impl TryFrom<&log::Answer> for Answer {
    type Error = DecodeError;

    fn try_from(message: &log::Answer) -> Result<Self, DecodeError> {
        use log::answer::Answer as Logged;

        match &message.answer {
            Some(Logged::Reply(reply)) => Ok(Ok(reply.into())),
            Some(Logged::Rejection(rejection)) => Ok(Err(rejection.try_into()?)),
            None => Err(DecodeError::Missing("an answer's kind")),
        }
    }
}

impl From<&Reply> for log::Reply {
    fn from(reply: &Reply) -> Self {
        Self {
            revision: reply.revision.0,
            changed: reply.changed,
        }
    }
}

impl From<&log::Reply> for Reply {
    fn from(message: &log::Reply) -> Self {
        Self {
            revision: Revision(message.revision),
            changed: message.changed,
        }
    }
}

impl From<&Rejection> for log::Rejection {
    fn from(rejection: &Rejection) -> Self {
        use log::rejection::Reason;

        let reason = match rejection {
            Rejection::Invalid(invalid) => Reason::Invalid(log::Invalid {
                field: invalid.field.clone(),
                reason: invalid.reason.clone(),
            }),
            Rejection::ServiceExists(id) => Reason::ServiceExists(id.to_string()),
            Rejection::KeyTaken { key, holder } => Reason::KeyTaken(log::KeyTaken {
                key: Some(key.into()),
                holder: holder.to_string(),
            }),
            Rejection::ServerExists { service, key } => {
                Reason::ServerExists(server::identified(service, key))
            }
            Rejection::ServiceNotFound(id) => Reason::ServiceNotFound(id.to_string()),
            Rejection::ServerNotFound { service, key } => {
                Reason::ServerNotFound(server::identified(service, key))
            }
            Rejection::Conflict { expected, actual } => Reason::Conflict(log::Conflict {
                expected: expected.0,
                actual: actual.map(|revision| revision.0),
            }),
        };
        Self {
            reason: Some(reason),
        }
    }
}

impl TryFrom<&log::Rejection> for Rejection {
    type Error = DecodeError;

    fn try_from(message: &log::Rejection) -> Result<Self, DecodeError> {
        let reason = message.reason.as_ref();
        let reason = reason.ok_or(DecodeError::Missing("a rejection's reason"))?;
        rejection(reason).map_err(DecodeError::reading("a rejection"))
    }
}

fn rejection(reason: &log::rejection::Reason) -> Result<Rejection, Invalid> {
    use log::rejection::Reason;

    let id = |text: &str| fields::service_id("id", text);
    Ok(match reason {
        Reason::Invalid(invalid) => {
            Rejection::Invalid(Invalid::new(&invalid.field, &invalid.reason))
        }
        Reason::ServiceExists(service) => Rejection::ServiceExists(id(service)?),
        Reason::KeyTaken(taken) => Rejection::KeyTaken {
            key: service::key(fields::required("key", taken.key.as_ref())?)?,
            holder: id(&taken.holder)?,
        },
        Reason::ServerExists(message) => {
            let (service, key) = server::identity(message)?;
            Rejection::ServerExists { service, key }
        }
        Reason::ServiceNotFound(service) => Rejection::ServiceNotFound(id(service)?),
        Reason::ServerNotFound(message) => {
            let (service, key) = server::identity(message)?;
            Rejection::ServerNotFound { service, key }
        }
        Reason::Conflict(conflict) => Rejection::Conflict {
            expected: Revision(conflict.expected),
            actual: conflict.actual.map(Revision),
        },
    })
}
