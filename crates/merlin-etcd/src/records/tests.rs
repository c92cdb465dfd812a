//! Records as old nodes, newer nodes and broken tools write them.

use merlin_model::{Forwarding, ServiceKey};
use proptest::prelude::*;

use super::*;

/// A field on the wire: its number, and a length-delimited value.
fn field(number: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_key(
        number,
        prost::encoding::WireType::LengthDelimited,
        &mut bytes,
    );
    prost::encoding::encode_varint(value.len() as u64, &mut bytes);
    bytes.extend(value);
    bytes
}

fn varint(number: u32, value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_key(number, prost::encoding::WireType::Varint, &mut bytes);
    prost::encoding::encode_varint(value, &mut bytes);
    bytes
}

fn id() -> ServiceId {
    ServiceId::new("service1").unwrap()
}

const SERVER: &str = "172.16.1.1:555";

/// `service1` as the earlier system writes it.
fn service1(flags: &[&str]) -> Vec<u8> {
    let key = [field(1, b"10.1.1.1"), varint(2, 888), varint(3, 1)].concat();
    let mut config = field(1, b"wrr");
    for flag in flags {
        config.extend(field(2, flag.as_bytes()));
    }
    [field(1, b"service1"), field(2, &key), field(3, &config)].concat()
}

/// A server of `service1` as the earlier system writes it, with the bytes of its health check.
fn server1(check: Option<&[u8]>) -> Vec<u8> {
    let key = [field(1, b"172.16.1.1"), varint(2, 555)].concat();
    let config = [field(1, &varint(1, 2)), varint(2, 3)].concat();
    let mut server = [field(1, b"service1"), field(2, &key), field(3, &config)].concat();
    if let Some(check) = check {
        server.extend(field(4, check));
    }
    server
}

fn check1(endpoint: &str) -> Vec<u8> {
    [
        field(1, &field(1, endpoint.as_bytes())),
        field(2, &varint(1, 5)),
        field(3, &varint(1, 1)),
        varint(4, 2),
        varint(5, 1),
    ]
    .concat()
}

#[test]
fn records_of_the_earlier_system_are_read_and_written_byte_for_byte() {
    let bytes = service1(&["flag-1", "flag-2"]);
    let read = read_service(&id(), &bytes).unwrap();
    assert_eq!(read.passed_over, None);
    assert_eq!(read.object.key.to_string(), "TCP 10.1.1.1:888");
    assert_eq!(write_service(&read.object, None), bytes);
    assert_eq!(write_service(&read.object, Some(&bytes)), bytes);

    let bytes = server1(Some(&check1("http://:556/health")));
    let read = read_server(&id(), SERVER, &bytes).unwrap();
    assert_eq!(read.passed_over, None);
    assert_eq!(read.object.config.forwarding, Forwarding::Masq);
    assert_eq!(write_server(&id(), &read.object, None), bytes);
    assert_eq!(write_server(&id(), &read.object, Some(&bytes)), bytes);
}

#[test]
fn revisions_are_never_written() {
    let mut service = read_service(&id(), &service1(&[])).unwrap().object;
    (service.created, service.changed) = (Revision(7), Revision(9));
    assert_eq!(write_service(&service, None), service1(&[]));
    let mut server = read_server(&id(), SERVER, &server1(Some(b"")))
        .unwrap()
        .object;
    (server.created, server.changed) = (Revision(7), Revision(9));
    assert_eq!(write_server(&id(), &server, None), server1(Some(b"")));
}

#[test]
fn a_missing_health_check_and_unset_fields_are_no_check() {
    for check in [None, Some(&b""[..]), Some(&field(1, b""))] {
        let read = read_server(&id(), SERVER, &server1(check)).unwrap();
        assert_eq!(read.passed_over, None, "{check:?}");
        assert_eq!(read.object.check.spec(), None);
    }
}

#[test]
fn a_health_check_that_cannot_run_leaves_the_server_in_place() {
    let no_period = [
        field(1, &field(1, b"http://:80/")),
        varint(4, 1),
        varint(5, 1),
    ]
    .concat();
    for check in [check1("https://:556/health"), check1("nonsense"), no_period] {
        let read = read_server(&id(), SERVER, &server1(Some(&check))).unwrap();
        let passed_over = read.passed_over.unwrap();
        assert!(passed_over.contains("health_check."), "{passed_over}");
        assert_eq!(read.object.check.spec(), None);
        assert_eq!(read.object.config.weight.get(), 2);
    }
}

#[test]
fn flags_that_mean_nothing_are_passed_over_and_told() {
    let read = read_service(&id(), &service1(&["flag-2", "turbo", "sh-port"])).unwrap();
    let passed_over = read.passed_over.unwrap();
    assert!(passed_over.contains("turbo, sh-port"), "{passed_over}");
    assert_eq!(read.object.config.flags.bits(), 0x10);
}

#[test]
fn garbage_and_records_in_the_wrong_place_say_what_is_wrong() {
    let other = ServiceId::new("other").unwrap();
    let reason = |unreadable: Unreadable| unreadable.to_string();
    assert!(reason(read_service(&id(), b"\xff\xff").unwrap_err()).contains("not a record"));
    assert!(reason(read_service(&other, &service1(&[])).unwrap_err()).contains("\"service1\""));
    assert!(reason(read_service(&id(), b"").unwrap_err()).contains("key: is required"));
    assert!(reason(read_server(&other, SERVER, &server1(None)).unwrap_err()).contains("service1"));
    let moved = read_server(&id(), "172.16.1.2:555", &server1(None)).unwrap_err();
    assert!(reason(moved).contains("172.16.1.1:555"));
}

#[test]
fn a_server_may_keep_the_name_that_the_earlier_system_gave_it() {
    let key = [field(1, b"::ffff:172.16.1.1"), varint(2, 555)].concat();
    let config = [field(1, &varint(1, 2)), varint(2, 3)].concat();
    let bytes = [field(1, b"service1"), field(2, &key), field(3, &config)].concat();
    for name in ["::ffff:172.16.1.1:555", SERVER] {
        let read = read_server(&id(), name, &bytes).unwrap();
        assert_eq!(read.object.key.to_string(), SERVER);
    }
}

#[test]
fn what_is_new_is_written_in_fields_that_old_nodes_skip() {
    let key = ServiceKey::Fwmark {
        mark: std::num::NonZeroU32::MIN,
        family: merlin_model::Family::Ipv6,
    };
    let service = VirtualService {
        key,
        ..read_service(&id(), &service1(&[])).unwrap().object
    };
    let bytes = write_service(&service, None);
    let message = types::VirtualService::decode(&*bytes).unwrap();
    let wire = message.key.unwrap();
    assert_eq!((wire.ip.as_str(), wire.port, wire.protocol), ("", 0, 0));
    assert_eq!(wire.fwmark, 1);
    assert_eq!(read_service(&id(), &bytes).unwrap().object.key, key);
}

#[test]
fn unknown_fields_survive_a_rewrite_at_every_depth() {
    let future = field(900, b"from the future");
    let key = [field(1, b"172.16.1.1"), varint(2, 555), future.clone()].concat();
    let config = [field(1, &varint(1, 2)), varint(2, 3), varint(901, 7)].concat();
    let check = [check1("http://:556/health"), varint(902, 1)].concat();
    let before = [
        field(1, b"service1"),
        field(2, &key),
        field(3, &config),
        field(4, &check),
        future.clone(),
    ]
    .concat();
    let mut server = read_server(&id(), SERVER, &before).unwrap().object;
    server.config.weight = merlin_model::Weight::new(9).unwrap();
    let after = write_server(&id(), &server, Some(&before));

    let contains = |part: &[u8]| after.windows(part.len()).filter(|at| *at == part).count();
    assert_eq!(contains(&future), 2);
    assert_eq!(contains(&varint(901, 7)), 1);
    assert_eq!(contains(&varint(902, 1)), 1);
    assert_eq!(read_server(&id(), SERVER, &after).unwrap().object, server);
    assert_eq!(write_server(&id(), &server, Some(&after)), after, "settles");
}

#[test]
fn fields_known_here_are_not_kept_from_the_earlier_bytes() {
    let before = service1(&["flag-1", "flag-2"]);
    let mut service = read_service(&id(), &before).unwrap().object;
    service.config.flags = SchedulerFlags::NONE;
    assert_eq!(write_service(&service, Some(&before)), service1(&[]));
}

proptest! {
    #[test]
    fn no_bytes_make_reading_or_rewriting_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_service(&id(), &bytes);
        let _ = read_server(&id(), SERVER, &bytes);
        let service = read_service(&id(), &service1(&[])).unwrap().object;
        let written = write_service(&service, Some(&bytes));
        prop_assert_eq!(read_service(&id(), &written).unwrap().object, service);
    }

    #[test]
    fn any_unknown_field_is_kept(number in 1000_u32..100_000, value in any::<u64>()) {
        let before = [service1(&[]), varint(number, value)].concat();
        let service = read_service(&id(), &before).unwrap().object;
        prop_assert_eq!(write_service(&service, Some(&before)), before);
    }
}
