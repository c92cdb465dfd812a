//! Virtual services: how they are named, what traffic they take and how it is scheduled.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::str::FromStr;
use std::sync::Arc;

/// A value that a field cannot take, in words that name the field and what would be valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Invalid {
    /// Path of the field in the API's own terms, such as `key.port`.
    pub field: String,
    /// What is wrong with it and what would be valid.
    pub reason: String,
}

impl Invalid {
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

/// The name an operator gives a virtual service.
///
/// Ids become one path segment of a store key, so a slash is refused, and they are printed in
/// tables and logs, so control characters are. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(Arc<str>);

impl ServiceId {
    /// Longest accepted id in bytes; generous for names, bounded for keys and metric labels.
    pub const MAX_LEN: usize = 255;

    pub fn new(id: &str) -> Result<Self, Invalid> {
        let refuse = |reason: &str| Err(Invalid::new("id", reason));
        if id.is_empty() {
            return refuse("is required: a name of 1 to 255 bytes");
        }
        if id.len() > Self::MAX_LEN {
            return refuse("is too long: at most 255 bytes");
        }
        if id == "." || id == ".." {
            return refuse("must not be \".\" or \"..\"");
        }
        if id.chars().any(|c| c == '/' || c.is_control()) {
            return refuse("must not contain a slash or control characters");
        }
        Ok(Self(id.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    /// Number of bits of an address of this family.
    pub fn bits(self) -> u8 {
        match self {
            Self::Ipv4 => 32,
            Self::Ipv6 => 128,
        }
    }
}

/// Transport protocols that IPVS balances by address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Assigned Internet protocol number.
    pub fn number(self) -> u16 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// What traffic a virtual service takes. Two services never share a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKey {
    /// Packets to an address and port. Port 0 takes every port and needs persistence.
    Address {
        address: IpAddr,
        port: u16,
        protocol: Protocol,
    },
    /// Packets of one family that carry a firewall mark.
    Fwmark { mark: NonZeroU32, family: Family },
}

impl ServiceKey {
    pub fn family(&self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(*address),
            Self::Fwmark { family, .. } => *family,
        }
    }

    /// Whether packets keep the port they came with, so that real servers need none.
    pub fn is_portless(&self) -> bool {
        matches!(self, Self::Fwmark { .. } | Self::Address { port: 0, .. })
    }
}

impl FromStr for Netmask {
    type Err = Invalid;

    /// Parses a dotted IPv4 mask or a prefix length.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Ok(prefix) = text.parse() {
            return Self::from_prefix(prefix);
        }
        let refuse = |reason: &str| {
            Err(Invalid::new(
                "config.persistence.netmask",
                format!("{text:?} {reason}"),
            ))
        };
        match text.parse::<Ipv4Addr>().map(u32::from) {
            Ok(mask) if mask.leading_ones() + mask.trailing_zeros() == 32 => {
                Self::from_prefix(mask.leading_ones())
            }
            Ok(_) => refuse("is not contiguous: such as 255.255.255.0"),
            Err(_) => refuse("is not a netmask: such as 255.255.255.0 or 24"),
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address {
                address,
                port,
                protocol,
            } => {
                write!(f, "{protocol} {}", SocketAddr::new(*address, *port))
            }
            Self::Fwmark {
                mark,
                family: Family::Ipv4,
            } => write!(f, "FWM {mark}"),
            Self::Fwmark {
                mark,
                family: Family::Ipv6,
            } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

/// IPVS schedulers of the Linux kernel (`net/netfilter/ipvs/ip_vs_<name>.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheduler {
    Rr,
    Wrr,
    Lc,
    Wlc,
    Lblc,
    Lblcr,
    Dh,
    Sh,
    Sed,
    Nq,
    Fo,
    Ovf,
    Mh,
    Twos,
}

impl Scheduler {
    pub const ALL: [Self; 14] = [
        Self::Rr,
        Self::Wrr,
        Self::Lc,
        Self::Wlc,
        Self::Lblc,
        Self::Lblcr,
        Self::Dh,
        Self::Sh,
        Self::Sed,
        Self::Nq,
        Self::Fo,
        Self::Ovf,
        Self::Mh,
        Self::Twos,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Lblc => "lblc",
            Self::Lblcr => "lblcr",
            Self::Dh => "dh",
            Self::Sh => "sh",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Fo => "fo",
            Self::Ovf => "ovf",
            Self::Mh => "mh",
            Self::Twos => "twos",
        }
    }
}

impl FromStr for Scheduler {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|s| s.name() == name)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(", ");
                let problem = if name.is_empty() {
                    "is required".to_owned()
                } else {
                    format!("unknown scheduler {name:?}")
                };
                Invalid::new("config.scheduler", format!("{problem}: one of {known}"))
            })
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A scheduler flag by one of its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SchedulerFlag {
    Flag1,
    Flag2,
    Flag3,
    ShFallback,
    ShPort,
    MhFallback,
    MhPort,
}

impl SchedulerFlag {
    pub const ALL: [Self; 7] = [
        Self::Flag1,
        Self::Flag2,
        Self::Flag3,
        Self::ShFallback,
        Self::ShPort,
        Self::MhFallback,
        Self::MhPort,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Flag1 => "flag-1",
            Self::Flag2 => "flag-2",
            Self::Flag3 => "flag-3",
            Self::ShFallback => "sh-fallback",
            Self::ShPort => "sh-port",
            Self::MhFallback => "mh-fallback",
            Self::MhPort => "mh-port",
        }
    }

    /// The scheduler that owns the name; `flag-N` suits every one.
    fn owner(self) -> Option<Scheduler> {
        match self {
            Self::Flag1 | Self::Flag2 | Self::Flag3 => None,
            Self::ShFallback | Self::ShPort => Some(Scheduler::Sh),
            Self::MhFallback | Self::MhPort => Some(Scheduler::Mh),
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Flag1 | Self::ShFallback | Self::MhFallback => 1,
            Self::Flag2 | Self::ShPort | Self::MhPort => 2,
            Self::Flag3 => 4,
        }
    }
}

impl FromStr for SchedulerFlag {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|flag| flag.name() == name)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(", ");
                Invalid::new(
                    "config.flags",
                    format!("unknown flag {name:?}: any of {known}"),
                )
            })
    }
}

/// The three per-scheduler flags of a virtual service.
///
/// `include/uapi/linux/ip_vs.h` numbers them 0x0008, 0x0010 and 0x0020; what each means is the
/// scheduler's affair. They are stored and printed as `flag-1` to `flag-3`, which is what nodes of
/// the earlier system understand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SchedulerFlags(u8);

impl SchedulerFlags {
    pub const NONE: Self = Self(0);

    /// Joins flags, refusing names that belong to another scheduler.
    pub fn resolve(scheduler: Scheduler, flags: &[SchedulerFlag]) -> Result<Self, Invalid> {
        flags
            .iter()
            .try_fold(Self::NONE, |joined, flag| match flag.owner() {
                Some(owner) if owner != scheduler => Err(Invalid::new(
                    "config.flags",
                    format!("{:?} is a flag of {owner}, not of {scheduler}", flag.name()),
                )),
                _ => Ok(Self(joined.0 | flag.bit())),
            })
    }

    /// The flags as IPVS flag bits.
    pub fn bits(self) -> u32 {
        u32::from(self.0) << 3
    }

    /// The flags in the spelling every node of a mixed fleet understands.
    pub fn iter(self) -> impl Iterator<Item = SchedulerFlag> {
        [
            SchedulerFlag::Flag1,
            SchedulerFlag::Flag2,
            SchedulerFlag::Flag3,
        ]
        .into_iter()
        .filter(move |flag| self.0 & flag.bit() != 0)
    }
}

/// How many leading bits of a client's address decide its persistence template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Netmask(u8);

impl Netmask {
    /// Every client on its own: 255.255.255.255 or 128.
    pub fn host(family: Family) -> Self {
        Self(family.bits())
    }

    pub fn from_prefix(prefix: u32) -> Result<Self, Invalid> {
        match u8::try_from(prefix) {
            Ok(prefix @ 1..=128) => Ok(Self(prefix)),
            _ => Err(Invalid::new(
                "config.persistence.netmask",
                format!(
                    "prefix length {prefix} is out of range: 1 to 32 for IPv4, 1 to 128 for IPv6"
                ),
            )),
        }
    }

    pub fn prefix(self) -> u8 {
        self.0
    }
}

/// Helpers that find a connection's persistence in its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PersistenceEngine {
    /// SIP Call-ID (`ip_vs_pe_sip`), UDP only.
    Sip,
}

impl PersistenceEngine {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sip => "sip",
        }
    }
}

impl FromStr for PersistenceEngine {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        match name {
            "sip" => Ok(Self::Sip),
            _ => Err(Invalid::new(
                "config.persistence.engine",
                format!("unknown persistence engine {name:?}: sip"),
            )),
        }
    }
}

/// Sends a client's connections to the real server that took its last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Persistence {
    /// Seconds a template lives after its last connection.
    pub timeout: NonZeroU32,
    pub netmask: Netmask,
    pub engine: Option<PersistenceEngine>,
}

impl Persistence {
    /// Longest timeout the kernel can count in its clock ticks (`ip_vs_conn` timers): 31 days.
    pub const MAX_TIMEOUT: u32 = 31 * 24 * 60 * 60;

    /// The same persistence for a service that moves to another family: every client on its own
    /// stays that.
    pub(crate) fn moved(self, from: Family, to: Family) -> Self {
        if self.netmask == Netmask::host(from) {
            Self {
                netmask: Netmask::host(to),
                ..self
            }
        } else {
            self
        }
    }
}

/// Everything about a virtual service that may be edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceConfig {
    pub scheduler: Scheduler,
    pub flags: SchedulerFlags,
    pub persistence: Option<Persistence>,
    /// Schedules every datagram on its own (UDP, or a firewall mark).
    pub one_packet: bool,
}

impl ServiceConfig {
    pub fn new(scheduler: Scheduler) -> Self {
        Self {
            scheduler,
            flags: SchedulerFlags::NONE,
            persistence: None,
            one_packet: false,
        }
    }

    /// Checks the combinations that no single field can.
    pub(crate) fn check(&self, key: &ServiceKey) -> Result<(), Invalid> {
        if let ServiceKey::Address { port: 0, .. } = key
            && self.persistence.is_none()
        {
            return Err(Invalid::new(
                "key.port",
                "must be 1 to 65535 (0, every port, needs persistence)",
            ));
        }
        if let Some(persistence) = &self.persistence {
            let (prefix, bits) = (persistence.netmask.prefix(), key.family().bits());
            if prefix > bits {
                return Err(Invalid::new(
                    "config.persistence.netmask",
                    format!("prefix length {prefix} is out of range for IPv4: 1 to {bits}"),
                ));
            }
            let takes_udp =
                !matches!(key, ServiceKey::Address { protocol, .. } if *protocol != Protocol::Udp);
            if persistence.engine.is_some() && !takes_udp {
                return Err(Invalid::new(
                    "config.persistence.engine",
                    "sip needs a UDP or fwmark service",
                ));
            }
        }
        if self.one_packet
            && let ServiceKey::Address {
                protocol: Protocol::Tcp | Protocol::Sctp,
                ..
            } = key
        {
            return Err(Invalid::new(
                "config.one_packet",
                "one-packet scheduling needs a UDP or fwmark service",
            ));
        }
        Ok(())
    }
}

/// A port that is one: 1 to 65535, checked from the wide integers wires carry.
pub fn port(field: &str, value: u32) -> Result<NonZeroU16, Invalid> {
    u16::try_from(value)
        .ok()
        .and_then(NonZeroU16::new)
        .ok_or_else(|| Invalid::new(field, format!("{value} is out of range: 1 to 65535")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_path_segment() {
        for good in ["a", "web-1", "café", "with space", &"x".repeat(255)] {
            assert_eq!(ServiceId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a/b", ".", "..", "a\nb", &"x".repeat(256)] {
            assert_eq!(ServiceId::new(bad).unwrap_err().field, "id", "{bad:?}");
        }
    }

    #[test]
    fn every_scheduler_parses_its_own_name_and_an_unknown_one_is_told_all() {
        for scheduler in Scheduler::ALL {
            assert_eq!(scheduler.name().parse(), Ok(scheduler));
        }
        let error = "fastest".parse::<Scheduler>().unwrap_err();
        assert_eq!(error.field, "config.scheduler");
        assert!(error.reason.contains("wrr"), "{error}");
    }

    #[test]
    fn flag_names_belong_to_their_scheduler() {
        let parse = |scheduler, names: &[&str]| {
            let flags: Result<Vec<_>, _> = names.iter().map(|name| name.parse()).collect();
            SchedulerFlags::resolve(scheduler, &flags?)
        };
        assert_eq!(
            parse(Scheduler::Sh, &["sh-fallback", "sh-port"])
                .unwrap()
                .bits(),
            0x18
        );
        assert_eq!(
            parse(Scheduler::Mh, &["mh-fallback", "mh-port"])
                .unwrap()
                .bits(),
            0x18
        );
        assert_eq!(
            parse(Scheduler::Rr, &["flag-1", "flag-2", "flag-3"])
                .unwrap()
                .bits(),
            0x38
        );
        assert_eq!(
            parse(Scheduler::Rr, &["flag-2", "flag-2"]).unwrap().bits(),
            0x10
        );
        let stored: Vec<_> = parse(Scheduler::Sh, &["sh-port"]).unwrap().iter().collect();
        assert_eq!(stored, [SchedulerFlag::Flag2]);
        for (scheduler, flag) in [
            (Scheduler::Mh, "sh-port"),
            (Scheduler::Sh, "mh-port"),
            (Scheduler::Rr, "sh-port"),
            (Scheduler::Sh, "flag-4"),
            (Scheduler::Sh, ""),
        ] {
            let error = parse(scheduler, &[flag]).unwrap_err();
            assert_eq!(error.field, "config.flags", "{scheduler} {flag}");
        }
    }

    #[test]
    fn netmasks_are_contiguous_and_within_the_family() {
        let parse = |text: &str| text.parse().map(Netmask::prefix);
        assert_eq!(parse("255.255.255.0"), Ok(24));
        assert_eq!(parse("255.255.255.255"), Ok(32));
        assert_eq!(parse("16"), Ok(16));
        assert_eq!(parse("128"), Ok(128));
        for bad in ["255.0.255.0", "0.0.0.0", "0", "129", "x", "", "ffff::"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
