mod captured;
mod conventions;
mod hostile;

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

// === samples ===

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
