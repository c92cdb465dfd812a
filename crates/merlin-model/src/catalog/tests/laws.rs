//! What holds after every command of any sequence.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::generators;
use super::naive::{Naive, Service};
use crate::catalog::{Applied, Catalog, Change, Remembered, VirtualService};
use crate::command::{Command, Rejection, Reply};
use crate::service::ServiceId;

/// The invariants of the module's documentation.
fn check_invariants(catalog: &Catalog) {
    let inverse: BTreeMap<_, _> = catalog
        .services()
        .map(|service| (service.key, service.id.clone()))
        .collect();
    assert_eq!(inverse.len(), catalog.services().len(), "a key is shared");
    assert!(catalog.keys.iter().eq(inverse.iter()), "the index is off");
    for service in catalog.services() {
        assert!(service.created <= service.changed);
        assert!(service.changed <= catalog.revision());
        assert_eq!(service.check(), Ok(()));
        assert_eq!(
            catalog.holder(&service.key).map(|holder| &holder.id),
            Some(&service.id)
        );
        for (key, server) in &service.servers {
            assert_eq!(*key, server.key);
            assert!(service.created <= server.created);
            assert!(server.created <= server.changed);
            assert!(server.changed <= catalog.revision());
            assert!(server.check.check().is_ok());
        }
    }
}

fn plain_service(service: &VirtualService) -> Service {
    Service {
        id: service.id.clone(),
        key: service.key,
        config: service.config,
        created: service.created,
        changed: service.changed,
        servers: service.servers.values().map(|s| (**s).clone()).collect(),
    }
}

fn plain(catalog: &Catalog) -> Naive {
    let answers = catalog.remembered();
    Naive {
        revision: catalog.revision(),
        services: catalog.services().map(|s| plain_service(s)).collect(),
        answers: answers
            .map(|Remembered { at, id, answer }| (at, id, answer))
            .collect(),
    }
}

/// What a watcher makes of a change.
fn watch(seen: &mut Naive, change: &Change) {
    match change {
        Change::ServicePut(service) => {
            seen.services.retain(|known| known.id != service.id);
            seen.services.push(plain_service(service));
        }
        Change::ServiceDeleted { id, .. } => seen.services.retain(|known| known.id != *id),
        Change::ServerPut { service, server } => match seen.server(service, &server.key) {
            Some(known) => *known = (**server).clone(),
            None => {
                let mut services = seen.services.iter_mut();
                let holder = services.find(|known| known.id == *service).unwrap();
                holder.servers.push((**server).clone());
            }
        },
        Change::ServerDeleted { service, key } => {
            let mut services = seen.services.iter_mut();
            let holder = services.find(|known| known.id == *service).unwrap();
            holder.servers.retain(|known| known.key != *key);
        }
    }
}

fn touched(changes: &[Change]) -> BTreeSet<ServiceId> {
    let services = changes.iter().map(Change::service);
    services.cloned().collect()
}

fn reply(outcome: &Result<Applied, Rejection>) -> Result<Reply, Rejection> {
    outcome
        .as_ref()
        .map(|applied| applied.reply)
        .map_err(Clone::clone)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whoever_follows_the_changes_holds_the_same_services(
        commands in generators::commands(),
        stride in 1_usize..5,
    ) {
        let (mut catalog, mut follower) = (Catalog::default(), Catalog::default());
        // Several commands at once, too: a store may tell of them in one step.
        for commands in commands.chunks(stride) {
            let mut changes = Vec::new();
            for command in commands {
                if let Ok(applied) = catalog.apply(command) {
                    changes.extend(applied.changes);
                }
            }
            follower.follow(catalog.revision(), &changes);
            prop_assert_eq!(follower.revision(), catalog.revision());
            prop_assert!(follower.services().eq(catalog.services()));
            check_invariants(&follower);
        }
    }

    #[test]
    fn the_naive_catalog_always_agrees(commands in generators::commands()) {
        let (mut catalog, mut naive) = (Catalog::default(), Naive::default());
        for command in &commands {
            let answer = reply(&catalog.apply(command));
            prop_assert_eq!(answer, naive.apply(command), "{:?}", command);
            let catalog = plain(&catalog);
            prop_assert_eq!(&catalog.services, &naive.sorted(), "{:?}", command);
            prop_assert_eq!(&catalog.answers, &naive.answers, "{:?}", command);
            prop_assert_eq!(catalog.revision, naive.revision);
        }
    }

    #[test]
    fn invariants_hold_and_only_accepted_changes_change(commands in generators::commands()) {
        let mut catalog = Catalog::default();
        for command in &commands {
            let before = catalog.clone();
            match catalog.apply(command) {
                Ok(Applied { reply, changes }) if !changes.is_empty() => {
                    prop_assert!(reply.changed);
                    prop_assert_eq!(reply.revision, before.revision().next());
                    prop_assert_eq!(reply.revision, catalog.revision());
                }
                _ => {
                    prop_assert_eq!(before.revision(), catalog.revision());
                    prop_assert_eq!(&before.services, &catalog.services);
                    prop_assert_eq!(&before.keys, &catalog.keys);
                }
            }
            check_invariants(&catalog);
        }
    }

    #[test]
    fn changes_tell_a_watcher_everything(commands in generators::commands()) {
        let mut catalog = Catalog::default();
        let mut seen = Naive::default();
        for command in &commands {
            let before = catalog.clone();
            let changes = catalog.apply(command).map_or(Vec::new(), |applied| applied.changes);
            for change in &changes {
                watch(&mut seen, change);
            }
            prop_assert_eq!(seen.sorted(), plain(&catalog).services);
            prop_assert_eq!(catalog.changed_services(&before), touched(&changes));
        }
    }

    #[test]
    fn a_retry_is_answered_as_the_first_try_and_changes_nothing(
        commands in generators::commands()
    ) {
        let mut catalog = Catalog::default();
        for command in commands.iter().filter(|command| command.request_id.is_some()) {
            let first = reply(&catalog.apply(command));
            let after = catalog.clone();
            let retry = Command { at: command.at, ..command.clone() };
            let second = catalog.apply(&retry);
            prop_assert_eq!(first, reply(&second));
            prop_assert!(second.map_or(true, |applied| applied.changes.is_empty()));
            prop_assert_eq!(&catalog, &after);
        }
    }

    #[test]
    fn a_catalog_is_restored_from_its_parts_and_goes_on_alike(
        commands in generators::commands(),
        more in generators::commands(),
    ) {
        let mut catalog = Catalog::default();
        for command in &commands {
            let _ = catalog.apply(command);
        }
        let services = catalog.services().map(|service| (**service).clone());
        let mut restored =
            Catalog::restore(catalog.revision(), services, catalog.remembered()).unwrap();
        prop_assert_eq!(&restored, &catalog);
        for command in &more {
            prop_assert_eq!(restored.apply(command), catalog.apply(command));
        }
        prop_assert_eq!(restored, catalog);
    }
}
