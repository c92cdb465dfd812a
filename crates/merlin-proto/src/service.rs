//! Virtual services between the wire and the model.
//!
//! One message has three readings, and they differ in what an absent field means: in a creation it
//! is required or takes its default, in an update it stays, and in a record it is the default.

use std::num::{NonZeroU16, NonZeroU32};

use merlin_model::catalog::{Revision, VirtualService};
use merlin_model::command::{KeyPatch, Mutation, PersistencePatch, ServicePatch};
use merlin_model::{
    Family, Invalid, Netmask, Persistence, Protocol, Scheduler, SchedulerFlag, SchedulerFlags,
    ServiceConfig, ServiceId, ServiceKey,
};

use crate::fields;
use crate::types;
use crate::types::virtual_service as wire;

/// Reads the request to create a service.
pub fn create(message: &types::VirtualService) -> Result<Mutation, Invalid> {
    let (id, key, config) = declaration(message)?;
    Ok(Mutation::CreateService { id, key, config })
}

/// Reads the request to update a service.
pub fn update(message: &types::VirtualService) -> Result<Mutation, Invalid> {
    let id = fields::service_id("id", &message.id)?;
    let key = message.key.as_ref().map(key_patch).transpose()?;
    let patch = match &message.config {
        Some(config) => config_patch(config)?,
        None => ServicePatch::default(),
    };
    Ok(Mutation::UpdateService {
        id,
        patch: ServicePatch { key, ..patch },
    })
}

/// Reads the request to delete a service.
pub fn delete(id: &str) -> Result<Mutation, Invalid> {
    Ok(Mutation::DeleteService {
        id: fields::service_id("id", id)?,
    })
}

/// Reads a service as stores keep it. It has no servers yet: they are records of their own.
pub fn stored(message: &types::VirtualService) -> Result<VirtualService, Invalid> {
    let (id, key, config) = declaration(message)?;
    Ok(VirtualService {
        id,
        key,
        config,
        created: Revision(message.created_revision),
        changed: Revision(message.changed_revision),
        servers: Default::default(),
    })
}

/// Reads a service's key.
pub fn key(message: &wire::Key) -> Result<ServiceKey, Invalid> {
    if let Some(KeyPatch::Fwmark { mark, family }) = fwmark(message)? {
        let family = family.unwrap_or(Family::Ipv4);
        return Ok(ServiceKey::Fwmark { mark, family });
    }
    Ok(ServiceKey::Address {
        address: fields::required("key.ip", fields::address(&message.ip)?)?,
        port: fields::port(message.port)?,
        protocol: fields::required("key.protocol", protocol(message.protocol)?)?,
    })
}

fn declaration(
    message: &types::VirtualService,
) -> Result<(ServiceId, ServiceKey, ServiceConfig), Invalid> {
    let id = fields::service_id("id", &message.id)?;
    let key = key(fields::required("key", message.key.as_ref())?)?;
    let config = config(fields::required("config", message.config.as_ref())?, &key)?;
    Ok((id, key, config))
}

fn config(message: &wire::Config, key: &ServiceKey) -> Result<ServiceConfig, Invalid> {
    let scheduler: Scheduler = message.scheduler.parse()?;
    let persistence = match &message.persistence {
        Some(persistence) => persistence_patch(persistence)?.merge(None, key.family())?,
        None => None,
    };
    Ok(ServiceConfig {
        scheduler,
        flags: SchedulerFlags::resolve(scheduler, &flags(&message.flags)?)?,
        persistence,
        one_packet: message.one_packet.unwrap_or_default(),
    })
}

fn config_patch(message: &wire::Config) -> Result<ServicePatch, Invalid> {
    let scheduler = match message.scheduler.as_str() {
        "" => None,
        name => Some(name.parse()?),
    };
    let replaces_flags = message.replace_flags || !message.flags.is_empty();
    let flags = replaces_flags.then(|| flags(&message.flags)).transpose()?;
    let persistence = message.persistence.as_ref().map(persistence_patch);
    Ok(ServicePatch {
        key: None,
        scheduler,
        flags,
        persistence: persistence.transpose()?,
        one_packet: message.one_packet,
    })
}

fn key_patch(message: &wire::Key) -> Result<KeyPatch, Invalid> {
    if let Some(patch) = fwmark(message)? {
        return Ok(patch);
    }
    Ok(KeyPatch::Address {
        address: fields::address(&message.ip)?,
        port: NonZeroU16::new(fields::port(message.port)?),
        protocol: protocol(message.protocol)?,
    })
}

/// The firewall mark of a key that has one, refusing keys of two kinds.
fn fwmark(message: &wire::Key) -> Result<Option<KeyPatch>, Invalid> {
    let family = family(message.family)?;
    let Some(mark) = NonZeroU32::new(message.fwmark) else {
        return match family {
            Some(_) => Err(Invalid::new("key.family", "only goes with a firewall mark")),
            None => Ok(None),
        };
    };
    if !message.ip.is_empty() || message.port != 0 || message.protocol != 0 {
        return Err(Invalid::new(
            "key.fwmark",
            "takes the place of ip, port and protocol",
        ));
    }
    Ok(Some(KeyPatch::Fwmark { mark, family }))
}

fn family(value: i32) -> Result<Option<Family>, Invalid> {
    match types::AddressFamily::try_from(value) {
        Ok(types::AddressFamily::UnsetAddressFamily) => Ok(None),
        Ok(types::AddressFamily::Ipv4) => Ok(Some(Family::Ipv4)),
        Ok(types::AddressFamily::Ipv6) => Ok(Some(Family::Ipv6)),
        Err(_) => Err(Invalid::new(
            "key.family",
            format!("unknown address family {value}: one of IPV4, IPV6"),
        )),
    }
}

fn protocol(value: i32) -> Result<Option<Protocol>, Invalid> {
    match types::Protocol::try_from(value) {
        Ok(types::Protocol::UnsetProtocol) => Ok(None),
        Ok(types::Protocol::Tcp) => Ok(Some(Protocol::Tcp)),
        Ok(types::Protocol::Udp) => Ok(Some(Protocol::Udp)),
        Ok(types::Protocol::Sctp) => Ok(Some(Protocol::Sctp)),
        Err(_) => Err(Invalid::new(
            "key.protocol",
            format!("unknown protocol {value}: one of TCP, UDP, SCTP"),
        )),
    }
}

fn flags(names: &[String]) -> Result<Vec<SchedulerFlag>, Invalid> {
    names.iter().map(|name| name.parse()).collect()
}

fn persistence_patch(message: &wire::Persistence) -> Result<PersistencePatch, Invalid> {
    let engine = match message.engine.as_deref() {
        None => None,
        Some("") => Some(None),
        Some(name) => Some(Some(name.parse()?)),
    };
    Ok(PersistencePatch {
        timeout: message.timeout_seconds,
        netmask: message.netmask.map(Netmask::from_prefix).transpose()?,
        engine,
    })
}

// === to the wire ===

impl From<&VirtualService> for types::VirtualService {
    fn from(service: &VirtualService) -> Self {
        Self {
            created_revision: service.created.0,
            changed_revision: service.changed.0,
            ..declared(&service.id, &service.key, &service.config)
        }
    }
}

impl From<&ServiceKey> for wire::Key {
    fn from(key: &ServiceKey) -> Self {
        match *key {
            ServiceKey::Address {
                address,
                port,
                protocol,
            } => Self {
                ip: address.to_string(),
                port: port.into(),
                protocol: wire_protocol(protocol).into(),
                ..Self::default()
            },
            ServiceKey::Fwmark { mark, family } => Self {
                fwmark: mark.get(),
                family: wire_family(family).into(),
                ..Self::default()
            },
        }
    }
}

impl From<&ServiceConfig> for wire::Config {
    fn from(config: &ServiceConfig) -> Self {
        Self {
            scheduler: config.scheduler.name().to_owned(),
            flags: flag_names(config.flags.iter()),
            replace_flags: false,
            persistence: config.persistence.as_ref().map(wire_persistence),
            // Off is absent, so that a plain record is the one the earlier system wrote.
            one_packet: config.one_packet.then_some(true),
        }
    }
}

/// A service as a creation or a record declares it.
pub(crate) fn declared(
    id: &ServiceId,
    key: &ServiceKey,
    config: &ServiceConfig,
) -> types::VirtualService {
    types::VirtualService {
        id: id.to_string(),
        key: Some(key.into()),
        config: Some(config.into()),
        ..Default::default()
    }
}

/// A service of which only the identity is told.
pub(crate) fn identified(id: &ServiceId, key: &ServiceKey) -> types::VirtualService {
    types::VirtualService {
        id: id.to_string(),
        key: Some(key.into()),
        ..Default::default()
    }
}

/// The message that [`update`] reads as this patch.
pub(crate) fn patched(id: &ServiceId, patch: &ServicePatch) -> types::VirtualService {
    let flags = patch.flags.iter().flatten().copied();
    types::VirtualService {
        id: id.to_string(),
        key: patch.key.as_ref().map(wire_key_patch),
        config: Some(wire::Config {
            scheduler: patch
                .scheduler
                .map(|scheduler| scheduler.name().to_owned())
                .unwrap_or_default(),
            flags: flag_names(flags),
            replace_flags: patch.flags.is_some(),
            persistence: patch.persistence.as_ref().map(wire_persistence_patch),
            one_packet: patch.one_packet,
        }),
        ..Default::default()
    }
}

fn wire_key_patch(patch: &KeyPatch) -> wire::Key {
    match *patch {
        KeyPatch::Address {
            address,
            port,
            protocol,
        } => wire::Key {
            ip: address.map(|ip| ip.to_string()).unwrap_or_default(),
            port: port.map_or(0, |port| port.get().into()),
            protocol: protocol.map_or(0, |protocol| wire_protocol(protocol).into()),
            ..Default::default()
        },
        KeyPatch::Fwmark { mark, family } => wire::Key {
            fwmark: mark.get(),
            family: family.map_or(0, |family| wire_family(family).into()),
            ..Default::default()
        },
    }
}

fn wire_persistence(persistence: &Persistence) -> wire::Persistence {
    wire::Persistence {
        timeout_seconds: Some(persistence.timeout.get()),
        netmask: Some(persistence.netmask.prefix().into()),
        engine: persistence.engine.map(|engine| engine.name().to_owned()),
    }
}

fn wire_persistence_patch(patch: &PersistencePatch) -> wire::Persistence {
    wire::Persistence {
        timeout_seconds: patch.timeout,
        netmask: patch.netmask.map(|netmask| netmask.prefix().into()),
        engine: patch
            .engine
            .map(|engine| engine.map_or("", |engine| engine.name()).to_owned()),
    }
}

fn wire_protocol(protocol: Protocol) -> types::Protocol {
    match protocol {
        Protocol::Tcp => types::Protocol::Tcp,
        Protocol::Udp => types::Protocol::Udp,
        Protocol::Sctp => types::Protocol::Sctp,
    }
}

fn wire_family(family: Family) -> types::AddressFamily {
    match family {
        Family::Ipv4 => types::AddressFamily::Ipv4,
        Family::Ipv6 => types::AddressFamily::Ipv6,
    }
}

fn flag_names(flags: impl Iterator<Item = SchedulerFlag>) -> Vec<String> {
    flags.map(|flag| flag.name().to_owned()).collect()
}
