//! The cases. Each begins with an empty store and may use any of its nodes.

#![allow(clippy::unwrap_used, reason = "a case that cannot go on has failed")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use merlin_model::command::{ServerPatch, ServicePatch};
use merlin_model::store::ProposeError;
use merlin_model::{
    Catalog, Change, Checksum, Command, Family, Forwarding, HealthCheck, Mutation, Persistence,
    Protocol, RealServerConfig, RealServerKey, Rejection, Reply, RequestId, Revision, Scheduler,
    SchedulerFlag, SchedulerFlags, ServiceConfig, ServiceId, ServiceKey, Thresholds, Timestamp,
    Tunnel, Weight,
};

use crate::stores::Store;
use crate::support::eventually;

fn id(id: &str) -> ServiceId {
    ServiceId::new(id).unwrap()
}

fn key(at: &str) -> ServiceKey {
    let at: SocketAddr = at.parse().unwrap();
    ServiceKey::Address {
        address: at.ip(),
        port: at.port(),
        protocol: Protocol::Tcp,
    }
}

fn at(at: &str) -> RealServerKey {
    at.parse::<SocketAddr>().unwrap().into()
}

fn create(service: &str, address: &str) -> Command {
    command(Mutation::CreateService {
        id: id(service),
        key: key(address),
        config: ServiceConfig::new(Scheduler::Wrr),
    })
}

fn update(service: &str, scheduler: Scheduler) -> Command {
    command(Mutation::UpdateService {
        id: id(service),
        patch: ServicePatch {
            scheduler: Some(scheduler),
            ..ServicePatch::default()
        },
    })
}

fn delete(service: &str) -> Command {
    command(Mutation::DeleteService { id: id(service) })
}

fn create_server(service: &str, address: &str, weight: u32) -> Command {
    command(Mutation::CreateServer {
        service: id(service),
        key: at(address),
        config: RealServerConfig::new(Weight::new(weight).unwrap(), Forwarding::Masq),
        check: HealthCheck::default(),
    })
}

fn update_server(service: &str, address: &str, weight: u32) -> Command {
    command(Mutation::UpdateServer {
        service: id(service),
        key: at(address),
        patch: ServerPatch {
            weight: Some(Weight::new(weight).unwrap()),
            ..ServerPatch::default()
        },
    })
}

fn delete_server(service: &str, address: &str) -> Command {
    command(Mutation::DeleteServer {
        service: id(service),
        key: at(address),
    })
}

fn command(mutation: Mutation) -> Command {
    Command::new(Timestamp(1), mutation)
}

fn named(request: &str, command: Command) -> Command {
    Command {
        request_id: Some(RequestId::new(request).unwrap()),
        ..command
    }
}

fn expecting(revision: Revision, command: Command) -> Command {
    Command {
        expected_revision: Some(revision),
        ..command
    }
}

const WEB: &str = "10.0.0.1:80";
const SERVER: &str = "10.1.0.1:80";

async fn accepted(node: &Store, command: Command) -> Reply {
    node.propose(command).await.unwrap()
}

async fn rejected(node: &Store, command: Command) -> Rejection {
    match node.propose(command).await {
        Err(ProposeError::Rejected(rejection)) => rejection,
        other => panic!("not rejected: {other:?}"),
    }
}

fn weight(catalog: &Catalog) -> (u32, Revision) {
    let service = catalog.service(&id("web")).unwrap();
    let server = &service.servers[&at(SERVER)];
    (server.config.weight.get().into(), server.changed)
}

pub(crate) async fn what_was_declared_is_listed_with_its_revisions(nodes: &[Store]) {
    let service = accepted(&nodes[0], create("web", WEB)).await;
    let server = accepted(&nodes[0], create_server("web", SERVER, 3)).await;
    assert!(service.changed && server.changed);
    assert!(service.revision < server.revision);
    let catalog = nodes[0].read().await.unwrap();
    let web = catalog.service(&id("web")).unwrap();
    assert_eq!(
        (web.created, web.changed),
        (service.revision, service.revision)
    );
    assert_eq!(weight(&catalog), (3, server.revision));
    assert!(catalog.revision() >= server.revision);
    let updated = accepted(&nodes[0], update_server("web", SERVER, 4)).await;
    let catalog = nodes[0].read().await.unwrap();
    assert_eq!(weight(&catalog), (4, updated.revision));
    let created = catalog.service(&id("web")).unwrap().servers[&at(SERVER)].created;
    assert_eq!(created, server.revision);
}

pub(crate) async fn one_object_has_one_key(nodes: &[Store]) {
    accepted(&nodes[0], create("web", WEB)).await;
    accepted(&nodes[0], create_server("web", SERVER, 1)).await;
    let exists = Rejection::ServiceExists(id("web"));
    assert_eq!(
        rejected(&nodes[1], create("web", "10.0.0.2:80")).await,
        exists
    );
    let taken = rejected(&nodes[1], create("other", WEB)).await;
    assert!(matches!(taken, Rejection::KeyTaken { holder, .. } if holder == id("web")));
    let exists = rejected(&nodes[1], create_server("web", SERVER, 2)).await;
    assert!(matches!(exists, Rejection::ServerExists { .. }));
    assert_eq!(weight(&nodes[1].read().await.unwrap()).0, 1);
}

pub(crate) async fn an_update_merges_and_a_missing_object_is_not_found(nodes: &[Store]) {
    let missing = Rejection::ServiceNotFound(id("web"));
    assert_eq!(
        rejected(&nodes[0], update("web", Scheduler::Rr)).await,
        missing
    );
    accepted(&nodes[0], create("web", WEB)).await;
    let missing = rejected(&nodes[0], update_server("web", SERVER, 1)).await;
    assert!(matches!(missing, Rejection::ServerNotFound { .. }));
    accepted(&nodes[0], create_server("web", SERVER, 1)).await;
    accepted(&nodes[1], update("web", Scheduler::Rr)).await;
    accepted(&nodes[1], update_server("web", SERVER, 7)).await;
    let catalog = nodes[0].read().await.unwrap();
    let web = catalog.service(&id("web")).unwrap();
    assert_eq!((web.key, web.config.scheduler), (key(WEB), Scheduler::Rr));
    let server = &web.servers[&at(SERVER)].config;
    assert_eq!(
        (server.weight.get(), server.forwarding),
        (7, Forwarding::Masq)
    );
}

pub(crate) async fn a_service_goes_with_its_servers_and_only_once(nodes: &[Store]) {
    for name in ["web", "web2"] {
        let address = if name == "web" { WEB } else { "10.0.0.2:80" };
        accepted(&nodes[0], create(name, address)).await;
        accepted(&nodes[0], create_server(name, SERVER, 1)).await;
    }
    assert!(accepted(&nodes[1], delete("web")).await.changed);
    assert!(!accepted(&nodes[0], delete("web")).await.changed);
    assert!(
        !accepted(&nodes[0], delete_server("web", SERVER))
            .await
            .changed
    );
    accepted(&nodes[0], create("web", WEB)).await;
    let catalog = nodes[2].read().await.unwrap();
    assert_eq!(catalog.service(&id("web")).unwrap().servers.len(), 0);
    assert_eq!(catalog.service(&id("web2")).unwrap().servers.len(), 1);
}

pub(crate) async fn a_server_needs_its_service(nodes: &[Store]) {
    let missing = Rejection::ServiceNotFound(id("web"));
    assert_eq!(
        rejected(&nodes[0], create_server("web", SERVER, 1)).await,
        missing
    );
    accepted(&nodes[0], create("web", WEB)).await;
    accepted(&nodes[1], create_server("web", SERVER, 1)).await;
    assert!(
        accepted(&nodes[2], delete_server("web", SERVER))
            .await
            .changed
    );
    assert!(
        !accepted(&nodes[0], delete_server("web", SERVER))
            .await
            .changed
    );
}

pub(crate) async fn an_expected_revision_is_compared(nodes: &[Store]) {
    let created = accepted(&nodes[0], create("web", WEB)).await.revision;
    let updated = accepted(&nodes[0], update("web", Scheduler::Rr))
        .await
        .revision;
    let stale = expecting(created, update("web", Scheduler::Lc));
    assert_eq!(
        rejected(&nodes[1], stale).await,
        Rejection::Conflict {
            expected: created,
            actual: Some(updated)
        }
    );
    // What happens to other objects is not in the way.
    accepted(&nodes[0], create("other", "10.0.0.2:80")).await;
    accepted(&nodes[1], expecting(updated, update("web", Scheduler::Lc))).await;
    let absent = expecting(Revision::ZERO, create("web", WEB));
    assert!(matches!(
        rejected(&nodes[1], absent).await,
        Rejection::Conflict { .. }
    ));
    let absent = expecting(Revision::ZERO, create("new", "10.0.0.3:80"));
    accepted(&nodes[2], absent).await;
}

pub(crate) async fn a_request_is_answered_once_and_for_all(nodes: &[Store]) {
    let request = || named("request/1", create("web", WEB));
    let first = accepted(&nodes[0], request()).await;
    assert_eq!(accepted(&nodes[0], request()).await, first);
    assert_eq!(accepted(&nodes[1], request()).await, first);
    accepted(&nodes[0], named("request/2", delete("web"))).await;
    assert_eq!(accepted(&nodes[2], request()).await, first);
    assert!(nodes[2].read().await.unwrap().service(&id("web")).is_none());
    let nothing = || named("request/3", delete("web"));
    let first = accepted(&nodes[0], nothing()).await;
    accepted(&nodes[0], create("web", WEB)).await;
    assert_eq!(accepted(&nodes[1], nothing()).await, first);
    assert!(!first.changed);
}

pub(crate) async fn a_refusal_is_remembered_too(nodes: &[Store]) {
    let request = || named("refused", update("web", Scheduler::Rr));
    let first = rejected(&nodes[0], request()).await;
    accepted(&nodes[0], create("web", WEB)).await;
    assert_eq!(rejected(&nodes[1], request()).await, first);
    let web = nodes[0].read().await.unwrap();
    assert_eq!(
        web.service(&id("web")).unwrap().config.scheduler,
        Scheduler::Wrr
    );
}

pub(crate) async fn requests_of_one_id_at_once_change_one_thing(nodes: &[Store]) {
    accepted(&nodes[0], create("web", WEB)).await;
    accepted(&nodes[0], create_server("web", SERVER, 1)).await;
    let before = nodes[0].read().await.unwrap().revision();
    let tries = nodes
        .iter()
        .map(|node| accepted(node, named("same", update_server("web", SERVER, 2))));
    let replies = join_all(tries).await;
    assert!(
        replies.iter().all(|reply| *reply == replies[0]),
        "{replies:?}"
    );
    assert!(replies[0].revision > before);
    assert_eq!(
        weight(&nodes[0].read().await.unwrap()),
        (2, replies[0].revision)
    );
}

pub(crate) async fn a_reader_sees_what_was_acknowledged_on_any_node(nodes: &[Store]) {
    accepted(&nodes[0], create("web", WEB)).await;
    accepted(&nodes[0], create_server("web", SERVER, 0)).await;
    for round in 1..=20_u32 {
        let writer = &nodes[round as usize % nodes.len()];
        let reply = accepted(writer, update_server("web", SERVER, round)).await;
        for reader in nodes {
            let catalog = reader.read().await.unwrap();
            assert_eq!(weight(&catalog), (round, reply.revision));
        }
    }
    accepted(&nodes[0], delete("web")).await;
    for reader in nodes {
        assert!(reader.read().await.unwrap().service(&id("web")).is_none());
    }
}

pub(crate) async fn watches_tell_every_change_in_order(nodes: &[Store]) {
    accepted(&nodes[0], create("first", "10.0.0.9:80")).await;
    let start = nodes[1].read().await.unwrap();
    let events = nodes[1].events();
    accepted(&nodes[0], create("web", WEB)).await;
    for weight in 0..50 {
        let command = match weight {
            0 => create_server("web", SERVER, 0),
            _ => update_server("web", SERVER, weight),
        };
        accepted(&nodes[weight as usize % nodes.len()], command).await;
        // A read may find out about changes ahead of the watch, which has to tell them all the same.
        nodes[1].read().await.unwrap();
    }
    let last = accepted(&nodes[2], delete("web")).await.revision;
    eventually("the watch is complete", || events.borrow().newest() == last).await;

    let mut follower = (*start).clone();
    let mut weights = Vec::new();
    let ring = events.borrow().clone();
    let mut before = start.revision();
    for group in ring.after(start.revision()).unwrap() {
        assert!(group.revision > before, "{} after {before}", group.revision);
        before = group.revision;
        for change in &*group.changes {
            if let Change::ServerPut { server, .. } = change {
                assert_eq!(server.changed, group.revision);
                weights.push(u32::from(server.config.weight.get()));
            }
        }
        follower.follow(group.revision, &group.changes);
    }
    assert_eq!(weights, (0..50).collect::<Vec<_>>());
    let end = nodes[1].read().await.unwrap();
    assert!(follower.services().eq(end.services()));
    assert_eq!(before, last);
}

pub(crate) async fn of_many_creations_one_wins(nodes: &[Store]) {
    for round in 0..10 {
        let (name, address) = (format!("s{round}"), format!("10.0.{round}.1:80"));
        let tries = nodes
            .iter()
            .map(|node| node.propose(create(&name, &address)));
        let outcomes = join_all(tries).await;
        let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(won, 1, "{outcomes:?}");
        for outcome in outcomes.into_iter().filter_map(Result::err) {
            let exists = matches!(outcome, ProposeError::Rejected(Rejection::ServiceExists(_)));
            assert!(exists, "{outcome:?}");
        }
    }
}

pub(crate) async fn of_many_services_for_one_key_one_wins(nodes: &[Store]) {
    for round in 0..10 {
        let address = format!("10.0.{round}.1:80");
        let tries = nodes.iter().enumerate().map(|(n, node)| {
            let name = format!("s{round}-{n}");
            let address = &address;
            async move { node.propose(create(&name, address)).await }
        });
        let outcomes = join_all(tries).await;
        let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(won, 1, "{outcomes:?}");
        for outcome in outcomes.into_iter().filter_map(Result::err) {
            let taken = matches!(outcome, ProposeError::Rejected(Rejection::KeyTaken { .. }));
            assert!(taken, "{outcome:?}");
        }
    }
}

pub(crate) async fn no_update_is_lost(nodes: &[Store]) {
    const EACH: u32 = 10;
    accepted(&nodes[0], create("web", WEB)).await;
    accepted(&nodes[0], create_server("web", SERVER, 0)).await;
    let increments = nodes.iter().map(|node| async move {
        for _ in 0..EACH {
            loop {
                let (weight, changed) = weight(&node.read().await.unwrap());
                let next = expecting(changed, update_server("web", SERVER, weight + 1));
                match node.propose(next).await {
                    Ok(_) => break,
                    Err(ProposeError::Rejected(Rejection::Conflict { .. })) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
    });
    join_all(increments).await;
    let expected = EACH * u32::try_from(nodes.len()).unwrap();
    assert_eq!(weight(&nodes[0].read().await.unwrap()).0, expected);
}

pub(crate) async fn no_server_survives_its_service(nodes: &[Store]) {
    for round in 0..10 {
        accepted(&nodes[0], create("web", WEB)).await;
        let creations = nodes[1..].iter().enumerate().map(|(n, node)| {
            let address = format!("10.1.{round}.{}:80", n + 1);
            async move {
                node.propose(create_server("web", &address, 1))
                    .await
                    .is_ok()
            }
        });
        let deletion = accepted(&nodes[0], delete("web"));
        let (_, deleted) = futures::join!(join_all(creations), deletion);
        assert!(deleted.changed);
        accepted(&nodes[0], create("web", WEB)).await;
        let catalog = nodes[1].read().await.unwrap();
        assert_eq!(catalog.service(&id("web")).unwrap().servers.len(), 0);
        accepted(&nodes[0], delete("web")).await;
    }
}

pub(crate) async fn every_kind_of_object_comes_back_as_it_was(nodes: &[Store]) {
    let mark = ServiceKey::Fwmark {
        mark: NonZeroU32::new(7).unwrap(),
        family: Family::Ipv6,
    };
    let mut config = ServiceConfig::new(Scheduler::Mh);
    config.flags = SchedulerFlags::resolve(Scheduler::Mh, &[SchedulerFlag::MhPort]).unwrap();
    config.persistence = Some(Persistence {
        timeout: NonZeroU32::new(300).unwrap(),
        netmask: "64".parse().unwrap(),
        engine: None,
    });
    let services = BTreeMap::from([
        ("mark", (mark, config)),
        (
            "v6",
            (key("[fd00::1]:443"), ServiceConfig::new(Scheduler::Wlc)),
        ),
        (
            "with space: and ümlaut",
            (key(WEB), ServiceConfig::new(Scheduler::Sh)),
        ),
    ]);
    let check = HealthCheck {
        endpoint: Some("http://:556/health?x=1".parse().unwrap()),
        period: Duration::from_millis(1500),
        timeout: Duration::from_secs(1),
        up_threshold: 2,
        down_threshold: 1,
    };
    let tunnel = Forwarding::Tunnel(Tunnel::Gue {
        port: NonZeroU16::new(6080).unwrap(),
        checksum: Checksum::Remote,
    });
    let server = RealServerConfig {
        weight: Weight::new(65535).unwrap(),
        forwarding: tunnel,
        thresholds: Thresholds::new(100, 50).unwrap(),
    };
    for (name, (key, config)) in &services {
        let (key, config) = (*key, *config);
        accepted(
            &nodes[0],
            command(Mutation::CreateService {
                id: id(name),
                key,
                config,
            }),
        )
        .await;
        for address in ["10.1.0.1:80", "[fd00::2]:80"] {
            let (key, check) = (at(address), check.clone());
            let creation = Mutation::CreateServer {
                service: id(name),
                key,
                config: server,
                check,
            };
            accepted(&nodes[0], command(creation)).await;
        }
    }
    let catalog: Arc<Catalog> = nodes[1].read().await.unwrap();
    for (name, (key, config)) in &services {
        let service = catalog.service(&id(name)).unwrap();
        assert_eq!((service.key, service.config), (*key, *config));
        assert_eq!(service.servers.len(), 2);
        for held in service.servers.values() {
            assert_eq!((held.config, &held.check), (server, &check));
        }
    }
    let catalogs = nodes.iter().map(Store::catalog);
    let catalogs: Vec<_> = catalogs.collect();
    eventually("every node knows all of it", || {
        catalogs
            .iter()
            .all(|c| c.borrow().services().eq(catalog.services()))
    })
    .await;
}
