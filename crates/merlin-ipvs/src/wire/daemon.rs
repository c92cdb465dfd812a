//! Connection synchronisation daemons: `IPVS_DAEMON_ATTR_*`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netlink::{Attributes, Malformed, Writer, fixed, name};

const STATE: u16 = 1;
const INTERFACE: u16 = 2;
const SYNC_ID: u16 = 3;
const MAX_LENGTH: u16 = 4;
const GROUP: u16 = 5;
const GROUP6: u16 = 6;
const PORT: u16 = 7;
const TTL: u16 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaemonState {
    Master,
    Backup,
    /// A state this version does not know; only ever read.
    Other(u32),
}

impl DaemonState {
    fn number(self) -> u32 {
        match self {
            Self::Master => 1,
            Self::Backup => 2,
            Self::Other(number) => number,
        }
    }

    fn new(number: u32) -> Self {
        match number {
            1 => Self::Master,
            2 => Self::Backup,
            other => Self::Other(other),
        }
    }
}

/// A daemon that sends or receives connection state. Zeroes let the kernel choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    pub state: DaemonState,
    pub interface: String,
    pub sync_id: u32,
    /// Longest UDP payload.
    pub max_length: u16,
    pub group: Option<IpAddr>,
    pub port: u16,
    pub ttl: u8,
}

pub(super) fn put_state(writer: &mut Writer<'_>, state: DaemonState) {
    writer.put(STATE, state.number().to_ne_bytes());
}

pub(super) fn put(writer: &mut Writer<'_>, daemon: &Daemon) {
    put_state(writer, daemon.state);
    writer.put_name(INTERFACE, &daemon.interface);
    writer.put(SYNC_ID, daemon.sync_id.to_ne_bytes());
    writer.put(MAX_LENGTH, daemon.max_length.to_ne_bytes());
    match daemon.group {
        Some(IpAddr::V4(group)) => writer.put(GROUP, group.octets()),
        Some(IpAddr::V6(group)) => writer.put(GROUP6, group.octets()),
        None => {}
    }
    // Alone among the family's ports, this one is in host order.
    writer.put(PORT, daemon.port.to_ne_bytes());
    writer.put(TTL, [daemon.ttl]);
}

pub(super) fn state(value: &[u8]) -> Result<DaemonState, Malformed> {
    let state = Attributes::new(value).find(STATE)?;
    let state = state.ok_or(Malformed::Missing("daemon state"))?;
    fixed(state, "a daemon's state").map(|number| DaemonState::new(u32::from_ne_bytes(number)))
}

pub(super) fn daemon(value: &[u8]) -> Result<Daemon, Malformed> {
    let mut daemon = Daemon {
        state: state(value)?,
        interface: String::new(),
        sync_id: 0,
        max_length: 0,
        group: None,
        port: 0,
        ttl: 0,
    };
    for attribute in Attributes::new(value) {
        let (kind, value) = attribute?;
        match kind {
            INTERFACE => daemon.interface = name(value),
            SYNC_ID => daemon.sync_id = u32::from_ne_bytes(fixed(value, "a sync id")?),
            MAX_LENGTH => {
                daemon.max_length = u16::from_ne_bytes(fixed(value, "a payload length")?);
            }
            GROUP => {
                let group = fixed::<4>(value, "a multicast group")?;
                daemon.group = Some(Ipv4Addr::from(group).into());
            }
            GROUP6 => {
                let group = fixed::<16>(value, "a multicast group")?;
                daemon.group = Some(Ipv6Addr::from(group).into());
            }
            PORT => daemon.port = u16::from_ne_bytes(fixed(value, "a multicast port")?),
            TTL => [daemon.ttl] = fixed(value, "a multicast TTL")?,
            _ => {}
        }
    }
    Ok(daemon)
}
