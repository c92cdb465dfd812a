//! Tables that between them hold everything the protocol can say, and what they are made of.

use std::collections::BTreeMap;
use std::net::IpAddr;

use merlin_model::Family;
use merlin_model::table::{
    Destination, DestinationKey, Encapsulation, Entry, ForwardMethod, Key, Operation, Service,
    Table, flags,
};

/// The operations that make an empty table this one.
pub fn additions(table: &Table) -> Vec<Operation> {
    let mut operations = Vec::new();
    for (key, entry) in &table.services {
        operations.push(Operation::AddService(*key, entry.service.clone()));
        let destinations = entry.destinations.iter();
        let added = destinations.map(|(at, to)| Operation::AddDestination(*key, *at, *to));
        operations.extend(added);
    }
    operations
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("a sample is an address")
}

pub fn tcp(at: &str, port: u16) -> Key {
    key(6, at, port)
}

/// A service of a protocol by its number.
pub fn key(protocol: u16, at: &str, port: u16) -> Key {
    Key::Address {
        protocol,
        address: address(at),
        port,
    }
}

pub fn fwmark(family: Family, mark: u32) -> Key {
    Key::Fwmark { family, mark }
}

/// A service as `ipvsadm -A -s SCHEDULER` makes it.
pub fn service(key: &Key, scheduler: &str) -> Service {
    Service {
        scheduler: scheduler.to_owned(),
        flags: 0,
        timeout: 0,
        netmask: key.family().bits(),
        engine: None,
    }
}

pub fn at(server: &str, port: u16) -> DestinationKey {
    DestinationKey::new(address(server), port)
}

pub fn to(forward: ForwardMethod, weight: u32) -> Destination {
    Destination {
        forward,
        weight,
        upper_threshold: 0,
        lower_threshold: 0,
        encapsulation: Encapsulation::default(),
    }
}

/// A tunnel destination by the protocol's numbers.
pub fn tunnel(kind: u8, port: u16, flags: u16) -> Destination {
    Destination {
        encapsulation: Encapsulation { kind, port, flags },
        ..to(ForwardMethod::Tunnel, 1)
    }
}

pub fn table(
    services: impl IntoIterator<Item = (Key, Service, Vec<(DestinationKey, Destination)>)>,
) -> Table {
    let entries = services.into_iter().map(|(key, service, destinations)| {
        let destinations: BTreeMap<_, _> = destinations.into_iter().collect();
        let entry = Entry {
            service,
            destinations,
        };
        (key, entry)
    });
    Table {
        services: entries.collect(),
    }
}

/// Services of every kind, without destinations.
pub fn every_service() -> Table {
    let plain = [
        (tcp("10.0.0.1", 80), "rr"),
        (tcp("10.0.0.1", 81), "wlc"),
        (key(17, "10.0.0.1", 80), "wrr"),
        (key(132, "10.0.0.1", 80), "lc"),
        (tcp("2001:db8::1", 80), "sed"),
        (key(17, "2001:db8::1", 53), "nq"),
        (fwmark(Family::Ipv4, 1), "dh"),
        (fwmark(Family::Ipv6, 1), "fo"),
        (fwmark(Family::Ipv4, u32::MAX), "ovf"),
        (tcp("10.0.0.1", 8000), "none"),
        // Not what merlin would write, but what it may find.
        (key(1, "10.0.0.9", 7), "lblc"),
        (key(50, "2001:db8::9", 0), "lblcr"),
    ]
    .map(|(key, scheduler)| (key, service(&key, scheduler), Vec::new()));
    let with = |key: Key, change: fn(&mut Service)| {
        let mut service = service(&key, "wrr");
        change(&mut service);
        (key, service, Vec::new())
    };
    let special = [
        with(tcp("10.0.1.1", 0), |service| {
            service.flags = flags::PERSISTENT;
            service.timeout = 300;
        }),
        with(tcp("10.0.1.1", 80), |service| {
            service.flags = flags::PERSISTENT;
            service.timeout = 1;
            service.netmask = 24;
        }),
        with(tcp("2001:db8:1::1", 80), |service| {
            service.flags = flags::PERSISTENT;
            service.timeout = 86_400;
            service.netmask = 56;
        }),
        with(fwmark(Family::Ipv6, 2), |service| {
            service.flags = flags::PERSISTENT;
            service.timeout = 60;
            service.netmask = 1;
        }),
        with(key(17, "10.0.1.1", 5060), |service| {
            service.flags = flags::PERSISTENT;
            service.timeout = 600;
            service.engine = Some("sip".to_owned());
        }),
        with(key(17, "10.0.1.1", 53), |service| {
            service.flags = flags::ONE_PACKET;
        }),
        with(tcp("10.0.1.2", 80), |service| {
            service.scheduler = "mh".to_owned();
            service.flags = flags::SCHEDULER_1 | flags::SCHEDULER_2;
        }),
        with(tcp("10.0.1.3", 80), |service| {
            service.scheduler = "sh".to_owned();
            service.flags = flags::SCHEDULER_2 | flags::SCHEDULER_3;
        }),
    ];
    table(plain.into_iter().chain(special))
}

/// Destinations of every kind.
pub fn every_destination() -> Table {
    use ForwardMethod::{Bypass, Local, Masq, Route, Tunnel};

    let limited = Destination {
        upper_threshold: 2_000_000,
        lower_threshold: 1_000_000,
        ..to(Masq, 65_535)
    };
    let v4 = vec![
        (at("192.168.0.1", 80), to(Masq, 1)),
        (at("192.168.0.1", 8080), to(Masq, 0)),
        (at("192.168.0.2", 80), to(Route, 100)),
        (at("192.168.0.3", 80), to(Tunnel, 1)),
        (at("192.168.0.4", 80), tunnel(1, 6080, 0)),
        (at("192.168.0.5", 80), tunnel(1, 6080, 1)),
        (at("192.168.0.6", 80), tunnel(1, 65_535, 2)),
        (at("192.168.0.7", 80), tunnel(2, 0, 0)),
        (at("192.168.0.8", 80), tunnel(2, 0, 1)),
        (at("192.168.0.9", 80), limited),
        (at("192.168.0.10", 80), to(Local, 1)),
        (at("192.168.0.11", 80), to(Bypass, 1)),
        (at("127.0.0.1", 80), to(Route, 1)),
        (at("192.168.0.12", 80), to(Masq, i32::MAX.unsigned_abs())),
    ];
    let v6 = vec![
        (at("2001:db8::101", 80), to(Masq, 1)),
        (at("2001:db8::102", 80), to(Route, 1)),
        (at("2001:db8::103", 80), tunnel(0, 0, 0)),
        (at("2001:db8::104", 80), tunnel(1, 6080, 2)),
        (at("::1", 80), to(Route, 1)),
        // The other family, by tunnel.
        (at("192.168.0.1", 80), tunnel(0, 0, 0)),
        (at("192.168.0.2", 80), tunnel(2, 0, 1)),
    ];
    let mixed = vec![(at("2001:db8::101", 443), tunnel(1, 1, 0))];
    let portless = vec![
        (at("192.168.0.1", 0), to(Route, 1)),
        (at("192.168.0.1", 80), to(Route, 2)),
    ];
    let (tcp4, tcp6) = (tcp("10.0.0.1", 80), tcp("2001:db8::1", 80));
    let (tcp443, mark) = (tcp("10.0.0.1", 443), fwmark(Family::Ipv4, 7));
    table([
        (tcp4, service(&tcp4, "rr"), v4),
        (tcp6, service(&tcp6, "rr"), v6),
        (tcp443, service(&tcp443, "rr"), mixed),
        (mark, service(&mark, "rr"), portless),
    ])
}

/// `services` services with `destinations` destinations each.
pub fn many(services: u16, destinations: u16) -> Table {
    table((0..services).map(|service_number| {
        let [high, low] = service_number.to_be_bytes();
        let key = Key::Address {
            protocol: 6,
            address: [10, 1, high, low].into(),
            port: 80,
        };
        let destinations = (0..destinations).map(|number| {
            let [high, low] = number.to_be_bytes();
            let at = DestinationKey::new([172, 16, high, low].into(), 8080);
            (at, to(ForwardMethod::Route, number.into()))
        });
        (key, service(&key, "wrr"), destinations.collect())
    }))
}
