use std::collections::BTreeSet;
use std::net::IpAddr;

use merlin_model::Family;
use merlin_model::table::{
    Counters, Destination, DestinationKey, Encapsulation, ForwardMethod, Key, LiveDestination,
    Operation, Service, flags as service_flags,
};
use proptest::prelude::*;

use super::netlink::{Attributes, Body, Frame, Frames, Header, flags};
use super::*;
use crate::Timeouts;

const FAMILY_ID: u16 = 0x1d;

fn encode(request: &Request<'_>, sequence: u32) -> Vec<u8> {
    let mut buffer = Vec::new();
    let header = Header {
        family: FAMILY_ID,
        flags: request.flags(),
        sequence,
    };
    request.encode(header, &mut buffer);
    buffer
}

/// The payload of the only message of a buffer.
fn payload(buffer: &[u8]) -> &[u8] {
    let frames: Vec<_> = Frames::new(buffer).collect::<Result<_, _>>().unwrap();
    let [frame] = frames[..] else {
        panic!("{} messages", frames.len())
    };
    match frame.body {
        Body::Family(FAMILY_ID, payload) => payload,
        other => panic!("{other:?}"),
    }
}

/// Reads everything that any decoder can be asked for.
fn decode_all(buffer: &[u8]) {
    for frame in Frames::new(buffer) {
        let Ok(Frame {
            body: Body::Family(_, payload),
            ..
        }) = frame
        else {
            continue;
        };
        let _ = controller::family_id(payload);
        let Ok(message) = Message::decode(payload) else {
            continue;
        };
        let _ = message.service_key();
        let _ = message.service();
        for family in [Family::Ipv4, Family::Ipv6] {
            let _ = message.destination_key(family);
            let _ = message.destination(family);
        }
        let _ = message.daemon_state();
        let _ = message.daemon();
        let _ = message.timeouts();
        let _ = message.info();
    }
}

// === strategies ===

fn keys() -> impl Strategy<Value = Key> {
    let address =
        (any::<u16>(), any::<IpAddr>(), any::<u16>()).prop_map(|(protocol, address, port)| {
            Key::Address {
                protocol,
                address,
                port,
            }
        });
    let family = prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)];
    let mark = (family, any::<u32>()).prop_map(|(family, mark)| Key::Fwmark { family, mark });
    prop_oneof![address, mark]
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,15}", "[^\0]{0,60}"]
}

fn keyed_services() -> impl Strategy<Value = (Key, Service)> {
    let settings = (
        names(),
        any::<u32>(),
        any::<u32>(),
        any::<u8>(),
        proptest::option::of(names()),
    );
    (keys(), settings).prop_map(|(key, (scheduler, bits, timeout, netmask, engine))| {
        let service = Service {
            scheduler,
            flags: bits & !service_flags::HASHED,
            timeout,
            // Every length an IPv4 mask can express; any for IPv6.
            netmask: match key.family() {
                Family::Ipv4 => netmask % 33,
                Family::Ipv6 => netmask,
            },
            engine,
        };
        (key, service)
    })
}

fn destinations() -> impl Strategy<Value = (DestinationKey, Destination)> {
    let forward = prop_oneof![
        Just(ForwardMethod::Masq),
        Just(ForwardMethod::Local),
        Just(ForwardMethod::Tunnel),
        Just(ForwardMethod::Route),
        Just(ForwardMethod::Bypass),
        (5..8_u32).prop_map(ForwardMethod::Other),
    ];
    let encapsulation = (any::<u8>(), any::<u16>(), any::<u16>())
        .prop_map(|(kind, port, flags)| Encapsulation { kind, port, flags });
    let numbers = (any::<u32>(), any::<u32>(), any::<u32>());
    (
        any::<IpAddr>(),
        any::<u16>(),
        forward,
        numbers,
        encapsulation,
    )
        .prop_map(
            |(
                address,
                port,
                forward,
                (weight, upper_threshold, lower_threshold),
                encapsulation,
            )| {
                let destination = Destination {
                    forward,
                    weight,
                    upper_threshold,
                    lower_threshold,
                    encapsulation,
                };
                (DestinationKey::new(address, port), destination)
            },
        )
}

fn states() -> impl Strategy<Value = DaemonState> {
    prop_oneof![
        Just(DaemonState::Master),
        Just(DaemonState::Backup),
        (3..u32::MAX).prop_map(DaemonState::Other),
    ]
}

fn daemons() -> impl Strategy<Value = Daemon> {
    (
        states(),
        names(),
        any::<u32>(),
        any::<u16>(),
        proptest::option::of(any::<IpAddr>()),
        any::<u16>(),
        any::<u8>(),
    )
        .prop_map(
            |(state, interface, sync_id, max_length, group, port, ttl)| Daemon {
                state,
                interface,
                sync_id,
                max_length,
                group,
                port,
                ttl,
            },
        )
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(tcp, tcp_fin, udp)| Timeouts {
        tcp,
        tcp_fin,
        udp,
    })
}

// === round trips ===

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn services_come_back_as_they_were((key, service) in keyed_services()) {
        for request in [Request::NewService(&key, &service), Request::SetService(&key, &service)] {
            let buffer = encode(&request, 1);
            let message = Message::decode(payload(&buffer)).unwrap();
            prop_assert_eq!(message.command, request.command());
            prop_assert_eq!(message.service_key().unwrap(), key);
            prop_assert_eq!(message.service().unwrap(), ServiceRecord {
                key,
                service: service.clone(),
                counters: Counters::default(),
            });
        }
    }

    #[test]
    fn destinations_come_back_as_they_were(
        key in keys(),
        (at, destination) in destinations(),
    ) {
        let requests = [
            Request::NewDest(&key, &at, &destination),
            Request::SetDest(&key, &at, &destination),
        ];
        for request in requests {
            let buffer = encode(&request, 1);
            let message = Message::decode(payload(&buffer)).unwrap();
            prop_assert_eq!(message.command, request.command());
            prop_assert_eq!(message.service_key().unwrap(), key);
            let (found, live) = message.destination(key.family()).unwrap();
            prop_assert_eq!(found, at);
            prop_assert_eq!(live, LiveDestination {
                destination,
                active_connections: 0,
                inactive_connections: 0,
                persistent_connections: 0,
                counters: Counters::default(),
            });
        }
    }

    #[test]
    fn requests_that_only_name_things_come_back_as_they_were(
        key in keys(),
        (at, _) in destinations(),
    ) {
        let requests = [
            Request::DelService(&key),
            Request::GetService(&key),
            Request::DumpDests(&key),
            Request::Zero(Some(&key)),
            Request::DelDest(&key, &at),
        ];
        for request in requests {
            let buffer = encode(&request, 1);
            let message = Message::decode(payload(&buffer)).unwrap();
            prop_assert_eq!(message.command, request.command());
            prop_assert_eq!(message.service_key().unwrap(), key);
            if let Request::DelDest(..) = request {
                prop_assert_eq!(message.destination_key(key.family()).unwrap(), at);
            }
        }
    }

    #[test]
    fn daemons_come_back_as_they_were(daemon in daemons()) {
        let buffer = encode(&Request::NewDaemon(&daemon), 1);
        let message = Message::decode(payload(&buffer)).unwrap();
        prop_assert_eq!(message.command, Command::NewDaemon);
        prop_assert_eq!(message.daemon_state().unwrap(), daemon.state);
        prop_assert_eq!(message.daemon().unwrap(), daemon.clone());

        let buffer = encode(&Request::DelDaemon(daemon.state), 1);
        let message = Message::decode(payload(&buffer)).unwrap();
        prop_assert_eq!(message.command, Command::DelDaemon);
        prop_assert_eq!(message.daemon_state().unwrap(), daemon.state);
    }

    #[test]
    fn timeouts_come_back_as_they_were(timeouts in timeouts()) {
        let buffer = encode(&Request::SetConfig(timeouts), 1);
        let message = Message::decode(payload(&buffer)).unwrap();
        prop_assert_eq!(message.command, Command::SetConfig);
        prop_assert_eq!(message.timeouts().unwrap(), timeouts);
    }

    #[test]
    fn messages_appended_to_one_buffer_come_apart_again(
        services in proptest::collection::vec(keyed_services(), 1..20),
    ) {
        let mut buffer = Vec::new();
        for (sequence, (key, service)) in (7..).zip(&services) {
            let header = Header { family: FAMILY_ID, flags: flags::REQUEST, sequence };
            Request::NewService(key, service).encode(header, &mut buffer);
            prop_assert_eq!(buffer.len() % 4, 0);
        }
        let frames: Vec<_> = Frames::new(&buffer).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(frames.len(), services.len());
        for ((sequence, frame), (key, service)) in (7..).zip(&frames).zip(&services) {
            prop_assert_eq!(frame.sequence, sequence);
            prop_assert_eq!(frame.flags, flags::REQUEST);
            let Body::Family(FAMILY_ID, payload) = frame.body else { panic!("{frame:?}") };
            let record = Message::decode(payload).unwrap().service().unwrap();
            prop_assert_eq!(record.key, *key);
            prop_assert_eq!(&record.service, service);
        }
    }
}

#[test]
fn requests_without_arguments_come_back_as_they_were() {
    let requests = [
        (Request::DumpServices, Command::GetService, flags::DUMP),
        (Request::DumpDaemons, Command::GetDaemon, flags::DUMP),
        (Request::GetConfig, Command::GetConfig, 0),
        (Request::GetInfo, Command::GetInfo, 0),
        (Request::Zero(None), Command::Zero, flags::ACK),
        (Request::Flush, Command::Flush, flags::ACK),
    ];
    for (request, command, flags) in requests {
        assert_eq!(request.flags(), flags::REQUEST | flags);
        let buffer = encode(&request, 9);
        assert_eq!(buffer.len(), 20, "{request:?}");
        assert_eq!(Message::decode(payload(&buffer)).unwrap().command, command);
    }
}

#[test]
fn commands_have_the_kernels_numbers() {
    let numbers: Vec<_> = Command::ALL
        .iter()
        .map(|command| command.number())
        .collect();
    assert_eq!(numbers, (1..=17).collect::<Vec<_>>());
    for command in Command::ALL {
        let payload = [command.number(), 1, 0, 0];
        assert_eq!(Message::decode(&payload).unwrap().command, command);
    }
    for unknown in [0, 18, 255] {
        let payload = [unknown, 1, 0, 0];
        let decoded = Message::decode(&payload);
        assert_eq!(decoded.unwrap_err(), Malformed::Command(unknown));
    }
}

#[test]
fn every_operation_is_the_request_it_says() {
    let key = Key::Fwmark {
        family: Family::Ipv4,
        mark: 1,
    };
    let (service, (at, destination)) = (web_service(), ipip_destination());
    let commands: BTreeSet<_> = [
        Operation::AddService(key, service.clone()),
        Operation::EditService(key, service),
        Operation::DeleteService(key),
        Operation::AddDestination(key, at, destination),
        Operation::EditDestination(key, at, destination),
        Operation::DeleteDestination(key, at),
    ]
    .iter()
    .map(|operation| Request::from(operation).command())
    .collect();
    let all = [
        Command::NewService,
        Command::SetService,
        Command::DelService,
        Command::NewDest,
        Command::SetDest,
        Command::DelDest,
    ];
    assert_eq!(commands, all.into());
}

// === the kernel's conventions ===

fn web() -> Key {
    Key::Address {
        protocol: 6,
        address: "10.0.0.1".parse().unwrap(),
        port: 80,
    }
}

fn web_service() -> Service {
    Service {
        scheduler: "wrr".to_owned(),
        flags: service_flags::PERSISTENT,
        timeout: 300,
        netmask: 24,
        engine: None,
    }
}

fn ipip_destination() -> (DestinationKey, Destination) {
    let destination = Destination {
        forward: ForwardMethod::Tunnel,
        weight: 5,
        upper_threshold: 20,
        lower_threshold: 10,
        encapsulation: Encapsulation::default(),
    };
    (
        DestinationKey::new("192.168.0.1".parse().unwrap(), 8080),
        destination,
    )
}

/// Attributes of the message's nested attribute `kind`.
fn nested(message: &[u8], kind: u16) -> Vec<(u16, Vec<u8>)> {
    let nested = Attributes::new(&message[20..]).find(kind).unwrap().unwrap();
    Attributes::new(nested)
        .map(|attribute| {
            attribute
                .map(|(kind, value)| (kind, value.to_vec()))
                .unwrap()
        })
        .collect()
}

#[test]
fn a_service_is_written_as_the_kernel_expects_it() {
    let (key, service) = (web(), web_service());
    let buffer = encode(&Request::NewService(&key, &service), 1);
    let mut address = vec![0; 16];
    address[..4].copy_from_slice(&[10, 0, 0, 1]);
    let flags_and_mask = [1_u32.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat();
    assert_eq!(
        nested(&buffer, 1),
        [
            (1, 2_u16.to_ne_bytes().to_vec()),
            (2, 6_u16.to_ne_bytes().to_vec()),
            (3, address),
            (4, vec![0, 80]),
            (6, b"wrr\0".to_vec()),
            (7, flags_and_mask),
            (8, 300_u32.to_ne_bytes().to_vec()),
            (9, vec![255, 255, 255, 0]),
        ]
    );
}

#[test]
fn an_ipv6_netmask_is_a_prefix_length_in_host_order() {
    let key = Key::Fwmark {
        family: Family::Ipv6,
        mark: 5,
    };
    let service = Service {
        netmask: 64,
        ..web_service()
    };
    let buffer = encode(&Request::SetService(&key, &service), 1);
    let netmask = nested(&buffer, 1).into_iter().find(|(kind, _)| *kind == 9);
    assert_eq!(netmask, Some((9, 64_u32.to_ne_bytes().to_vec())));
}

#[test]
fn a_destination_always_carries_its_family_and_its_tunnel() {
    let (at, destination) = ipip_destination();
    let key = Key::Address {
        protocol: 6,
        address: "2001:db8::1".parse().unwrap(),
        port: 80,
    };
    let buffer = encode(&Request::SetDest(&key, &at, &destination), 1);
    let attributes = nested(&buffer, 2);
    // An IPv4 server behind an IPv6 service.
    assert!(attributes.contains(&(11, 2_u16.to_ne_bytes().to_vec())));
    for tunnel in [(13, vec![0]), (14, vec![0, 0]), (15, vec![0, 0])] {
        assert!(attributes.contains(&tunnel), "{attributes:?}");
    }
}

/// Replaces the first four bytes of the value of an attribute.
fn patched(mut buffer: Vec<u8>, length: u16, kind: u16, value: [u8; 4]) -> Vec<u8> {
    let header = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    let at = buffer.windows(4).position(|window| window == header);
    let at = at.unwrap() + 4;
    buffer[at..at + 4].copy_from_slice(&value);
    buffer
}

#[test]
fn a_netmask_that_is_no_prefix_is_read_as_one_no_catalog_asks_for() {
    let (key, service) = (web(), web_service());
    let buffer = encode(&Request::NewService(&key, &service), 1);
    let buffer = patched(buffer, 8, 9, [255, 0, 255, 0]);
    let record = Message::decode(payload(&buffer))
        .unwrap()
        .service()
        .unwrap();
    assert_eq!(record.service.netmask, 0);
}

#[test]
fn the_kernels_own_flag_is_neither_written_nor_read() {
    let (key, mut service) = (web(), web_service());
    service.flags = service_flags::SCHEDULER_2 | service_flags::HASHED;
    let buffer = encode(&Request::NewService(&key, &service), 1);
    let written = nested(&buffer, 1).into_iter().find(|(kind, _)| *kind == 7);
    assert_eq!(
        written.unwrap().1[..4],
        service_flags::SCHEDULER_2.to_ne_bytes()
    );

    let buffer = patched(buffer, 12, 7, service.flags.to_ne_bytes());
    let record = Message::decode(payload(&buffer))
        .unwrap()
        .service()
        .unwrap();
    assert_eq!(record.service.flags, service_flags::SCHEDULER_2);
}

#[test]
fn a_destination_without_a_family_has_its_services() {
    let mut nested = Vec::new();
    for (kind, value) in [(3_u16, 0_u32), (4, 1), (5, 0), (6, 0)] {
        nested.extend([8_u16.to_ne_bytes(), kind.to_ne_bytes()].concat());
        nested.extend(value.to_ne_bytes());
    }
    nested.extend([20_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat());
    nested.extend([10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    nested.extend([6_u16.to_ne_bytes(), 2_u16.to_ne_bytes()].concat());
    nested.extend([31, 144, 0, 0]);
    let mut payload = vec![Command::NewDest.number(), 1, 0, 0];
    let length = u16::try_from(nested.len() + 4).unwrap();
    payload.extend([length.to_ne_bytes(), 2_u16.to_ne_bytes()].concat());
    payload.extend(nested);

    let message = Message::decode(&payload).unwrap();
    let (at, live) = message.destination(Family::Ipv4).unwrap();
    assert_eq!(at.to_string(), "10.0.0.9:8080");
    assert_eq!(live.destination.encapsulation, Encapsulation::default());
    let (at, _) = message.destination(Family::Ipv6).unwrap();
    assert_eq!(at.address, IpAddr::from([0x0a00, 9, 0, 0, 0, 0, 0, 0]));
}

#[test]
fn a_name_that_is_too_long_is_cut_where_the_kernel_still_refuses_it() {
    let key = web();
    let service = Service {
        scheduler: "x".repeat(100_000),
        ..web_service()
    };
    let buffer = encode(&Request::NewService(&key, &service), 1);
    let record = Message::decode(payload(&buffer))
        .unwrap()
        .service()
        .unwrap();
    assert_eq!(record.service.scheduler.len(), 255);
}

// === hostile bytes ===

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        decode_all(&bytes);
        for attribute in Attributes::new(&bytes) {
            let _ = attribute;
        }
        let _ = Message::decode(&bytes);
        let _ = controller::family_id(&bytes);
    }

    #[test]
    fn mutated_messages_never_panic(
        (key, service) in keyed_services(),
        (at, destination) in destinations(),
        daemon in daemons(),
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut buffer = Vec::new();
        for request in [
            Request::NewService(&key, &service),
            Request::NewDest(&key, &at, &destination),
            Request::NewDaemon(&daemon),
            Request::SetConfig(Timeouts::default()),
        ] {
            buffer.extend(encode(&request, 1));
        }
        for (index, byte) in mutations {
            let index = index.index(buffer.len());
            buffer[index] = byte;
        }
        decode_all(&buffer);
        decode_all(&buffer[..cut.index(buffer.len())]);
    }

    #[test]
    fn every_iteration_ends(bytes in proptest::collection::vec(0..8_u8, 0..200)) {
        prop_assert!(Frames::new(&bytes).count() <= bytes.len() / 16 + 1);
        prop_assert!(Attributes::new(&bytes).count() <= bytes.len() / 4 + 1);
    }
}
