//! The bytes that the earlier system writes, derived by hand from its field table, so that no
//! field number, type or name can drift.
//!
//! A field is its tag (`number << 3 | kind`; kind 0: varint, 2: length-delimited) and its value.

use prost::Message;
use prost_types::Duration;

use crate::types::list_response::Item;
use crate::types::{ListResponse, RealServer, VirtualService, real_server, virtual_service};
use crate::{FILE_DESCRIPTORS, server, service};

/// Builds the bytes of a message from a readable list.
fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn service1() -> VirtualService {
    VirtualService {
        id: "service1".into(),
        key: Some(virtual_service::Key {
            ip: "10.1.1.1".into(),
            port: 888,
            protocol: 2,
            ..Default::default()
        }),
        config: Some(virtual_service::Config {
            scheduler: "wrr".into(),
            flags: vec!["flag-1".into(), "flag-2".into()],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn service1_bytes() -> Vec<u8> {
    bytes(&[
        b"\x0a\x08service1",
        b"\x12\x0f", // key
        b"\x0a\x0810.1.1.1",
        b"\x10\xf8\x06", // 888
        b"\x18\x02",     // UDP
        b"\x1a\x15",     // config
        b"\x0a\x03wrr",
        b"\x12\x06flag-1",
        b"\x12\x06flag-2",
    ])
}

fn server1() -> RealServer {
    RealServer {
        service_id: "service1".into(),
        key: Some(real_server::Key {
            ip: "172.16.1.1".into(),
            port: 555,
        }),
        config: Some(real_server::Config {
            weight: Some(2),
            forward: 3,
            ..Default::default()
        }),
        health_check: Some(real_server::HealthCheck {
            endpoint: Some("http://:556/health".into()),
            period: Some(Duration {
                seconds: 5,
                nanos: 0,
            }),
            timeout: Some(Duration {
                seconds: 1,
                nanos: 500,
            }),
            up_threshold: 2,
            down_threshold: 1,
        }),
        ..Default::default()
    }
}

fn server1_bytes() -> Vec<u8> {
    bytes(&[
        b"\x0a\x08service1",
        b"\x12\x0f", // key
        b"\x0a\x0a172.16.1.1",
        b"\x10\xab\x04",     // 555
        b"\x1a\x06",         // config
        b"\x0a\x02\x08\x02", // weight: a wrapper of 2
        b"\x10\x03",         // MASQ
        b"\x22\x25",         // health_check
        b"\x0a\x14",         // endpoint: a wrapper
        b"\x0a\x12http://:556/health",
        b"\x12\x02\x08\x05",             // period
        b"\x1a\x05\x08\x01\x10\xf4\x03", // timeout
        b"\x20\x02",                     // up
        b"\x28\x01",                     // down
    ])
}

#[test]
fn services_have_the_bytes_of_the_earlier_system() {
    assert_eq!(service1().encode_to_vec(), service1_bytes());
    assert_eq!(VirtualService::decode(&*service1_bytes()), Ok(service1()));
}

#[test]
fn real_servers_have_the_bytes_of_the_earlier_system() {
    assert_eq!(server1().encode_to_vec(), server1_bytes());
    assert_eq!(RealServer::decode(&*server1_bytes()), Ok(server1()));
}

#[test]
fn a_plain_record_is_written_as_the_earlier_system_wrote_it() {
    let holder = service::stored(&service1()).unwrap();
    assert_eq!(
        VirtualService::from(&holder).encode_to_vec(),
        service1_bytes()
    );
    let (id, server) = server::stored(&server1()).unwrap();
    assert_eq!(
        server::record(&id, &server).encode_to_vec(),
        server1_bytes()
    );
}

#[test]
fn zero_in_a_wrapper_is_not_absence() {
    let drained = real_server::Config {
        weight: Some(0),
        ..Default::default()
    };
    assert_eq!(drained.encode_to_vec(), b"\x0a\x00");
    let off = real_server::HealthCheck {
        endpoint: Some(String::new()),
        ..Default::default()
    };
    assert_eq!(off.encode_to_vec(), b"\x0a\x00");
    assert_eq!(
        real_server::HealthCheck::decode(&b"\x0a\x02\x0a\x00"[..]),
        Ok(off)
    );
}

#[test]
fn a_server_without_a_check_has_an_empty_one_in_listings() {
    let bare = RealServer {
        health_check: None,
        ..server1()
    };
    let (id, server) = server::stored(&bare).unwrap();
    let bytes = server::record(&id, &server).encode_to_vec();
    assert!(bytes.ends_with(b"\x10\x03\x22\x00"), "{bytes:x?}");
}

#[test]
fn listings_have_the_bytes_of_the_earlier_system() {
    let listing = ListResponse {
        items: vec![Item {
            service: Some(service1()),
            servers: vec![server1()],
        }],
        revision: 0,
    };
    let (service, server) = (service1_bytes(), server1_bytes());
    let length = |of: &[u8]| u8::try_from(of.len()).unwrap();
    let item = bytes(&[
        &[0x0a, length(&service)],
        &service,
        &[0x12, length(&server)],
        &server,
    ]);
    // Two bytes of length: 128 and more.
    let low = u8::try_from(item.len() & 0x7f).unwrap() | 0x80;
    assert_eq!(listing.encode_to_vec(), bytes(&[&[0x0a, low, 0x01], &item]));
}

#[test]
fn names_are_those_of_the_earlier_system() {
    let pool = prost_reflect::DescriptorPool::decode(FILE_DESCRIPTORS).unwrap();
    let field = |message: &str, number| {
        let message = pool.get_message_by_name(message).unwrap();
        message.get_field(number).unwrap().json_name().to_owned()
    };
    assert_eq!(field("types.RealServer", 1), "serviceID");
    assert_eq!(field("types.RealServer", 4), "healthCheck");
    assert_eq!(field("types.RealServer.HealthCheck", 4), "upThreshold");
    let service = pool.get_service_by_name("types.Merlin").unwrap();
    let methods: Vec<_> = service.methods().map(|m| m.name().to_owned()).collect();
    assert_eq!(
        methods,
        [
            "CreateService",
            "UpdateService",
            "DeleteService",
            "CreateServer",
            "UpdateServer",
            "DeleteServer",
            "List",
        ]
    );
    let addresses = service.methods().map(|m| (m.input(), m.output()));
    let names: Vec<_> = addresses
        .map(|(i, o)| format!("{} -> {}", i.full_name(), o.full_name()))
        .collect();
    assert_eq!(
        names,
        [
            "types.VirtualService -> google.protobuf.Empty",
            "types.VirtualService -> google.protobuf.Empty",
            "google.protobuf.StringValue -> google.protobuf.Empty",
            "types.RealServer -> google.protobuf.Empty",
            "types.RealServer -> google.protobuf.Empty",
            "types.RealServer -> google.protobuf.Empty",
            "google.protobuf.Empty -> types.ListResponse",
        ]
    );
    let value = |name: &str, value: &str| {
        let names = pool.get_enum_by_name(name).unwrap();
        names.get_value_by_name(value).unwrap().number()
    };
    assert_eq!(value("types.Protocol", "TCP"), 1);
    assert_eq!(value("types.Protocol", "UDP"), 2);
    assert_eq!(value("types.ForwardMethod", "ROUTE"), 1);
    assert_eq!(value("types.ForwardMethod", "TUNNEL"), 2);
    assert_eq!(value("types.ForwardMethod", "MASQ"), 3);
}
