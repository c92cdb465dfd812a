//! Who asked for what, as the replicated log and snapshots carry it. Lossless.

use merlin_model::audit::{Actor, AuditRecord, AuditTrail};
use merlin_model::{Revision, Role, Timestamp};

use crate::command::DecodeError;
use crate::log;

/// An actor as it is logged; nothing for an unknown one.
pub fn actor_to_log(actor: &Actor) -> Option<log::Actor> {
    use log::actor::Actor as Logged;
    let actor = match actor {
        Actor::Unknown => return None,
        Actor::User { uid, name, node } => Logged::User(log::actor::User {
            uid: *uid,
            name: name.to_string(),
            node: *node,
        }),
        Actor::Client { name, role } => Logged::Client(log::actor::Client {
            name: name.to_string(),
            role: log::AccessRole::from(*role).into(),
        }),
        Actor::Plaintext(address) => Logged::Plaintext(address.to_string()),
        Actor::Node(node) => Logged::Node(*node),
    };
    Some(log::Actor { actor: Some(actor) })
}

/// Who it was. What a later version knows of an actor and this one does not makes it unknown: that
/// must not keep a node from doing what was asked.
pub fn actor_from_log(message: Option<&log::Actor>) -> Actor {
    use log::actor::Actor as Logged;
    let known = match message.and_then(|message| message.actor.as_ref()) {
        None => None,
        Some(Logged::User(user)) => Some(Actor::User {
            uid: user.uid,
            name: user.name.as_str().into(),
            node: user.node,
        }),
        Some(Logged::Client(client)) => role(client.role).ok().map(|role| Actor::Client {
            name: client.name.as_str().into(),
            role,
        }),
        Some(Logged::Plaintext(address)) => address.parse().ok().map(Actor::Plaintext),
        Some(Logged::Node(node)) => Some(Actor::Node(*node)),
    };
    known.unwrap_or_default()
}

impl From<Role> for log::AccessRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Viewer => Self::Viewer,
            Role::Operator => Self::Operator,
            Role::Admin => Self::Admin,
        }
    }
}

/// The role with this number.
pub fn role(number: i32) -> Result<Role, DecodeError> {
    match log::AccessRole::try_from(number) {
        Ok(log::AccessRole::Viewer) => Ok(Role::Viewer),
        Ok(log::AccessRole::Operator) => Ok(Role::Operator),
        Ok(log::AccessRole::Admin) => Ok(Role::Admin),
        Ok(log::AccessRole::Unspecified) | Err(_) => Err(DecodeError::Missing("a client's role")),
    }
}

impl From<&AuditTrail> for log::AuditTrail {
    fn from(trail: &AuditTrail) -> Self {
        let oldest_first = trail.records().rev();
        Self {
            records: oldest_first.map(|record| (&**record).into()).collect(),
        }
    }
}

impl From<&log::AuditTrail> for AuditTrail {
    fn from(message: &log::AuditTrail) -> Self {
        Self::restore(message.records.iter().map(AuditRecord::from))
    }
}

impl From<&AuditRecord> for log::AuditRecord {
    fn from(record: &AuditRecord) -> Self {
        Self {
            number: record.number,
            at: record.at.0,
            actor: actor_to_log(&record.by),
            what: record.what.clone(),
            revision: record.revision.0,
        }
    }
}

impl From<&log::AuditRecord> for AuditRecord {
    fn from(message: &log::AuditRecord) -> Self {
        Self {
            number: message.number,
            at: Timestamp(message.at),
            by: actor_from_log(message.actor.as_ref()),
            what: message.what.clone(),
            revision: Revision(message.revision),
        }
    }
}
