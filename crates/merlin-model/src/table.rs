//! What a kernel's IPVS table holds, in the kernel's own terms.
//!
//! A table may hold what no catalog can: entries of other programs, protocols and schedulers
//! merlin does not offer. So keys and settings are raw numbers here, and the conversions go one
//! way, from the catalog's types to these.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::server::{Checksum, Forwarding, RealServerConfig, RealServerKey, Tunnel};
use crate::service::{Family, Protocol, ServiceConfig, ServiceKey};

/// Flag bits of a virtual service (`include/uapi/linux/ip_vs.h`).
pub mod flags {
    pub const PERSISTENT: u32 = 0x0001;
    /// Kernel-internal, set in dumps; never part of a [`Service`](super::Service).
    pub const HASHED: u32 = 0x0002;
    pub const ONE_PACKET: u32 = 0x0004;
    pub const SCHEDULER_1: u32 = 0x0008;
    pub const SCHEDULER_2: u32 = 0x0010;
    pub const SCHEDULER_3: u32 = 0x0020;
}

/// Name of the scheduler a service without one has.
pub const NO_SCHEDULER: &str = "none";

/// Identity of a virtual service in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Address {
        protocol: u16,
        address: IpAddr,
        port: u16,
    },
    Fwmark {
        family: Family,
        mark: u32,
    },
}

/// Identity of a destination within its service.
pub type DestinationKey = RealServerKey;

/// Settings of a virtual service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    pub scheduler: String,
    /// Bits of [`flags`], without `HASHED`.
    pub flags: u32,
    /// Persistence timeout in seconds; 0 unless persistent.
    pub timeout: u32,
    /// Prefix length of the persistence netmask, the family's full length unless persistent.
    pub netmask: u8,
    pub engine: Option<String>,
}

/// How the kernel forwards to a destination (`IP_VS_CONN_F_FWD_MASK`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ForwardMethod {
    Masq,
    Local,
    Tunnel,
    Route,
    Bypass,
    /// A method this version does not know; only ever read.
    Other(u32),
}

/// Encapsulation of a tunnel destination; the defaults for any other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Encapsulation {
    /// 0 IPIP, 1 GUE, 2 GRE.
    pub kind: u8,
    pub port: u16,
    /// 1 checksum, 2 remote checksum offload.
    pub flags: u16,
}

/// Settings of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    pub forward: ForwardMethod,
    pub weight: u32,
    pub upper_threshold: u32,
    pub lower_threshold: u32,
    pub encapsulation: Encapsulation,
}

/// A virtual service with its destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub service: Service,
    pub destinations: BTreeMap<DestinationKey, Destination>,
}

/// A whole IPVS table, or the wanted state of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub services: BTreeMap<Key, Entry>,
}

/// One change of a table.
///
/// There is no operation that replaces a destination: an edit keeps its connections, a deletion
/// followed by an addition does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    AddService(Key, Service),
    EditService(Key, Service),
    DeleteService(Key),
    AddDestination(Key, DestinationKey, Destination),
    EditDestination(Key, DestinationKey, Destination),
    DeleteDestination(Key, DestinationKey),
}

impl Operation {
    pub fn key(&self) -> &Key {
        match self {
            Self::AddService(key, _)
            | Self::EditService(key, _)
            | Self::DeleteService(key)
            | Self::AddDestination(key, ..)
            | Self::EditDestination(key, ..)
            | Self::DeleteDestination(key, _) => key,
        }
    }
}

/// Counters of a virtual service or destination. Rates are per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub connections: u64,
    pub packets_in: u64,
    pub packets_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub connections_per_second: u64,
    pub packets_in_per_second: u64,
    pub packets_out_per_second: u64,
    pub bytes_in_per_second: u64,
    pub bytes_out_per_second: u64,
}

/// A destination as it is working now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveDestination {
    pub destination: Destination,
    pub active_connections: u32,
    pub inactive_connections: u32,
    pub persistent_connections: u32,
    pub counters: Counters,
}

/// A virtual service as it is working now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveService {
    pub service: Service,
    pub counters: Counters,
    pub destinations: BTreeMap<DestinationKey, LiveDestination>,
}

/// A table with its counters.
pub type LiveTable = BTreeMap<Key, LiveService>;

// === conversions ===

impl From<&ServiceKey> for Key {
    fn from(key: &ServiceKey) -> Self {
        match *key {
            ServiceKey::Address {
                address,
                port,
                protocol,
            } => Self::Address {
                protocol: protocol.number(),
                address,
                port,
            },
            ServiceKey::Fwmark { mark, family } => Self::Fwmark {
                family,
                mark: mark.get(),
            },
        }
    }
}

impl Key {
    pub fn family(&self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(*address),
            Self::Fwmark { family, .. } => *family,
        }
    }
}

impl Service {
    pub fn new(config: &ServiceConfig, family: Family) -> Self {
        let mut bits = config.flags.bits();
        if config.one_packet {
            bits |= flags::ONE_PACKET;
        }
        let mut service = Self {
            scheduler: config.scheduler.name().to_owned(),
            flags: bits,
            timeout: 0,
            netmask: family.bits(),
            engine: None,
        };
        if let Some(persistence) = config.persistence {
            service.flags |= flags::PERSISTENT;
            service.timeout = persistence.timeout.get();
            service.netmask = persistence.netmask.prefix();
            service.engine = persistence.engine.map(|engine| engine.name().to_owned());
        }
        service
    }
}

impl From<Tunnel> for Encapsulation {
    fn from(tunnel: Tunnel) -> Self {
        let csum = |checksum| match checksum {
            Checksum::None => 0,
            Checksum::Full => 1,
            Checksum::Remote => 2,
        };
        match tunnel {
            Tunnel::Ipip => Self::default(),
            Tunnel::Gue { port, checksum } => Self {
                kind: 1,
                port: port.get(),
                flags: csum(checksum),
            },
            Tunnel::Gre { checksum } => Self {
                kind: 2,
                port: 0,
                flags: u16::from(checksum),
            },
        }
    }
}

impl From<&RealServerConfig> for Destination {
    /// The destination with its configured weight; health is the reconciler's affair.
    fn from(config: &RealServerConfig) -> Self {
        let (forward, encapsulation) = match config.forwarding {
            Forwarding::Masq => (ForwardMethod::Masq, Encapsulation::default()),
            Forwarding::Route => (ForwardMethod::Route, Encapsulation::default()),
            Forwarding::Tunnel(tunnel) => (ForwardMethod::Tunnel, tunnel.into()),
        };
        Self {
            forward,
            weight: config.weight.get().into(),
            upper_threshold: config.thresholds.upper(),
            lower_threshold: config.thresholds.lower(),
            encapsulation,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Address {
                protocol,
                address,
                port,
            } => {
                let at = SocketAddr::new(address, port);
                match [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
                    .into_iter()
                    .find(|known| known.number() == protocol)
                {
                    Some(known) => write!(f, "{known} {at}"),
                    None => write!(f, "protocol {protocol} {at}"),
                }
            }
            Self::Fwmark {
                family: Family::Ipv4,
                mark,
            } => write!(f, "FWM {mark}"),
            Self::Fwmark {
                family: Family::Ipv6,
                mark,
            } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddService(key, service) => {
                write!(f, "add service {key} scheduler {}", service.scheduler)
            }
            Self::EditService(key, service) => {
                write!(f, "edit service {key} scheduler {}", service.scheduler)
            }
            Self::DeleteService(key) => write!(f, "delete service {key}"),
            Self::AddDestination(key, at, destination) => {
                write!(
                    f,
                    "add real server {at} weight {} to {key}",
                    destination.weight
                )
            }
            Self::EditDestination(key, at, destination) => {
                write!(
                    f,
                    "edit real server {at} weight {} of {key}",
                    destination.weight
                )
            }
            Self::DeleteDestination(key, at) => write!(f, "delete real server {at} of {key}"),
        }
    }
}
