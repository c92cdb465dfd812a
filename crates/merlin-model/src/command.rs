//! What can be asked of a catalog, and what it answers.

use std::fmt;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use crate::audit::Actor;
use crate::catalog::Revision;
use crate::server::{
    Forwarding, HealthCheck, HttpEndpoint, RealServerConfig, RealServerKey, Thresholds, Tunnel,
    Weight,
};
use crate::service::{
    Family, Invalid, Netmask, Persistence, PersistenceEngine, Protocol, Scheduler, SchedulerFlag,
    SchedulerFlags, ServiceConfig, ServiceId, ServiceKey,
};

/// Milliseconds since the Unix epoch, stamped by whoever accepted the command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

/// A name a client gives one mutation, so that a retry is recognised.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Longest accepted id in bytes; a UUID is 36.
    pub const MAX_LEN: usize = 64;

    pub fn new(id: &str) -> Result<Self, Invalid> {
        if (1..=Self::MAX_LEN).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(id.into()))
        } else {
            Err(Invalid::new(
                "merlin-request-id",
                "must be 1 to 64 printable ASCII characters, such as a UUID",
            ))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One mutation with the conditions under which it applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub at: Timestamp,
    /// Who asked for it.
    pub by: Actor,
    /// A command whose id was seen before is answered as it was then and changes nothing.
    pub request_id: Option<RequestId>,
    /// Revision the addressed object must have last changed at; 0 for one that must not exist.
    pub expected_revision: Option<Revision>,
    pub mutation: Mutation,
}

impl Command {
    pub fn new(at: Timestamp, mutation: Mutation) -> Self {
        Self {
            at,
            by: Actor::Unknown,
            request_id: None,
            expected_revision: None,
            mutation,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mutation {
    CreateService {
        id: ServiceId,
        key: ServiceKey,
        config: ServiceConfig,
    },
    UpdateService {
        id: ServiceId,
        patch: ServicePatch,
    },
    /// Deletes the service and all its real servers. Deleting what is not there changes nothing.
    DeleteService {
        id: ServiceId,
    },
    CreateServer {
        service: ServiceId,
        key: RealServerKey,
        config: RealServerConfig,
        check: HealthCheck,
    },
    UpdateServer {
        service: ServiceId,
        key: RealServerKey,
        patch: ServerPatch,
    },
    DeleteServer {
        service: ServiceId,
        key: RealServerKey,
    },
}

/// An accepted command's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Revision of the catalog that holds the command's effect.
    pub revision: Revision,
    /// False for the deletion of something that was not there.
    pub changed: bool,
}

/// A refused command's answer. The catalog is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("service {0} already exists")]
    ServiceExists(ServiceId),
    #[error("{key} already belongs to service {holder}")]
    KeyTaken { key: ServiceKey, holder: ServiceId },
    #[error("real server {key} of service {service} already exists")]
    ServerExists {
        service: ServiceId,
        key: RealServerKey,
    },
    #[error("service {0} does not exist")]
    ServiceNotFound(ServiceId),
    #[error("service {service} has no real server {key}")]
    ServerNotFound {
        service: ServiceId,
        key: RealServerKey,
    },
    #[error("expected revision {expected}, but the object {}", Found(*.actual))]
    Conflict {
        expected: Revision,
        actual: Option<Revision>,
    },
}

struct Found(Option<Revision>);

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(revision) => write!(f, "last changed at revision {revision}"),
            None => f.write_str("does not exist"),
        }
    }
}

/// The fields of a virtual service that an update names; the others stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePatch {
    pub key: Option<KeyPatch>,
    pub scheduler: Option<Scheduler>,
    /// Replaces all flags; empty clears them.
    pub flags: Option<Vec<SchedulerFlag>>,
    pub persistence: Option<PersistencePatch>,
    pub one_packet: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPatch {
    Address {
        address: Option<IpAddr>,
        /// Not 0: on the wire that is an absent port, so a patch cannot ask for it.
        port: Option<NonZeroU16>,
        protocol: Option<Protocol>,
    },
    Fwmark {
        mark: NonZeroU32,
        family: Option<Family>,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PersistencePatch {
    /// Seconds; 0 switches persistence off.
    pub timeout: Option<u32>,
    pub netmask: Option<Netmask>,
    /// `Some(None)` takes the engine away.
    pub engine: Option<Option<PersistenceEngine>>,
}

/// The fields of a real server that an update names; the others stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerPatch {
    pub weight: Option<Weight>,
    pub forwarding: Option<ForwardingPatch>,
    pub upper_threshold: Option<u32>,
    pub lower_threshold: Option<u32>,
    pub check: CheckPatch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardingPatch {
    Route,
    Masq,
    /// Without an encapsulation the present one stays, or IPIP where there was no tunnel.
    Tunnel(Option<Tunnel>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckPatch {
    /// `Some(None)` switches the check off.
    pub endpoint: Option<Option<HttpEndpoint>>,
    pub period: Option<Duration>,
    pub timeout: Option<Duration>,
    pub up_threshold: Option<NonZeroU32>,
    pub down_threshold: Option<NonZeroU32>,
}

// === impl patches ===

impl ServicePatch {
    /// The key and configuration that result, before the checks across fields.
    pub(crate) fn merge(
        &self,
        key: &ServiceKey,
        config: &ServiceConfig,
    ) -> Result<(ServiceKey, ServiceConfig), Invalid> {
        let family = key.family();
        let key = match &self.key {
            Some(patch) => patch.merge(key)?,
            None => *key,
        };
        let scheduler = self.scheduler.unwrap_or(config.scheduler);
        let flags = match &self.flags {
            Some(flags) => SchedulerFlags::resolve(scheduler, flags)?,
            None => config.flags,
        };
        let persistence = config
            .persistence
            .map(|persistence| persistence.moved(family, key.family()));
        let persistence = match &self.persistence {
            Some(patch) => patch.merge(persistence, key.family())?,
            None => persistence,
        };
        let one_packet = self.one_packet.unwrap_or(config.one_packet);
        Ok((
            key,
            ServiceConfig {
                scheduler,
                flags,
                persistence,
                one_packet,
            },
        ))
    }
}

impl KeyPatch {
    fn merge(&self, current: &ServiceKey) -> Result<ServiceKey, Invalid> {
        let missing = |field: &str| Invalid::new(field, "is required to change the kind of key");
        match (*self, *current) {
            (
                Self::Address {
                    address,
                    port,
                    protocol,
                },
                ServiceKey::Address {
                    address: a,
                    port: p,
                    protocol: t,
                },
            ) => Ok(ServiceKey::Address {
                address: address.unwrap_or(a),
                port: port.map_or(p, NonZeroU16::get),
                protocol: protocol.unwrap_or(t),
            }),
            (
                Self::Address {
                    address,
                    port,
                    protocol,
                },
                ServiceKey::Fwmark { .. },
            ) => Ok(ServiceKey::Address {
                address: address.ok_or_else(|| missing("key.ip"))?,
                port: port.map_or(0, NonZeroU16::get),
                protocol: protocol.ok_or_else(|| missing("key.protocol"))?,
            }),
            (Self::Fwmark { mark, family }, current) => Ok(ServiceKey::Fwmark {
                mark,
                family: family.unwrap_or(current.family()),
            }),
        }
    }
}

impl PersistencePatch {
    /// Merges into `current`; `None` stands for persistence that is off.
    pub fn merge(
        &self,
        current: Option<Persistence>,
        family: Family,
    ) -> Result<Option<Persistence>, Invalid> {
        let timeout = match self.timeout {
            Some(0) => return Ok(None),
            Some(seconds) if seconds > Persistence::MAX_TIMEOUT => {
                return Err(Invalid::new(
                    "config.persistence.timeout_seconds",
                    format!(
                        "{seconds} is out of range: 0 (off) to {}",
                        Persistence::MAX_TIMEOUT
                    ),
                ));
            }
            Some(seconds) => NonZeroU32::new(seconds),
            None => current.map(|current| current.timeout),
        };
        let timeout = timeout.ok_or_else(|| {
            Invalid::new(
                "config.persistence.timeout_seconds",
                "is required to switch persistence on",
            )
        })?;
        let kept = current.map(|current| (current.netmask, current.engine));
        let (netmask, engine) = kept.unwrap_or((Netmask::host(family), None));
        Ok(Some(Persistence {
            timeout,
            netmask: self.netmask.unwrap_or(netmask),
            engine: self.engine.unwrap_or(engine),
        }))
    }
}

impl ServerPatch {
    pub(crate) fn merge(
        &self,
        config: &RealServerConfig,
        check: &HealthCheck,
    ) -> Result<(RealServerConfig, HealthCheck), Invalid> {
        let config = RealServerConfig {
            weight: self.weight.unwrap_or(config.weight),
            forwarding: match self.forwarding {
                Some(patch) => patch.merge(config.forwarding),
                None => config.forwarding,
            },
            thresholds: Thresholds::new(
                self.upper_threshold.unwrap_or(config.thresholds.upper()),
                self.lower_threshold.unwrap_or(config.thresholds.lower()),
            )?,
        };
        Ok((config, self.check.merge(check)))
    }
}

impl ForwardingPatch {
    fn merge(self, current: Forwarding) -> Forwarding {
        match (self, current) {
            (Self::Route, _) => Forwarding::Route,
            (Self::Masq, _) => Forwarding::Masq,
            (Self::Tunnel(Some(tunnel)), _) => Forwarding::Tunnel(tunnel),
            (Self::Tunnel(None), Forwarding::Tunnel(tunnel)) => Forwarding::Tunnel(tunnel),
            (Self::Tunnel(None), _) => Forwarding::Tunnel(Tunnel::default()),
        }
    }
}

impl CheckPatch {
    fn merge(&self, current: &HealthCheck) -> HealthCheck {
        HealthCheck {
            endpoint: self
                .endpoint
                .clone()
                .unwrap_or_else(|| current.endpoint.clone()),
            period: self.period.unwrap_or(current.period),
            timeout: self.timeout.unwrap_or(current.timeout),
            up_threshold: self
                .up_threshold
                .map_or(current.up_threshold, NonZeroU32::get),
            down_threshold: self
                .down_threshold
                .map_or(current.down_threshold, NonZeroU32::get),
        }
    }
}
