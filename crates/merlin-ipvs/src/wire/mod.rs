//! The IPVS protocol of generic netlink (`include/uapi/linux/ip_vs.h`): bytes in, values out.
//!
//! Responsible for every command and attribute of the family, in both directions, and for nothing
//! else: no sockets, no clock, no policy.
//!
//! * Encoders append to a buffer the caller keeps, so that a batch is one allocation, or none.
//! * Decoders never panic, whatever the bytes. What they do not know they skip (attributes) or
//!   carry as a number (protocols, forwarding methods), because the table may hold entries of
//!   other programs and the kernel may be newer than this code.
//! * Whatever is encoded here decodes to the same values.
//!
//! The layers: [`netlink`] frames messages and attributes, [`Request`] and [`Message`] are the
//! family's messages, the private modules are the nested attributes they carry, and
//! [`controller`] finds out the family's number.

pub mod controller;
mod daemon;
mod destination;
mod message;
pub mod netlink;
mod service;
mod stats;
#[cfg(test)]
mod tests;

pub use daemon::{Daemon, DaemonState};
pub use message::{Answer, Command, Info, Message, Request};
pub use netlink::Malformed;
pub use service::ServiceRecord;

use std::net::IpAddr;

use merlin_model::Family;

/// Linux address families, as attributes carry them.
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

fn address_family(family: Family) -> u16 {
    match family {
        Family::Ipv4 => AF_INET,
        Family::Ipv6 => AF_INET6,
    }
}

fn family(number: u16) -> Result<Family, Malformed> {
    match number {
        AF_INET => Ok(Family::Ipv4),
        AF_INET6 => Ok(Family::Ipv6),
        other => Err(Malformed::AddressFamily(other)),
    }
}

/// `union nf_inet_addr`: 16 bytes, an IPv4 address in the first four.
fn union_address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn address(bytes: [u8; 16], family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
        Family::Ipv6 => IpAddr::from(bytes),
    }
}
