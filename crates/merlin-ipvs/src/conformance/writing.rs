//! What operations do.

use std::collections::BTreeMap;

use merlin_model::Family;
use merlin_model::table::{Entry, ForwardMethod, Operation, Service, Table, flags};

use super::samples::{
    additions, at, every_destination, every_service, many, service, table as sample, tcp, to,
};
use super::{apply, dump};
use crate::Dataplane;

cases![
    a_table_begins_empty,
    services_are_read_back_as_they_were_added,
    destinations_are_read_back_as_they_were_added,
    an_edit_replaces_every_setting_of_a_service,
    an_edit_replaces_every_setting_of_a_destination,
    an_edited_service_keeps_its_destinations,
    a_service_without_a_scheduler_gets_one_by_an_edit,
    a_deleted_service_takes_its_destinations_along,
    a_deleted_destination_leaves_the_others,
    what_was_deleted_can_be_added_again,
    a_batch_sees_its_own_earlier_operations,
    a_large_table_is_read_back_whole,
    no_operations_do_nothing,
];

fn a_table_begins_empty(table: &mut dyn Dataplane) {
    assert_eq!(dump(table), Table::default());
}

fn services_are_read_back_as_they_were_added(table: &mut dyn Dataplane) {
    let services = every_service();
    apply(table, &additions(&services));
    assert_eq!(dump(table), services);
}

fn destinations_are_read_back_as_they_were_added(table: &mut dyn Dataplane) {
    let destinations = every_destination();
    apply(table, &additions(&destinations));
    assert_eq!(dump(table), destinations);
}

fn an_edit_replaces_every_setting_of_a_service(table: &mut dyn Dataplane) {
    let key = tcp("10.0.0.1", 80);
    let plain = service(&key, "rr");
    let rich = Service {
        scheduler: "sh".to_owned(),
        flags: flags::PERSISTENT | flags::SCHEDULER_1 | flags::SCHEDULER_2,
        timeout: 300,
        netmask: 16,
        engine: Some("sip".to_owned()),
    };
    apply(table, &[Operation::AddService(key, plain.clone())]);
    for wanted in [rich.clone(), plain.clone(), rich] {
        apply(table, &[Operation::EditService(key, wanted.clone())]);
        assert_eq!(dump(table), sample([(key, wanted, Vec::new())]));
    }
}

fn an_edit_replaces_every_setting_of_a_destination(table: &mut dyn Dataplane) {
    for (key, entry) in every_destination().services {
        let server = if key.family() == Family::Ipv4 {
            at("192.168.0.1", 80)
        } else {
            at("2001:db8::101", 80)
        };
        let first = to(ForwardMethod::Masq, 1);
        apply(
            table,
            &[
                Operation::AddService(key, service(&key, "rr")),
                Operation::AddDestination(key, server, first),
            ],
        );
        for wanted in entry.destinations.into_values() {
            apply(table, &[Operation::EditDestination(key, server, wanted)]);
            let expected = sample([(key, service(&key, "rr"), vec![(server, wanted)])]);
            assert_eq!(dump(table), expected);
        }
        apply(table, &[Operation::DeleteService(key)]);
    }
}

fn an_edited_service_keeps_its_destinations(table: &mut dyn Dataplane) {
    let mut expected = many(1, 20);
    apply(table, &additions(&expected));
    for (key, entry) in &mut expected.services {
        entry.service = Service {
            flags: flags::SCHEDULER_2,
            ..service(key, "sh")
        };
        apply(
            table,
            &[Operation::EditService(*key, entry.service.clone())],
        );
    }
    assert_eq!(dump(table), expected);
}

/// Adding destinations to a service that has none yet is quick where the scheduler would rebuild
/// its table for each.
fn a_service_without_a_scheduler_gets_one_by_an_edit(table: &mut dyn Dataplane) {
    let mut expected = many(1, 50);
    for entry in expected.services.values_mut() {
        entry.service.scheduler = "none".to_owned();
    }
    apply(table, &additions(&expected));
    for (key, entry) in &mut expected.services {
        entry.service = Service {
            flags: flags::SCHEDULER_2,
            ..service(key, "mh")
        };
        apply(
            table,
            &[Operation::EditService(*key, entry.service.clone())],
        );
    }
    assert_eq!(dump(table), expected);
}

fn a_deleted_service_takes_its_destinations_along(table: &mut dyn Dataplane) {
    let mut expected = many(2, 5);
    apply(table, &additions(&expected));
    let (key, entry) = expected.services.pop_first().expect("there are two");
    apply(table, &[Operation::DeleteService(key)]);
    assert_eq!(dump(table), expected);
    apply(table, &[Operation::AddService(key, entry.service.clone())]);
    let bare = Entry {
        service: entry.service,
        destinations: BTreeMap::new(),
    };
    expected.services.insert(key, bare);
    assert_eq!(dump(table), expected);
}

fn a_deleted_destination_leaves_the_others(table: &mut dyn Dataplane) {
    let mut expected = many(2, 5);
    apply(table, &additions(&expected));
    for (key, entry) in &mut expected.services {
        let (at, _) = entry.destinations.pop_last().expect("there are five");
        apply(table, &[Operation::DeleteDestination(*key, at)]);
    }
    assert_eq!(dump(table), expected);
}

fn what_was_deleted_can_be_added_again(table: &mut dyn Dataplane) {
    let expected = every_destination();
    let mut operations = Vec::new();
    for round in 0..3 {
        operations.extend(additions(&expected));
        if round < 2 {
            let keys = expected.services.keys();
            operations.extend(keys.map(|key| Operation::DeleteService(*key)));
        }
    }
    apply(table, &operations);
    assert_eq!(dump(table), expected);
}

fn a_batch_sees_its_own_earlier_operations(table: &mut dyn Dataplane) {
    let key = tcp("10.0.0.1", 80);
    let server = at("192.168.0.1", 80);
    apply(
        table,
        &[
            Operation::AddService(key, service(&key, "rr")),
            Operation::AddDestination(key, server, to(ForwardMethod::Masq, 1)),
            Operation::EditService(key, service(&key, "wrr")),
            Operation::EditDestination(key, server, to(ForwardMethod::Route, 2)),
            Operation::DeleteDestination(key, server),
            Operation::AddDestination(key, server, to(ForwardMethod::Route, 3)),
        ],
    );
    let destinations = vec![(server, to(ForwardMethod::Route, 3))];
    assert_eq!(
        dump(table),
        sample([(key, service(&key, "wrr"), destinations)])
    );
}

fn a_large_table_is_read_back_whole(table: &mut dyn Dataplane) {
    for expected in [many(1, 3000), many(700, 2)] {
        apply(table, &additions(&expected));
        assert!(dump(table) == expected, "something is missing or changed");
        let keys = expected.services.keys();
        let deletions: Vec<_> = keys.map(|key| Operation::DeleteService(*key)).collect();
        apply(table, &deletions);
    }
}

fn no_operations_do_nothing(table: &mut dyn Dataplane) {
    apply(table, &[]);
    assert_eq!(dump(table), Table::default());
}
