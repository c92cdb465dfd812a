//! Who has which address.
//!
//! Host numbers are two decimal digits that read the same in both families: `lb2` is 10.1.0.12
//! and fd01::12.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How many virtual addresses there are.
pub(super) const VIPS: u8 = 3;

pub(super) const FRONT: Network = Network::new("front", 1, &[Family::V4, Family::V6]);
pub(super) const BACK: Network = Network::new("back", 2, &[Family::V4, Family::V6]);
pub(super) const CONTROL: Network = Network::new("control", 3, &[Family::V4]);
pub(super) const VIRTUAL: Network = Network::new("virtual", 9, &[Family::V4, Family::V6]);

/// Of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// The virtual address number `number`, from 1 to 3. No host's network contains it: the client
/// routes it to a balancer.
#[must_use]
pub fn vip(family: Family, number: u8) -> IpAddr {
    assert!(
        (1..=VIPS).contains(&number),
        "there are {VIPS} virtual addresses"
    );
    VIRTUAL.address(family, number)
}

pub(super) fn balancer(number: u8) -> (String, u8) {
    (format!("lb{number}"), 10 + number)
}

pub(super) fn server(number: u8) -> (String, u8) {
    (format!("rs{number}"), 20 + number)
}

pub(super) fn client() -> (String, u8) {
    ("client".to_owned(), 90)
}

/// A range of addresses, and what the bridge and every host's interface on it are called.
#[derive(Debug, Clone, Copy)]
pub(super) struct Network {
    pub(super) name: &'static str,
    pub(super) families: &'static [Family],
    number: u8,
}

impl Network {
    const fn new(name: &'static str, number: u8, families: &'static [Family]) -> Self {
        Self {
            name,
            families,
            number,
        }
    }

    pub(super) fn address(self, family: Family, host: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, self.number, 0, host).into(),
            Family::V6 => {
                let prefix = 0xfd00 + same_digits(self.number);
                Ipv6Addr::new(prefix, 0, 0, 0, 0, 0, 0, same_digits(host)).into()
            }
        }
    }

    pub(super) fn prefix(self, family: Family) -> String {
        format!("{}/{}", self.address(family, 0), family.network_length())
    }
}

/// The hexadecimal number that looks like this decimal one.
fn same_digits(number: u8) -> u16 {
    let number = u16::from(number);
    (number / 10) * 16 + number % 10
}

impl Family {
    pub(super) fn network_length(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    pub(super) fn host_length(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_numbers_read_the_same_in_both_families() {
        let (_, number) = balancer(2);
        assert_eq!(FRONT.address(Family::V4, number).to_string(), "10.1.0.12");
        assert_eq!(FRONT.address(Family::V6, number).to_string(), "fd01::12");
        assert_eq!(VIRTUAL.prefix(Family::V4), "10.9.0.0/24");
        assert_eq!(VIRTUAL.prefix(Family::V6), "fd09::/64");
        assert_eq!(vip(Family::V6, 3).to_string(), "fd09::3");
    }
}
