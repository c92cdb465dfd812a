//! What is refused, and how.

use merlin_model::Family;
use merlin_model::table::{Destination, ForwardMethod, Operation, Service, Table};

use super::samples::{additions, at, fwmark, service, table as sample, tcp, to, tunnel};
use super::{apply, dump, outcomes};
use crate::Dataplane;

cases![
    what_exists_is_not_added_again,
    what_is_missing_is_neither_edited_nor_deleted,
    unknown_schedulers_and_engines_are_refused,
    names_that_are_too_long_are_refused,
    netmasks_beyond_the_address_are_refused,
    numbers_out_of_range_are_refused,
    addresses_of_no_single_host_are_refused,
    the_other_family_is_reached_by_tunnel_only,
    a_refused_operation_does_not_stop_the_others,
    refusals_are_told_apart_however_many_there_are,
    refusals_say_what_to_do,
];

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const ERANGE: i32 = 34;

/// A table with one service and one destination.
fn small() -> Table {
    let key = tcp("10.0.0.1", 80);
    let servers = vec![(at("192.168.0.1", 80), to(ForwardMethod::Masq, 1))];
    sample([(key, service(&key, "rr"), servers)])
}

/// Checks that each operation is refused with its number and changes nothing of [`small`].
#[track_caller]
fn refused(table: &mut dyn Dataplane, expected: Vec<(Operation, i32)>) {
    apply(table, &additions(&small()));
    for (operation, number) in expected {
        let found = outcomes(table, std::slice::from_ref(&operation));
        assert_eq!(found, [number], "{operation:?}");
    }
    assert_eq!(dump(table), small());
}

fn what_exists_is_not_added_again(table: &mut dyn Dataplane) {
    let (key, server) = (tcp("10.0.0.1", 80), at("192.168.0.1", 80));
    let expected = vec![
        (Operation::AddService(key, service(&key, "wrr")), EEXIST),
        // There is more wrong with these, but this comes first.
        (Operation::AddService(key, service(&key, "bogus")), EEXIST),
        (
            Operation::AddDestination(key, server, to(ForwardMethod::Route, 9)),
            EEXIST,
        ),
    ];
    refused(table, expected);
}

fn what_is_missing_is_neither_edited_nor_deleted(table: &mut dyn Dataplane) {
    let (there, server) = (tcp("10.0.0.1", 80), at("192.168.0.1", 80));
    let masq = to(ForwardMethod::Masq, 1);
    let mut expected = Vec::new();
    for missing in [
        tcp("10.0.0.1", 81),
        tcp("10.0.0.2", 80),
        tcp("2001:db8::1", 80),
        fwmark(Family::Ipv4, 1),
        fwmark(Family::Ipv6, 1),
    ] {
        let other = service(&missing, "rr");
        expected.extend([
            (Operation::EditService(missing, other), ESRCH),
            (Operation::DeleteService(missing), ESRCH),
            (Operation::AddDestination(missing, server, masq), ESRCH),
            (Operation::EditDestination(missing, server, masq), ESRCH),
            (Operation::DeleteDestination(missing, server), ESRCH),
        ]);
    }
    for missing in [at("192.168.0.1", 81), at("192.168.0.2", 80)] {
        expected.extend([
            (Operation::EditDestination(there, missing, masq), ENOENT),
            (Operation::DeleteDestination(there, missing), ENOENT),
        ]);
    }
    // An edit is by address and port; another family is another destination.
    let v6 = at("2001:db8::1", 80);
    expected.push((Operation::DeleteDestination(there, v6), ENOENT));
    refused(table, expected);
}

fn unknown_schedulers_and_engines_are_refused(table: &mut dyn Dataplane) {
    let (there, new) = (tcp("10.0.0.1", 80), tcp("10.0.0.2", 80));
    let bogus = service(&new, "bogus");
    let nameless = service(&new, "");
    let engine = Service {
        engine: Some("bogus".to_owned()),
        ..service(&new, "rr")
    };
    let mut expected = Vec::new();
    for wrong in [bogus, nameless, engine] {
        expected.push((Operation::AddService(new, wrong.clone()), ENOENT));
        expected.push((Operation::EditService(there, wrong), ENOENT));
    }
    refused(table, expected);
}

fn names_that_are_too_long_are_refused(table: &mut dyn Dataplane) {
    let new = tcp("10.0.0.2", 80);
    let scheduler = |length| Operation::AddService(new, service(&new, &"x".repeat(length)));
    let engine = |length| {
        let engine = Some("x".repeat(length));
        Operation::AddService(
            new,
            Service {
                engine,
                ..service(&new, "rr")
            },
        )
    };
    let expected = vec![
        (scheduler(15), ENOENT),
        (scheduler(16), EINVAL),
        (scheduler(100_000), EINVAL),
        (engine(15), ENOENT),
        (engine(17), EINVAL),
    ];
    refused(table, expected);
}

fn netmasks_beyond_the_address_are_refused(table: &mut dyn Dataplane) {
    let new = tcp("2001:db8::1", 80);
    let with = |netmask| {
        let service = Service {
            netmask,
            ..service(&new, "rr")
        };
        Operation::AddService(new, service)
    };
    refused(table, vec![(with(0), EINVAL), (with(129), EINVAL)]);
}

fn numbers_out_of_range_are_refused(table: &mut dyn Dataplane) {
    let (key, there, new) = (
        tcp("10.0.0.1", 80),
        at("192.168.0.1", 80),
        at("192.168.0.2", 80),
    );
    let heavy = to(ForwardMethod::Masq, 1 << 31);
    let crossed = Destination {
        upper_threshold: 5,
        lower_threshold: 6,
        ..to(ForwardMethod::Masq, 1)
    };
    let mut expected = Vec::new();
    for (wrong, number) in [
        (heavy, ERANGE),
        (crossed, ERANGE),
        (tunnel(1, 0, 0), EINVAL),
    ] {
        expected.extend([
            (Operation::AddDestination(key, new, wrong), number),
            (Operation::EditDestination(key, there, wrong), number),
            // Whether it exists is looked at later.
            (Operation::AddDestination(key, there, wrong), number),
            (Operation::EditDestination(key, new, wrong), number),
        ]);
    }
    refused(table, expected);
}

fn addresses_of_no_single_host_are_refused(table: &mut dyn Dataplane) {
    let key = tcp("10.0.0.1", 80);
    let expected = ["0.0.0.0", "224.0.0.1", "239.1.2.3", "255.255.255.255"]
        .map(|address| {
            let server = at(address, 80);
            let add = Operation::AddDestination(key, server, to(ForwardMethod::Masq, 1));
            (add, EINVAL)
        })
        .to_vec();
    refused(table, expected);

    let key = tcp("2001:db8::1", 80);
    apply(table, &[Operation::AddService(key, service(&key, "rr"))]);
    for address in ["::", "ff02::1", "fe80::1", "::ffff:10.0.0.1"] {
        let server = at(address, 80);
        let add = Operation::AddDestination(key, server, to(ForwardMethod::Masq, 1));
        assert_eq!(outcomes(table, &[add]), [EINVAL], "{address}");
    }
}

fn the_other_family_is_reached_by_tunnel_only(table: &mut dyn Dataplane) {
    let key = tcp("10.0.0.1", 80);
    let server = at("2001:db8::2", 80);
    let methods = [
        ForwardMethod::Masq,
        ForwardMethod::Local,
        ForwardMethod::Route,
        ForwardMethod::Bypass,
    ];
    let adds = methods.map(|method| {
        let add = Operation::AddDestination(key, server, to(method, 1));
        (add, EINVAL)
    });
    refused(table, adds.to_vec());
    let add = Operation::AddDestination(key, server, to(ForwardMethod::Tunnel, 1));
    apply(table, &[add]);
}

fn a_refused_operation_does_not_stop_the_others(table: &mut dyn Dataplane) {
    let (key, server) = (tcp("10.0.0.1", 80), at("192.168.0.1", 80));
    let missing = tcp("10.0.0.9", 80);
    let masq = to(ForwardMethod::Masq, 1);
    let operations = [
        Operation::AddService(key, service(&key, "rr")),
        Operation::AddService(key, service(&key, "rr")),
        Operation::AddDestination(key, server, masq),
        Operation::AddDestination(missing, server, masq),
        Operation::AddDestination(key, at("192.168.0.2", 80), masq),
        Operation::DeleteDestination(key, at("192.168.0.3", 80)),
    ];
    let expected = [0, EEXIST, 0, ESRCH, 0, ENOENT];
    assert_eq!(outcomes(table, &operations), expected);
    let servers = vec![(server, masq), (at("192.168.0.2", 80), masq)];
    let expected = sample([(key, service(&key, "rr"), servers)]);
    assert_eq!(dump(table), expected);
}

fn refusals_are_told_apart_however_many_there_are(table: &mut dyn Dataplane) {
    let key = tcp("10.0.0.1", 80);
    let masq = to(ForwardMethod::Masq, 1);
    let server = |number: u16| at("192.168.0.1", number);
    // Of every 3, one is new, one is there already, and one has a bad weight.
    let operations: Vec<_> = (1..=1000)
        .flat_map(|number| {
            [
                Operation::AddDestination(key, server(number), masq),
                Operation::AddDestination(key, server(number), masq),
                Operation::AddDestination(key, server(number), to(ForwardMethod::Masq, 1 << 31)),
            ]
        })
        .collect();
    apply(table, &[Operation::AddService(key, service(&key, "rr"))]);
    let expected = [0, EEXIST, ERANGE].repeat(1000);
    assert_eq!(outcomes(table, &operations), expected);
    // And all of them at once.
    let expected = [EEXIST, EEXIST, ERANGE].repeat(1000);
    assert_eq!(outcomes(table, &operations), expected);
    assert_eq!(dump(table).services[&key].destinations.len(), 1000);
}

fn refusals_say_what_to_do(table: &mut dyn Dataplane) {
    let key = tcp("10.0.0.1", 80);
    let operations = [
        Operation::AddService(key, service(&key, "bogus")),
        Operation::DeleteService(key),
    ];
    let answers = table.apply(&operations).expect("the table can be changed");
    let words: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.expect_err("it is refused").to_string())
        .collect();
    assert_eq!(
        words,
        [
            "scheduler bogus is not available on this node: modprobe ip_vs_bogus",
            "there is no service TCP 10.0.0.1:80",
        ]
    );
}
