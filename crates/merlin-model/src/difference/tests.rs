//! Laws over random catalogs, and what people read.

use proptest::prelude::*;

use super::{Action, Difference, DifferenceError, Extra, Object, difference};
use crate::catalog::tests::generators;
use crate::catalog::{Catalog, Revision};
use crate::command::{Command, Mutation, Timestamp};
use crate::server::{HealthCheck, RealServerConfig, RealServerKey, Weight};
use crate::service::{Protocol, Scheduler, ServiceConfig, ServiceId, ServiceKey};
use crate::{Forwarding, SchedulerFlag, SchedulerFlags};

fn catalog() -> impl Strategy<Value = Catalog> {
    generators::commands().prop_map(|commands| {
        let mut catalog = Catalog::default();
        for command in commands {
            let _ = catalog.apply(&Command::new(command.at, command.mutation));
        }
        catalog
    })
}

/// What is declared, without revisions. Of a check that is off nothing else counts.
fn declared(catalog: &Catalog) -> Vec<(String, Vec<String>)> {
    let services = catalog.services().map(|service| {
        let servers = service.servers.values().map(|server| {
            let check = server.check.check().unwrap();
            format!("{} {:?} {check:?}", server.key, server.config)
        });
        let (id, key, config) = (&service.id, service.key, service.config);
        (format!("{id} {key} {config:?}"), servers.collect())
    });
    services.collect()
}

fn has(catalog: &Catalog, object: &Object) -> bool {
    let service = catalog.service(&object.service);
    match &object.server {
        None => service.is_some(),
        Some(key) => service.is_some_and(|service| service.servers.contains_key(key)),
    }
}

/// Does every step and checks, after each, what must hold on the way.
fn follow(old: &Catalog, new: &Catalog, difference: &Difference) -> Catalog {
    let mut catalog = old.clone();
    let mut stage = None;
    for step in &difference.steps {
        assert!(stage <= Some(step.stage()), "{step} comes too late");
        stage = Some(step.stage());
        let existed = has(&catalog, &step.object);
        let wanted = has(new, &step.object);
        let right = match step.action() {
            Action::Add => !existed && wanted,
            Action::Edit => existed && wanted,
            Action::Remove => existed && !wanted,
        };
        assert!(right, "{step}");
        let command = Command {
            expected_revision: Some(step.expected),
            ..Command::new(Timestamp::default(), step.mutation.clone())
        };
        let applied = catalog.apply(&command).unwrap();
        assert!(applied.reply.changed, "{step} changes nothing");
        for service in old.services() {
            let Some(wanted) = new.service(&service.id) else {
                continue;
            };
            for key in service.servers.keys() {
                let holder = catalog.service(&service.id).unwrap();
                assert!(!wanted.servers.contains_key(key) || holder.servers.contains_key(key));
            }
        }
    }
    catalog
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_catalog_does_not_differ_from_itself(catalog in catalog()) {
        for extra in [Extra::Keep, Extra::Remove] {
            prop_assert_eq!(difference(&catalog, &catalog, extra), Ok(Difference::default()));
        }
    }

    #[test]
    fn from_nothing_every_catalog_is_reached(new in catalog()) {
        let empty = Catalog::default();
        let steps = difference(&empty, &new, Extra::Keep).unwrap();
        prop_assert_eq!(declared(&follow(&empty, &new, &steps)), declared(&new));
    }

    #[test]
    fn the_steps_lead_there_and_then_there_is_nothing_to_do(old in catalog(), new in catalog()) {
        match difference(&old, &new, Extra::Remove) {
            Ok(steps) => {
                let reached = follow(&old, &new, &steps);
                prop_assert_eq!(declared(&reached), declared(&new));
                let again = difference(&reached, &new, Extra::Remove);
                prop_assert_eq!(again, Ok(Difference::default()));
            }
            Err(DifferenceError::Handover { key, from, to }) => {
                prop_assert_eq!(&old.holder(&key).unwrap().id, &from);
                prop_assert_eq!(&new.holder(&key).unwrap().id, &to);
                prop_assert_ne!(from, to);
            }
            Err(DifferenceError::EveryPort(id)) => {
                prop_assert!(new.service(&id).unwrap().key.is_portless());
                prop_assert!(!old.service(&id).unwrap().key.is_portless());
            }
            // Servers that fit the old key and not the new one, or the other way round.
            Err(DifferenceError::Rejected { object, .. }) => {
                let service = |catalog: &Catalog| catalog.service(&object.service).unwrap().key;
                prop_assert_ne!(service(&old), service(&new));
            }
        }
    }

    #[test]
    fn nothing_is_removed_unasked(old in catalog(), new in catalog()) {
        if let Ok(steps) = difference(&old, &new, Extra::Keep) {
            prop_assert_eq!(steps.count(Action::Remove), 0);
            let reached = follow(&old, &new, &steps);
            for object in &steps.kept {
                prop_assert!(has(&reached, object) && !has(&new, object));
            }
            let again = difference(&reached, &new, Extra::Keep).unwrap();
            prop_assert_eq!((again.steps, again.kept), (vec![], steps.kept));
        }
    }
}

// === what people read ===

fn id(id: &str) -> ServiceId {
    ServiceId::new(id).unwrap()
}

fn tcp(port: u16) -> ServiceKey {
    ServiceKey::Address {
        address: "10.0.0.1".parse().unwrap(),
        port,
        protocol: Protocol::Tcp,
    }
}

fn at(last: u8) -> RealServerKey {
    RealServerKey::new([10, 1, 0, last].into(), 80)
}

fn service(name: &str, port: u16, config: ServiceConfig) -> Mutation {
    Mutation::CreateService {
        id: id(name),
        key: tcp(port),
        config,
    }
}

fn server(name: &str, last: u8, weight: u32, check: HealthCheck) -> Mutation {
    Mutation::CreateServer {
        service: id(name),
        key: at(last),
        config: RealServerConfig::new(Weight::new(weight).unwrap(), Forwarding::Masq),
        check,
    }
}

fn made(mutations: impl IntoIterator<Item = Mutation>) -> Catalog {
    let mut catalog = Catalog::default();
    for mutation in mutations {
        let command = Command::new(Timestamp::default(), mutation);
        catalog.apply(&command).unwrap();
    }
    catalog
}

#[test]
fn it_reads_like_a_diff() {
    let plain = ServiceConfig::new(Scheduler::Wrr);
    let flags = [SchedulerFlag::Flag1, SchedulerFlag::Flag2];
    let sticky = ServiceConfig {
        flags: SchedulerFlags::resolve(Scheduler::Sh, &flags).unwrap(),
        ..ServiceConfig::new(Scheduler::Sh)
    };
    let check = HealthCheck {
        endpoint: Some("http://:80/health".parse().unwrap()),
        period: std::time::Duration::from_millis(1500),
        timeout: std::time::Duration::from_secs(1),
        up_threshold: 2,
        down_threshold: 1,
    };
    let old = made([
        service("web", 80, plain),
        server("web", 1, 1, check.clone()),
        server("web", 2, 1, HealthCheck::default()),
        service("old", 81, plain),
    ]);
    let off = HealthCheck {
        endpoint: None,
        ..check
    };
    let new = made([
        service("web", 80, sticky),
        server("web", 1, 2, off),
        server("web", 3, 0, check),
        service("new", 82, plain),
    ]);
    let lines = |extra| -> Vec<String> {
        let steps = difference(&old, &new, extra).unwrap().steps;
        steps.iter().map(ToString::to_string).collect()
    };
    let put = [
        "+ service new: key TCP 10.0.0.1:82, config.scheduler wrr",
        "~ service web: config.scheduler wrr -> sh, config.flags none -> flag-1+flag-2",
        "~ server web 10.1.0.1:80: config.weight 1 -> 2, \
         healthCheck.endpoint http://:80/health -> none",
        "+ server web 10.1.0.3:80: config.weight 0, config.forward MASQ, \
         healthCheck.endpoint http://:80/health, healthCheck.period 1.5s, healthCheck.timeout 1s, \
         healthCheck.upThreshold 2, healthCheck.downThreshold 1",
    ];
    let removed = ["- server web 10.1.0.2:80", "- service old"];
    assert_eq!(lines(Extra::Keep), put);
    assert_eq!(lines(Extra::Remove), [&put[..], &removed].concat());
}

#[test]
fn a_key_does_not_change_hands() {
    let plain = ServiceConfig::new(Scheduler::Rr);
    let old = made([service("a", 80, plain), service("b", 81, plain)]);
    let renamed = made([service("c", 80, plain)]);
    let swapped = made([service("a", 81, plain), service("b", 80, plain)]);
    for (new, words) in [
        (
            renamed,
            "service c: key: TCP 10.0.0.1:80 belongs to service a",
        ),
        (
            swapped,
            "service a: key: TCP 10.0.0.1:81 belongs to service b",
        ),
    ] {
        let error = difference(&old, &new, Extra::Remove).unwrap_err();
        assert!(error.to_string().starts_with(words), "{error}");
    }
    let moved = made([service("a", 82, plain), service("b", 81, plain)]);
    let steps = difference(&old, &moved, Extra::Remove).unwrap().steps;
    assert_eq!(
        steps.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["~ service a: key TCP 10.0.0.1:80 -> TCP 10.0.0.1:82"]
    );
    assert_eq!(steps[0].expected, Revision(1));
}
