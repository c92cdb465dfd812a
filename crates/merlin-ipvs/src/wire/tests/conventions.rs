//! What the kernel expects of a request, attribute by attribute.

use super::*;

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
