//! Destinations, merlin's real servers: `IPVS_DEST_ATTR_*`.

use merlin_model::Family;
use merlin_model::table::{
    Destination, DestinationKey, Encapsulation, ForwardMethod, LiveDestination,
};

use super::netlink::{Attributes, Malformed, Writer, fixed};
use super::stats::Statistics;
use super::{address, address_family, family, union_address};

const ADDRESS: u16 = 1;
const PORT: u16 = 2;
const FORWARD: u16 = 3;
const WEIGHT: u16 = 4;
const UPPER_THRESHOLD: u16 = 5;
const LOWER_THRESHOLD: u16 = 6;
const ACTIVE: u16 = 7;
const INACTIVE: u16 = 8;
const PERSISTENT: u16 = 9;
const STATS: u16 = 10;
const FAMILY: u16 = 11;
const STATS64: u16 = 12;
const TUNNEL_TYPE: u16 = 13;
const TUNNEL_PORT: u16 = 14;
const TUNNEL_FLAGS: u16 = 15;

/// Bits of the forwarding method (`IP_VS_CONN_F_FWD_MASK`); the rest are connection flags.
const FORWARD_MASK: u32 = 7;

// === writing ===

pub(super) fn put_key(writer: &mut Writer<'_>, key: &DestinationKey) {
    writer.put(ADDRESS, union_address(key.address));
    writer.put(PORT, key.port.to_be_bytes());
    // An IPv6 service may tunnel to an IPv4 server, so the family is the destination's own.
    let family = address_family(Family::of(key.address));
    writer.put(FAMILY, family.to_ne_bytes());
}

/// Writes all settings: the kernel replaces the whole destination, and a tunnel that is left out
/// falls back to IPIP.
pub(super) fn put_settings(writer: &mut Writer<'_>, destination: &Destination) {
    let encapsulation = destination.encapsulation;
    let method = forward_number(destination.forward);
    writer.put(FORWARD, method.to_ne_bytes());
    writer.put(WEIGHT, destination.weight.to_ne_bytes());
    writer.put(UPPER_THRESHOLD, destination.upper_threshold.to_ne_bytes());
    writer.put(LOWER_THRESHOLD, destination.lower_threshold.to_ne_bytes());
    writer.put(TUNNEL_TYPE, [encapsulation.kind]);
    writer.put(TUNNEL_PORT, encapsulation.port.to_be_bytes());
    writer.put(TUNNEL_FLAGS, encapsulation.flags.to_ne_bytes());
}

fn forward_number(forward: ForwardMethod) -> u32 {
    match forward {
        ForwardMethod::Masq => 0,
        ForwardMethod::Local => 1,
        ForwardMethod::Tunnel => 2,
        ForwardMethod::Route => 3,
        ForwardMethod::Bypass => 4,
        ForwardMethod::Other(number) => number,
    }
}

// === reading ===

#[derive(Default)]
struct Fields {
    family: Option<u16>,
    address: Option<[u8; 16]>,
    port: Option<u16>,
    forward: Option<u32>,
    weight: Option<u32>,
    upper_threshold: Option<u32>,
    lower_threshold: Option<u32>,
    encapsulation: Encapsulation,
    active: u32,
    inactive: u32,
    persistent: u32,
    statistics: Statistics,
}

impl Fields {
    fn read(value: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Self::default();
        for attribute in Attributes::new(value) {
            let (kind, value) = attribute?;
            let number = |what| fixed(value, what).map(u32::from_ne_bytes);
            match kind {
                ADDRESS => fields.address = Some(fixed(value, "a destination's address")?),
                PORT => {
                    let port = fixed(value, "a destination's port")?;
                    fields.port = Some(u16::from_be_bytes(port));
                }
                FORWARD => fields.forward = Some(number("a forwarding method")?),
                WEIGHT => fields.weight = Some(number("a weight")?),
                UPPER_THRESHOLD => fields.upper_threshold = Some(number("an upper threshold")?),
                LOWER_THRESHOLD => fields.lower_threshold = Some(number("a lower threshold")?),
                ACTIVE => fields.active = number("a connection count")?,
                INACTIVE => fields.inactive = number("a connection count")?,
                PERSISTENT => fields.persistent = number("a connection count")?,
                STATS => fields.statistics.take_narrow(value)?,
                STATS64 => fields.statistics.take_wide(value)?,
                FAMILY => {
                    let family = fixed(value, "a destination's address family")?;
                    fields.family = Some(u16::from_ne_bytes(family));
                }
                TUNNEL_TYPE => {
                    let [kind] = fixed(value, "a tunnel type")?;
                    fields.encapsulation.kind = kind;
                }
                TUNNEL_PORT => {
                    let port = fixed(value, "a tunnel port")?;
                    fields.encapsulation.port = u16::from_be_bytes(port);
                }
                TUNNEL_FLAGS => {
                    let flags = fixed(value, "tunnel flags")?;
                    fields.encapsulation.flags = u16::from_ne_bytes(flags);
                }
                _ => {}
            }
        }
        Ok(fields)
    }

    /// Kernels before 3.18 do not name the family; there it is the service's.
    fn key(&self, service: Family) -> Result<DestinationKey, Malformed> {
        let family = self.family.map_or(Ok(service), family)?;
        let bytes = self.address.ok_or(Malformed::Missing("address"))?;
        let port = self.port.ok_or(Malformed::Missing("port"))?;
        Ok(DestinationKey::new(address(bytes, family), port))
    }

    fn settings(&self) -> Result<Destination, Malformed> {
        let threshold = Malformed::Missing("threshold");
        let forward = self
            .forward
            .ok_or(Malformed::Missing("forwarding method"))?;
        Ok(Destination {
            forward: forward_method(forward & FORWARD_MASK),
            weight: self.weight.ok_or(Malformed::Missing("weight"))?,
            upper_threshold: self.upper_threshold.ok_or(threshold)?,
            lower_threshold: self.lower_threshold.ok_or(threshold)?,
            encapsulation: self.encapsulation,
        })
    }
}

fn forward_method(number: u32) -> ForwardMethod {
    match number {
        0 => ForwardMethod::Masq,
        1 => ForwardMethod::Local,
        2 => ForwardMethod::Tunnel,
        3 => ForwardMethod::Route,
        4 => ForwardMethod::Bypass,
        other => ForwardMethod::Other(other),
    }
}

pub(super) fn key(value: &[u8], service: Family) -> Result<DestinationKey, Malformed> {
    Fields::read(value)?.key(service)
}

pub(super) fn record(
    value: &[u8],
    service: Family,
) -> Result<(DestinationKey, LiveDestination), Malformed> {
    let fields = Fields::read(value)?;
    let live = LiveDestination {
        destination: fields.settings()?,
        active_connections: fields.active,
        inactive_connections: fields.inactive,
        persistent_connections: fields.persistent,
        counters: fields.statistics.counters(),
    };
    Ok((fields.key(service)?, live))
}
