//! Laws of `desired` and `plan`, over catalogs, health and tables small enough to collide.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may, and the lint only spares the tests themselves"
)]

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use merlin_model::table::{
    Destination, Encapsulation, Entry, ForwardMethod, Key, NO_SCHEDULER, Operation, Service, Table,
};
use merlin_model::{
    Catalog, Command, Family, HealthCheck, HealthView, Mutation, Scheduler, ServiceId, ServiceKey,
    Timestamp, Verdict,
};
use merlin_reconcile::desired::{Desired, Traffic, desired, desired_services};
use merlin_reconcile::plan::{Foreign, Plan, plan};
use proptest::prelude::*;

use support::*;

const SERVICES: [&str; 4] = ["api", "dns", "ftp", "web"];
const SERVERS: [&str; 4] = ["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80", "10.1.0.4:8080"];
const SCHEDULERS: [Scheduler; 3] = [Scheduler::Rr, Scheduler::Wlc, Scheduler::Mh];

fn service_keys() -> Vec<ServiceKey> {
    let mark = ServiceKey::Fwmark {
        mark: NonZeroU32::MIN,
        family: Family::Ipv4,
    };
    vec![
        tcp("10.0.0.1:80"),
        tcp("10.0.0.2:80"),
        tcp("10.0.0.3:443"),
        mark,
    ]
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let service = || prop::sample::select(&SERVICES[..]);
    let at = || prop::sample::select(&SERVERS[..]);
    let key = || prop::sample::select(service_keys());
    let scheduler = || prop::sample::select(&SCHEDULERS[..]);
    let check = || {
        prop::bool::ANY.prop_map(|on| {
            if on {
                checked()
            } else {
                HealthCheck::default()
            }
        })
    };
    prop_oneof![
        4 => (service(), key(), scheduler()).prop_map(|(s, k, a)| create_service(s, k, a)),
        6 => (service(), at(), 0..3_u32, check()).prop_map(|(s, a, w, c)| create_server(s, a, w, c)),
        1 => (service(), key()).prop_map(|(s, k)| move_service(s, k)),
        1 => (service(), scheduler()).prop_map(|(s, a)| set_scheduler(s, a)),
        1 => (service(), at(), 0..3_u32).prop_map(|(s, a, w)| set_weight(s, a, w)),
        1 => (service(), at(), check()).prop_map(|(s, a, c)| set_check(s, a, c)),
        1 => service().prop_map(delete_service),
        1 => (service(), at()).prop_map(|(s, a)| delete_server(s, a)),
    ]
}

/// Some catalog; commands it refuses are part of its history too.
fn some_catalog() -> impl Strategy<Value = Catalog> {
    prop::collection::vec(mutation(), 0..30).prop_map(|mutations| {
        let mut catalog = Catalog::default();
        grow(&mut catalog, mutations);
        catalog
    })
}

fn grow(catalog: &mut Catalog, mutations: Vec<Mutation>) {
    for mutation in mutations {
        let _ = catalog.apply(&Command::new(Timestamp(0), mutation));
    }
}

fn some_health() -> impl Strategy<Value = HealthView> {
    let verdict = prop::sample::select(vec![Verdict::Unknown, Verdict::Up, Verdict::Down]);
    let one = (
        prop::sample::select(&SERVICES[..]),
        prop::sample::select(&SERVERS[..]),
        verdict,
    );
    prop::collection::vec(one, 0..12).prop_map(|verdicts| {
        let mut view = HealthView::default();
        for (service, at, verdict) in verdicts {
            judge(&mut view, service, at, verdict);
        }
        view
    })
}

/// Some table: keys a catalog can hold and keys it cannot.
fn some_table() -> impl Strategy<Value = Table> {
    let mut keys: Vec<Key> = service_keys().iter().map(Key::from).collect();
    keys.push(Key::Address {
        protocol: 99,
        address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9)),
        port: 0,
    });
    let service =
        prop::sample::select(vec!["rr", "wlc", "mh", "none", "dh"]).prop_map(|name| Service {
            scheduler: name.to_owned(),
            flags: 0,
            timeout: 0,
            netmask: 32,
            engine: None,
        });
    let forward = prop::sample::select(vec![ForwardMethod::Route, ForwardMethod::Masq]);
    let destination = (forward, 0..3_u32).prop_map(|(forward, weight)| Destination {
        forward,
        weight,
        upper_threshold: 0,
        lower_threshold: 0,
        encapsulation: Encapsulation::default(),
    });
    let at = prop::sample::select(&SERVERS[..]).prop_map(server);
    let destinations = prop::collection::btree_map(at, destination, 0..5);
    let entry = (service, destinations).prop_map(|(service, destinations)| Entry {
        service,
        destinations,
    });
    prop::collection::btree_map(prop::sample::select(keys), entry, 0..5)
        .prop_map(|services| Table { services })
}

fn some_policy() -> impl Strategy<Value = Foreign> {
    prop::sample::select(vec![Foreign::Delete, Foreign::Keep])
}

/// The table after a plan; the plan must hold nothing the kernel would refuse.
fn simulate(actual: &Table, plan: &Plan) -> Table {
    let mut table = actual.clone();
    for operation in &plan.operations {
        carry_out(&mut table, operation).unwrap();
    }
    table
}

/// What a table should end up as: the wanted services and the foreign ones that stay.
fn destination_of(desired: &Desired, actual: &Table, plan: &Plan) -> Table {
    let mut table = desired.given(actual);
    for key in &plan.foreign {
        table.services.insert(*key, actual.services[key].clone());
    }
    table
}

/// Checks that a table on the way from `actual` to `target` serves what both of them serve.
fn assert_serves(midway: &Table, actual: &Table, target: &Table) {
    for (key, before) in &actual.services {
        let Some(after) = target.services.get(key) else {
            continue;
        };
        let now = midway
            .services
            .get(key)
            .expect("a service both want is there");
        let had_scheduler = before.service.scheduler != NO_SCHEDULER;
        assert!(now.service.scheduler != NO_SCHEDULER || !had_scheduler);
        for (at, before) in &before.destinations {
            let Some(after) = after.destinations.get(at) else {
                continue;
            };
            let now = now
                .destinations
                .get(at)
                .expect("a destination both want is there");
            if before.weight > 0 && after.weight > 0 {
                assert!(now.weight > 0, "{at} of {key} lost its weight midway");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_plan_leads_to_the_desired_table_and_then_there_is_nothing_left_to_do(
        catalog in some_catalog(),
        health in some_health(),
        actual in some_table(),
        foreign in some_policy(),
    ) {
        let desired = desired(&catalog, &health);
        let first = plan(&desired, &actual, foreign);
        let reached = simulate(&actual, &first);
        prop_assert_eq!(&reached, &destination_of(&desired, &actual, &first));
        let second = plan(&desired, &reached, foreign);
        prop_assert!(second.operations.is_empty(), "{:?}", second);
        prop_assert_eq!(first.foreign, second.foreign);
    }

    #[test]
    fn every_prefix_of_a_plan_serves_what_is_served_before_and_after(
        catalog in some_catalog(),
        health in some_health(),
        actual in some_table(),
        foreign in some_policy(),
    ) {
        let desired = desired(&catalog, &health);
        let plan = plan(&desired, &actual, foreign);
        let target = destination_of(&desired, &actual, &plan);
        let mut table = actual.clone();
        for operation in &plan.operations {
            carry_out(&mut table, operation).unwrap();
            assert_serves(&table, &actual, &target);
        }
    }

    #[test]
    fn deletions_come_last_and_nothing_deleted_comes_back(
        catalog in some_catalog(),
        health in some_health(),
        actual in some_table(),
        foreign in some_policy(),
    ) {
        let desired = desired(&catalog, &health);
        let plan = plan(&desired, &actual, foreign);
        let rank = |operation: &Operation| match operation {
            Operation::DeleteService(_) => 2,
            Operation::DeleteDestination(..) => 1,
            _ => 0,
        };
        prop_assert!(plan.operations.is_sorted_by_key(rank));
        for operation in &plan.operations {
            match operation {
                Operation::DeleteService(key) => prop_assert!(!desired.services.contains_key(key)),
                Operation::DeleteDestination(key, at) => {
                    prop_assert!(!desired.services[key].destinations.contains_key(at));
                }
                _ => {}
            }
        }
    }

    #[test]
    fn foreign_services_stay_when_told_to_and_a_pristine_catalog_deletes_nothing(
        catalog in some_catalog(),
        health in some_health(),
        actual in some_table(),
        foreign in some_policy(),
    ) {
        let desired = desired(&catalog, &health);
        let plan = plan(&desired, &actual, foreign);
        let stays = foreign == Foreign::Keep || catalog.is_pristine();
        let reached = simulate(&actual, &plan);
        for (key, entry) in &actual.services {
            if !desired.services.contains_key(key) {
                prop_assert_eq!(plan.foreign.contains(key), stays);
                prop_assert_eq!(reached.services.get(key), stays.then_some(entry));
            }
        }
        if catalog.is_pristine() {
            prop_assert!(plan.operations.is_empty());
        }
    }

    #[test]
    fn a_restart_that_forgets_every_verdict_changes_nothing(
        catalog in some_catalog(),
        health in some_health(),
        before in some_table(),
    ) {
        let programmed = desired(&catalog, &health).given(&before);
        let after_restart = desired(&catalog, &HealthView::default());
        let plan = plan(&after_restart, &programmed, Foreign::Delete);
        prop_assert!(plan.operations.is_empty(), "{:?}", plan);
    }

    #[test]
    fn a_destination_without_a_verdict_neither_gains_nor_loses_traffic(
        catalog in some_catalog(),
        actual in some_table(),
    ) {
        let desired = desired(&catalog, &HealthView::default());
        let given = desired.given(&actual);
        for (key, wanted) in &desired.services {
            for (at, destination) in &wanted.destinations {
                if destination.traffic != Traffic::AsBefore || destination.settings.weight == 0 {
                    continue;
                }
                let weight = |table: &Table| {
                    let entry = table.services.get(key);
                    entry.and_then(|e| e.destinations.get(at)).map_or(0, |d| d.weight)
                };
                prop_assert_eq!(weight(&actual) > 0, weight(&given) > 0);
            }
        }
    }

    #[test]
    fn planning_service_by_service_amounts_to_planning_the_whole(
        mut catalog in some_catalog(),
        later in prop::collection::vec(mutation(), 0..10),
        health in some_health(),
        actual in some_table(),
    ) {
        let earlier = catalog.clone();
        grow(&mut catalog, later);
        // The table merlin would have left, disturbed at some keys.
        let mut table = desired(&earlier, &health).given(&actual);
        table.services.extend(actual.services);
        let whole = plan(&desired(&catalog, &health), &table, Foreign::Keep);

        let mut pieces = table.clone();
        let ids: BTreeSet<ServiceId> = catalog.services().map(|service| service.id.clone()).collect();
        for id in &ids {
            let part = desired_services(&catalog, &health, [id]);
            let mut read = Table::default();
            for key in part.keys() {
                if let Some(entry) = pieces.services.get(key) {
                    read.services.insert(*key, entry.clone());
                }
            }
            prop_assert!(part.keys().all(|key| part.owner(key) == Some(id)));
            let part = plan(&part, &read, Foreign::Keep);
            prop_assert!(part.foreign.is_empty());
            pieces = simulate(&pieces, &part);
        }
        prop_assert_eq!(pieces, simulate(&table, &whole));
    }

    #[test]
    fn a_destination_is_never_added_to_a_scheduler_that_recomputes_unless_it_serves_already(
        catalog in some_catalog(),
        health in some_health(),
        actual in some_table(),
    ) {
        let plan = plan(&desired(&catalog, &health), &actual, Foreign::Keep);
        let mut table = actual.clone();
        for operation in &plan.operations {
            if let Operation::AddDestination(key, ..) = operation {
                let serves = actual.services.contains_key(key);
                prop_assert!(serves || table.services[key].service.scheduler != "mh");
            }
            carry_out(&mut table, operation).unwrap();
        }
    }
}
