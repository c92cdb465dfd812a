//! What a kernel really said: Linux 6.1 on a little-endian machine, to `ipvsadm`, with a connection
//! open through the first service.

use super::*;

pub(super) const FAMILY: &str = include_str!("captured/family.hex");
pub(super) const INFO: &str = include_str!("captured/info.hex");
pub(super) const SERVICES: &str = include_str!("captured/services.hex");
pub(super) const DESTINATIONS: &str = include_str!("captured/destinations.hex");

/// The bytes that hexadecimal digits stand for.
pub(super) fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .chars()
        .filter_map(|digit| digit.to_digit(16)?.try_into().ok())
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn bodies(datagrams: &[u8]) -> Vec<Body<'_>> {
    Frames::new(datagrams)
        .map(|frame| frame.unwrap().body)
        .collect()
}

#[cfg(target_endian = "little")]
#[test]
fn a_kernels_services_are_understood() {
    let bytes = bytes(SERVICES);
    let bodies = bodies(&bytes);
    let [
        Body::Family(0x1c, first),
        Body::Family(0x1c, second),
        Body::Done(0),
    ] = bodies[..]
    else {
        panic!("{bodies:?}")
    };
    let record = Message::decode(first).unwrap().service().unwrap();
    let counters = record.counters;
    assert_eq!(counters.connections, 1);
    assert_eq!((counters.packets_in, counters.packets_out), (4, 3));
    assert_eq!((counters.bytes_in, counters.bytes_out), (221, 264));
    assert_eq!(counters.bytes_in_per_second, 21);
    assert_eq!(counters.bytes_out_per_second, 25);
    assert_eq!(record.key, web());
    assert_eq!(record.service, web_service());
    let record = Message::decode(second).unwrap().service().unwrap();
    assert_eq!(
        record.key,
        Key::Fwmark {
            family: Family::Ipv6,
            mark: 7
        }
    );
    assert_eq!(record.service.scheduler, "mh");
    assert_eq!(record.service.flags, service_flags::SCHEDULER_2);
    assert_eq!(record.service.netmask, 128);
    assert_eq!(record.counters, Counters::default());
}

#[cfg(target_endian = "little")]
#[test]
fn a_kernels_destinations_are_understood() {
    let bytes = bytes(DESTINATIONS);
    let bodies = bodies(&bytes);
    let [
        Body::Family(_, first),
        Body::Family(_, second),
        Body::Done(0),
    ] = bodies[..]
    else {
        panic!("{bodies:?}")
    };
    // The newest first.
    let message = Message::decode(first).unwrap();
    let (at, live) = message.destination(Family::Ipv4).unwrap();
    assert_eq!(at.to_string(), "192.168.0.1:80");
    assert_eq!(
        live.destination,
        Destination {
            forward: ForwardMethod::Tunnel,
            weight: 0,
            upper_threshold: 20,
            lower_threshold: 10,
            encapsulation: Encapsulation {
                kind: 1,
                port: 6080,
                flags: 0
            },
        }
    );
    let message = Message::decode(second).unwrap();
    let (at, live) = message.destination(Family::Ipv4).unwrap();
    assert_eq!(at.to_string(), "127.0.0.1:80");
    assert_eq!(live.destination.forward, ForwardMethod::Masq);
    assert_eq!(live.active_connections, 1);
    assert_eq!(live.persistent_connections, 1);
    assert_eq!(live.counters.bytes_out, 264);
}

#[cfg(target_endian = "little")]
#[test]
fn a_kernels_words_about_itself_are_understood() {
    let family = bytes(FAMILY);
    let [Body::Family(16, payload)] = bodies(&family)[..] else {
        panic!("{family:?}")
    };
    assert_eq!(controller::family_id(payload), Ok(0x1c));

    let info = bytes(INFO);
    let [Body::Family(0x1c, payload)] = bodies(&info)[..] else {
        panic!("{info:?}")
    };
    let message = Message::decode(payload).unwrap();
    assert_eq!(message.command, Command::SetInfo);
    let expected = Info {
        version: 0x01_0201,
        connection_table_size: 4096,
    };
    assert_eq!(message.info(), Ok(expected));
}
