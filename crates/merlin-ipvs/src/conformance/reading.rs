//! What can be read, and that reading changes nothing.

use std::collections::BTreeMap;

use merlin_model::table::{Counters, ForwardMethod, LiveTable, Operation};

use super::samples::{additions, at, every_destination, every_service, many, service, tcp, to};
use super::{apply, dump};
use crate::{Dataplane, DataplaneError, Fingerprint, Timeouts};

cases![
    every_service_is_listed_once,
    services_are_read_by_name_and_missing_ones_left_out,
    a_live_table_holds_what_a_dump_holds,
    a_fingerprint_stays_while_the_table_does,
    a_fingerprint_changes_with_what_it_covers,
    timeouts_are_set_and_a_zero_keeps_one,
    timeouts_beyond_the_kernels_range_are_refused,
];

fn every_service_is_listed_once(table: &mut dyn Dataplane) {
    let all = every_service();
    apply(table, &additions(&all));
    let mut keys = table.keys().expect("the services can be listed");
    keys.sort();
    assert!(keys.iter().eq(all.services.keys()), "{keys:?}");
}

fn services_are_read_by_name_and_missing_ones_left_out(table: &mut dyn Dataplane) {
    let mut all = every_destination();
    apply(table, &additions(&all));
    let missing = tcp("10.9.9.9", 9);
    let (out, _) = all.services.pop_first().expect("there are some");
    let mut keys: Vec<_> = all.services.keys().copied().collect();
    keys.extend([missing, keys[0]]);
    let read = table.read(&keys).expect("the table can be read");
    assert_eq!(read, all, "without {out} and {missing}");
    let none = table.read(&[missing]).expect("the table can be read");
    assert!(none.services.is_empty());
}

fn a_live_table_holds_what_a_dump_holds(table: &mut dyn Dataplane) {
    apply(table, &additions(&every_destination()));
    let dumped = dump(table);
    let live: LiveTable = table.live().expect("the counters can be read");
    assert!(live.keys().eq(dumped.services.keys()));
    for (key, entry) in &dumped.services {
        let service = &live[key];
        assert_eq!(service.service, entry.service);
        assert_eq!(service.counters, Counters::default(), "no traffic yet");
        let settings = service.destinations.iter();
        let settings = settings.map(|(at, live)| (*at, live.destination));
        assert_eq!(settings.collect::<BTreeMap<_, _>>(), entry.destinations);
        for live in service.destinations.values() {
            assert_eq!(live.active_connections, 0);
            assert_eq!(live.counters, Counters::default(), "no traffic yet");
        }
    }
}

fn fingerprint(table: &mut dyn Dataplane) -> Fingerprint {
    table.fingerprint().expect("the table has a fingerprint")
}

fn a_fingerprint_stays_while_the_table_does(table: &mut dyn Dataplane) {
    apply(table, &additions(&every_service()));
    apply(table, &additions(&many(20, 20)));
    let before = fingerprint(table);
    let _ = dump(table);
    assert_eq!(fingerprint(table), before);
    // Refused operations change nothing either.
    let _ = super::outcomes(table, &[Operation::DeleteService(tcp("10.9.9.9", 9))]);
    assert_eq!(fingerprint(table), before);
}

fn a_fingerprint_changes_with_what_it_covers(table: &mut dyn Dataplane) {
    let (key, server) = (tcp("10.0.0.1", 80), at("192.168.0.1", 80));
    let v6 = tcp("2001:db8::1", 80);
    let v6_server = at("2001:db8::2", 80);
    let operations = [
        Operation::AddService(key, service(&key, "rr")),
        Operation::AddDestination(key, server, to(ForwardMethod::Masq, 1)),
        Operation::EditDestination(key, server, to(ForwardMethod::Masq, 0)),
        Operation::EditDestination(key, server, to(ForwardMethod::Route, 0)),
        Operation::EditService(key, service(&key, "wrr")),
        Operation::AddService(v6, service(&v6, "rr")),
        Operation::AddDestination(v6, v6_server, to(ForwardMethod::Masq, 1)),
        Operation::EditDestination(v6, v6_server, to(ForwardMethod::Masq, 7)),
        Operation::DeleteDestination(key, server),
        Operation::DeleteService(key),
    ];
    let mut seen = vec![fingerprint(table)];
    for operation in operations {
        apply(table, std::slice::from_ref(&operation));
        let now = fingerprint(table);
        assert!(!seen.contains(&now), "{operation}");
        seen.push(now);
    }
}

fn timeouts_are_set_and_a_zero_keeps_one(table: &mut dyn Dataplane) {
    let all = Timeouts {
        tcp: 1000,
        tcp_fin: 100,
        udp: 200,
    };
    table.set_timeouts(all).expect("timeouts can be set");
    assert_eq!(table.timeouts().expect("timeouts can be read"), all);
    let one = Timeouts {
        tcp_fin: 30,
        ..Timeouts::default()
    };
    table.set_timeouts(one).expect("timeouts can be set");
    let expected = Timeouts { tcp_fin: 30, ..all };
    assert_eq!(table.timeouts().expect("timeouts can be read"), expected);
}

fn timeouts_beyond_the_kernels_range_are_refused(table: &mut dyn Dataplane) {
    let before = table.timeouts().expect("timeouts can be read");
    for seconds in [1 << 31, u32::MAX] {
        let wrong = Timeouts {
            udp: seconds,
            ..Timeouts::default()
        };
        let error = table.set_timeouts(wrong).expect_err("it is out of range");
        assert!(matches!(error, DataplaneError::Refused { .. }), "{error:?}");
    }
    assert_eq!(table.timeouts().expect("timeouts can be read"), before);
}
