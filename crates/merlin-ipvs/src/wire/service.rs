//! Virtual services: `IPVS_SVC_ATTR_*`.

use merlin_model::Family;
use merlin_model::table::{Counters, Key, Service, flags};

use super::netlink::{Attributes, Malformed, Writer, fixed, name};
use super::stats::Statistics;
use super::{address, address_family, union_address};

const FAMILY: u16 = 1;
const PROTOCOL: u16 = 2;
const ADDRESS: u16 = 3;
const PORT: u16 = 4;
const FWMARK: u16 = 5;
const SCHEDULER: u16 = 6;
const FLAGS: u16 = 7;
const TIMEOUT: u16 = 8;
const NETMASK: u16 = 9;
const STATS: u16 = 10;
const ENGINE: u16 = 11;
const STATS64: u16 = 12;

/// A service as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRecord {
    pub key: Key,
    pub service: Service,
    pub counters: Counters,
}

// === writing ===

pub(super) fn put_key(writer: &mut Writer<'_>, key: &Key) {
    writer.put(FAMILY, address_family(key.family()).to_ne_bytes());
    match *key {
        Key::Address {
            protocol,
            address,
            port,
        } => {
            writer.put(PROTOCOL, protocol.to_ne_bytes());
            writer.put(ADDRESS, union_address(address));
            writer.put(PORT, port.to_be_bytes());
        }
        Key::Fwmark { mark, .. } => writer.put(FWMARK, mark.to_ne_bytes()),
    }
}

/// Writes all settings: the kernel replaces the whole service, and what is left out is reset.
pub(super) fn put_settings(writer: &mut Writer<'_>, service: &Service, family: Family) {
    writer.put_name(SCHEDULER, &service.scheduler);
    writer.put(FLAGS, flags_and_mask(service.flags));
    writer.put(TIMEOUT, service.timeout.to_ne_bytes());
    writer.put(NETMASK, netmask(service.netmask, family));
    if let Some(engine) = &service.engine {
        writer.put_name(ENGINE, engine);
    }
}

/// `struct ip_vs_flags`. The full mask makes the kernel take the flags as they are; with a
/// narrower one it would keep some of those it has. Its own flag must not go out: the kernel would
/// believe the service hashed, and lose it.
fn flags_and_mask(bits: u32) -> [u8; 8] {
    let mut bytes = [0xff; 8];
    bytes[..4].copy_from_slice(&(bits & !flags::HASHED).to_ne_bytes());
    bytes
}

/// IPv4 takes a mask in network order, IPv6 a prefix length in host order.
fn netmask(prefix: u8, family: Family) -> [u8; 4] {
    match family {
        Family::Ipv4 => {
            let host_bits = 32_u32.saturating_sub(prefix.into());
            u32::MAX.checked_shl(host_bits).unwrap_or(0).to_be_bytes()
        }
        Family::Ipv6 => u32::from(prefix).to_ne_bytes(),
    }
}

// === reading ===

#[derive(Default)]
struct Fields<'a> {
    family: Option<u16>,
    protocol: Option<u16>,
    address: Option<[u8; 16]>,
    port: Option<u16>,
    mark: Option<u32>,
    scheduler: Option<&'a [u8]>,
    flags: Option<u32>,
    timeout: Option<u32>,
    netmask: Option<[u8; 4]>,
    engine: Option<&'a [u8]>,
    statistics: Statistics,
}

impl<'a> Fields<'a> {
    fn read(value: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Self::default();
        for attribute in Attributes::new(value) {
            let (kind, value) = attribute?;
            match kind {
                FAMILY => {
                    let number = fixed(value, "a service's address family")?;
                    fields.family = Some(u16::from_ne_bytes(number));
                }
                PROTOCOL => {
                    let number = fixed(value, "a service's protocol")?;
                    fields.protocol = Some(u16::from_ne_bytes(number));
                }
                ADDRESS => fields.address = Some(fixed(value, "a service's address")?),
                PORT => {
                    let number = fixed(value, "a service's port")?;
                    fields.port = Some(u16::from_be_bytes(number));
                }
                FWMARK => {
                    let number = fixed(value, "a service's fwmark")?;
                    fields.mark = Some(u32::from_ne_bytes(number));
                }
                SCHEDULER => fields.scheduler = Some(value),
                FLAGS => {
                    let [a, b, c, d, ..] = fixed::<8>(value, "a service's flags")?;
                    fields.flags = Some(u32::from_ne_bytes([a, b, c, d]));
                }
                TIMEOUT => {
                    let number = fixed(value, "a service's timeout")?;
                    fields.timeout = Some(u32::from_ne_bytes(number));
                }
                NETMASK => fields.netmask = Some(fixed(value, "a service's netmask")?),
                ENGINE => fields.engine = Some(value),
                STATS => fields.statistics.take_narrow(value)?,
                STATS64 => fields.statistics.take_wide(value)?,
                _ => {}
            }
        }
        Ok(fields)
    }

    fn key(&self) -> Result<Key, Malformed> {
        let family = self.family.ok_or(Malformed::Missing("address family"))?;
        let family = super::family(family)?;
        if let Some(mark) = self.mark {
            return Ok(Key::Fwmark { family, mark });
        }
        let bytes = self.address.ok_or(Malformed::Missing("address"))?;
        Ok(Key::Address {
            protocol: self.protocol.ok_or(Malformed::Missing("protocol"))?,
            address: address(bytes, family),
            port: self.port.ok_or(Malformed::Missing("port"))?,
        })
    }

    fn settings(&self, family: Family) -> Result<Service, Malformed> {
        let scheduler = self.scheduler.ok_or(Malformed::Missing("scheduler"))?;
        let bits = self.flags.ok_or(Malformed::Missing("flags"))?;
        let mask = self.netmask.ok_or(Malformed::Missing("netmask"))?;
        Ok(Service {
            scheduler: name(scheduler),
            flags: bits & !flags::HASHED,
            timeout: self.timeout.ok_or(Malformed::Missing("timeout"))?,
            netmask: prefix(mask, family),
            engine: self.engine.map(name),
        })
    }
}

/// 0, which no catalog asks for, stands for an IPv4 mask that is no prefix. The kernel takes such
/// masks from other programs.
fn prefix(netmask: [u8; 4], family: Family) -> u8 {
    match family {
        Family::Ipv4 => {
            let mask = u32::from_be_bytes(netmask);
            let ones = mask.leading_ones();
            let contiguous = mask.count_ones() == ones;
            u8::try_from(ones)
                .ok()
                .filter(|_| contiguous)
                .unwrap_or_default()
        }
        Family::Ipv6 => u8::try_from(u32::from_ne_bytes(netmask)).unwrap_or_default(),
    }
}

pub(super) fn key(value: &[u8]) -> Result<Key, Malformed> {
    Fields::read(value)?.key()
}

pub(super) fn record(value: &[u8]) -> Result<ServiceRecord, Malformed> {
    let fields = Fields::read(value)?;
    let key = fields.key()?;
    Ok(ServiceRecord {
        key,
        service: fields.settings(key.family())?,
        counters: fields.statistics.counters(),
    })
}
