//! Records: the bytes of one virtual service or real server, as the earlier system writes them.
//!
//! * Reading is generous: an old node wrote what it liked, and a flag or a health check that makes
//!   no sense here is no reason to take a service out of the kernel. What was passed over is told.
//! * Writing is strict: every record is one that nodes of the earlier system read, byte for byte
//!   theirs unless something new is used, which goes in fields they skip.
//! * Fields that this version does not know are kept on a rewrite: see [`merge_unknown`].
//!
//! Revisions are the store's own and not in the bytes.

mod unknown;

use std::net::IpAddr;

use merlin_model::catalog::{RealServer, VirtualService};
use merlin_model::{
    Invalid, RealServerKey, Revision, Scheduler, SchedulerFlag, SchedulerFlags, ServiceId,
};
use merlin_proto::{server, service, types};
use prost::Message;

pub use unknown::merge_unknown;

/// What a record says, and what in it had to be passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading<T> {
    pub object: T,
    pub passed_over: Option<String>,
}

/// Why a record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("the value is not a record")]
    Garbage(#[source] prost::DecodeError),
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("the value belongs to {0}")]
    Misplaced(String),
}

/// Reads the record kept for the service. It has no servers yet, and no revisions.
pub fn read_service(id: &ServiceId, value: &[u8]) -> Result<Reading<VirtualService>, Unreadable> {
    let mut message = types::VirtualService::decode(value).map_err(Unreadable::Garbage)?;
    if message.id.is_empty() {
        message.id = id.to_string();
    }
    if message.id != id.as_str() {
        return Err(Unreadable::Misplaced(format!("service {:?}", message.id)));
    }
    (message.created_revision, message.changed_revision) = (0, 0);
    let passed_over = message.config.as_mut().and_then(drop_foreign_flags);
    Ok(Reading {
        object: service::stored(&message)?,
        passed_over,
    })
}

/// The earlier system stored any flag and dropped those it did not know when it programmed them.
fn drop_foreign_flags(config: &mut types::virtual_service::Config) -> Option<String> {
    let scheduler: Scheduler = config.scheduler.parse().ok()?;
    let belongs = |name: &String| {
        let flag = name.parse::<SchedulerFlag>();
        flag.is_ok_and(|flag| SchedulerFlags::resolve(scheduler, &[flag]).is_ok())
    };
    let foreign: Vec<_> = config.flags.extract_if(.., |name| !belongs(name)).collect();
    (!foreign.is_empty()).then(|| {
        let foreign = foreign.join(", ");
        format!("scheduler {scheduler} has no flag {foreign}: ignored")
    })
}

/// Reads the record kept for a server of the service under the name. It has no revisions.
pub fn read_server(
    service: &ServiceId,
    name: &str,
    value: &[u8],
) -> Result<Reading<RealServer>, Unreadable> {
    let mut message = types::RealServer::decode(value).map_err(Unreadable::Garbage)?;
    if message.service_id.is_empty() {
        message.service_id = service.to_string();
    }
    if message.service_id != service.as_str() {
        let owner = format!("service {:?}", message.service_id);
        return Err(Unreadable::Misplaced(owner));
    }
    (message.created_revision, message.changed_revision) = (0, 0);
    let mut passed_over = None;
    let (_, server) = match server::stored(&message) {
        Err(invalid) if invalid.field.starts_with("health_check") => {
            passed_over = Some(format!("no health is checked: {invalid}"));
            message.health_check = None;
            server::stored(&message)
        }
        stored => stored,
    }?;
    if !spells(name, &server.key) {
        return Err(Unreadable::Misplaced(format!("real server {}", server.key)));
    }
    if passed_over.is_none()
        && let Err(invalid) = server.check.check()
    {
        passed_over = Some(format!("no health is checked: {invalid}"));
    }
    Ok(Reading {
        object: server,
        passed_over,
    })
}

/// Whether the last segment of a server's key names it. The earlier system put the address there
/// as it was given, without brackets.
fn spells(name: &str, key: &RealServerKey) -> bool {
    let as_given = || {
        let (address, port) = name.rsplit_once(':')?;
        let address: IpAddr = address.parse().ok()?;
        let port: u16 = port.parse().ok()?;
        Some(RealServerKey::new(address.to_canonical(), port))
    };
    name == key.to_string() || as_given() == Some(*key)
}

/// The record of a service, in place of an earlier one.
pub fn write_service(service: &VirtualService, before: Option<&[u8]>) -> Vec<u8> {
    let mut message = types::VirtualService::from(service);
    (message.created_revision, message.changed_revision) = (0, 0);
    merge_unknown(&message, before)
}

/// The record of a server, in place of an earlier one.
pub fn write_server(service: &ServiceId, server: &RealServer, before: Option<&[u8]>) -> Vec<u8> {
    let server = RealServer {
        created: Revision::ZERO,
        changed: Revision::ZERO,
        ..server.clone()
    };
    merge_unknown(&server::record(service, &server), before)
}

#[cfg(test)]
mod tests;
