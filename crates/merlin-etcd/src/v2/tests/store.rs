//! Nodes that share one etcd: following it, changing it, and getting in each other's way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use merlin_model::command::{CheckPatch, ServerPatch};
use merlin_model::store::{Consistency, ProposeError};
use merlin_model::{
    Catalog, Command, Forwarding, HealthCheck, Mutation, Protocol, RealServerConfig, RealServerKey,
    Rejection, Reply, RequestId, Revision, Scheduler, ServiceConfig, ServiceId, ServiceKey, Weight,
};
use nix::sys::signal::Signal;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::etcd::Etcd;
use super::{client, config};
use crate::guard::MaxRemoval;
use crate::publish::{Publisher, Views};
use crate::replica::Replica;
use crate::status::{Backend, Status};
use crate::v2::protocol::Ask;
use crate::v2::{Shared, run};

const PATIENCE: Duration = Duration::from_secs(30);

/// One node's store.
struct Node {
    shared: Arc<Shared>,
    views: Views,
    _stop: DropGuard,
}

impl Node {
    async fn start(endpoints: Vec<String>) -> Self {
        let config = config(endpoints);
        let replica = Replica::new(config.layout.clone());
        let status = Status::starting(Some(Backend::Etcd2));
        let (publisher, views) =
            Publisher::new(replica, Catalog::default(), status, MaxRemoval::ALL);
        let shared = Shared::new(views.clone());
        let stop = CancellationToken::new();
        tokio::spawn(run(config, publisher, Arc::clone(&shared), stop.clone()));
        let node = Self {
            shared,
            views,
            _stop: stop.drop_guard(),
        };
        node.connected().await;
        node
    }

    async fn connected(&self) {
        let mut status = self.views.status.clone();
        let connected = status.wait_for(Status::is_connected);
        tokio::time::timeout(PATIENCE, connected)
            .await
            .unwrap()
            .unwrap();
    }

    async fn propose(&self, mutation: Mutation) -> Result<Reply, ProposeError> {
        self.command(Command::new(Default::default(), mutation))
            .await
    }

    async fn command(&self, command: Command) -> Result<Reply, ProposeError> {
        self.shared.propose(&command, PATIENCE).await
    }

    async fn rejected(&self, mutation: Mutation) -> Rejection {
        match self.propose(mutation).await {
            Err(ProposeError::Rejected(rejection)) => rejection,
            other => panic!("{other:?}"),
        }
    }

    async fn read(&self) -> Arc<Catalog> {
        self.shared.read(PATIENCE).await.unwrap()
    }

    /// Waits until the published catalog is as wanted.
    async fn until(&self, wanted: impl Fn(&Catalog) -> bool) -> Arc<Catalog> {
        let mut catalog = self.views.catalog.clone();
        let reached = catalog.wait_for(|catalog| wanted(catalog));
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        Arc::clone(&reached.unwrap().unwrap())
    }
}

async fn nodes(etcd: &Etcd, count: usize) -> Vec<Node> {
    let starting = (0..count).map(|_| Node::start(etcd.endpoints()));
    futures::future::join_all(starting).await
}

fn id(name: &str) -> ServiceId {
    ServiceId::new(name).unwrap()
}

fn create(name: &str, port: u16) -> Mutation {
    Mutation::CreateService {
        id: id(name),
        key: ServiceKey::Address {
            address: [10, 0, 0, 1].into(),
            port,
            protocol: Protocol::Tcp,
        },
        config: ServiceConfig::new(Scheduler::Rr),
    }
}

fn delete(name: &str) -> Mutation {
    Mutation::DeleteService { id: id(name) }
}

fn at(last: u8) -> RealServerKey {
    RealServerKey::new([10, 1, 0, last].into(), 80)
}

fn add(name: &str, last: u8) -> Mutation {
    Mutation::CreateServer {
        service: id(name),
        key: at(last),
        config: RealServerConfig::new(Weight::new(1).unwrap(), Forwarding::Masq),
        check: HealthCheck::default(),
    }
}

fn weigh(name: &str, last: u8, weight: u32) -> Mutation {
    Mutation::UpdateServer {
        service: id(name),
        key: at(last),
        patch: ServerPatch {
            weight: Some(Weight::new(weight).unwrap()),
            check: CheckPatch::default(),
            ..ServerPatch::default()
        },
    }
}

fn ids(catalog: &Catalog) -> BTreeSet<String> {
    catalog.services().map(|s| s.id.to_string()).collect()
}

async fn keys(etcd: &Etcd) -> Vec<String> {
    let listing = client(etcd.endpoints()).list("/m").await.unwrap();
    let mut keys: Vec<_> = listing
        .records
        .into_iter()
        .map(|record| record.key)
        .collect();
    keys.sort();
    keys
}

#[tokio::test]
async fn what_one_node_changes_every_node_sees() {
    let etcd = Etcd::start(&[]);
    let nodes = nodes(&etcd, 2).await;
    let created = nodes[0].propose(create("web", 80)).await.unwrap();
    nodes[1].propose(add("web", 1)).await.unwrap();
    let weighed = nodes[0].propose(weigh("web", 1, 9)).await.unwrap();
    assert!(weighed.changed && weighed.revision > created.revision);
    let catalog = nodes[1].read().await;
    assert_eq!(catalog.revision(), weighed.revision);
    let service = catalog.service(&id("web")).unwrap();
    assert_eq!(service.created, created.revision);
    assert_eq!(service.servers[&at(1)].config.weight.get(), 9);
    assert_eq!(
        keys(&etcd).await,
        ["/m/servers/web/10.1.0.1:80", "/m/services/web"]
    );

    assert_eq!(
        nodes[1].rejected(create("web", 81)).await,
        Rejection::ServiceExists(id("web"))
    );
    assert!(matches!(
        nodes[1].rejected(create("w", 80)).await,
        Rejection::KeyTaken { .. }
    ));
    assert!(matches!(
        nodes[0].rejected(add("no", 1)).await,
        Rejection::ServiceNotFound(_)
    ));
    let hidden = nodes[0].rejected(create("_web", 81)).await;
    assert!(hidden.to_string().starts_with("id: "), "{hidden}");

    assert!(nodes[1].propose(delete("web")).await.unwrap().changed);
    assert!(!nodes[0].propose(delete("web")).await.unwrap().changed);
    assert_eq!(keys(&etcd).await, [""; 0]);
    nodes[0]
        .until(|catalog| catalog.services().len() == 0)
        .await;
}

#[tokio::test]
async fn conditions_and_request_ids_hold_on_every_node() {
    let etcd = Etcd::start(&[]);
    let nodes = nodes(&etcd, 2).await;
    let created = nodes[0].propose(create("web", 80)).await.unwrap();
    let command = |mutation, expected: Option<u64>, request: &str| Command {
        expected_revision: expected.map(Revision),
        request_id: Some(RequestId::new(request).unwrap()),
        ..Command::new(Default::default(), mutation)
    };
    let late = command(delete("web"), Some(created.revision.0 + 1), "late");
    let refused = nodes[1].command(late).await.unwrap_err();
    assert!(matches!(
        refused,
        ProposeError::Rejected(Rejection::Conflict { .. })
    ));
    let once = command(delete("web"), Some(created.revision.0), "a/b%");
    let first = nodes[1].command(once.clone()).await.unwrap();
    nodes[0].propose(create("web", 80)).await.unwrap();
    assert_eq!(nodes[0].command(once).await.unwrap(), first);
    assert_eq!(ids(&*nodes[1].read().await).len(), 1);
}

#[tokio::test]
async fn of_ten_nodes_that_create_the_same_service_one_succeeds() {
    let etcd = Etcd::start(&[]);
    let nodes = nodes(&etcd, 10).await;
    for round in 0..5 {
        let name = format!("s{round}");
        let tries = nodes
            .iter()
            .map(|node| node.propose(create(&name, 80 + round)));
        let outcomes = futures::future::join_all(tries).await;
        let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(won, 1, "{outcomes:?}");
        for outcome in outcomes.into_iter().filter_map(Result::err) {
            let exists = ProposeError::Rejected(Rejection::ServiceExists(id(&name)));
            assert_eq!(outcome.to_string(), exists.to_string());
        }
    }
}

#[tokio::test]
async fn of_ten_services_that_claim_the_same_key_one_gets_it() {
    let etcd = Etcd::start(&[]);
    let nodes = nodes(&etcd, 10).await;
    for port in 80..85 {
        let tries = nodes.iter().enumerate();
        let tries = tries.map(|(n, node)| async move {
            let name = format!("s{port}-{n}");
            (node.propose(create(&name, port)).await, name)
        });
        let outcomes = futures::future::join_all(tries).await;
        let won: Vec<_> = outcomes
            .iter()
            .filter(|(outcome, _)| outcome.is_ok())
            .collect();
        let [(_, name)] = &won[..] else {
            panic!("{outcomes:?}")
        };
        for (outcome, _) in &outcomes {
            let taken =
                |e: &ProposeError| matches!(e, ProposeError::Rejected(Rejection::KeyTaken { .. }));
            assert!(outcome.as_ref().err().is_none_or(taken), "{outcome:?}");
        }
        for node in &nodes {
            let catalog = node.read().await;
            assert_eq!(catalog.services().filter(|s| s.id == id(name)).count(), 1);
            assert!(catalog.services().len() == usize::from(port - 79));
            assert!(node.views.status.borrow().problems.is_empty());
        }
    }
    assert_eq!(keys(&etcd).await.len(), 5);
}

#[tokio::test]
async fn no_update_is_lost_between_ten_nodes() {
    let etcd = Etcd::start(&[]);
    let nodes = nodes(&etcd, 10).await;
    nodes[0].propose(create("web", 80)).await.unwrap();
    nodes[0].propose(add("web", 1)).await.unwrap();
    nodes[0].propose(weigh("web", 1, 0)).await.unwrap();
    let count = |node: &Node| {
        let catalog = node.views.catalog.borrow().clone();
        let server = Arc::clone(&catalog.service(&id("web")).unwrap().servers[&at(1)]);
        (u32::from(server.config.weight.get()), server.changed)
    };
    // Each counts five times, on what it believes the count to be.
    let counting = nodes.iter().map(|node| async {
        let mut counted = 0;
        while counted < 5 {
            node.until(|c| {
                c.service(&id("web"))
                    .is_some_and(|s| s.servers.contains_key(&at(1)))
            })
            .await;
            let (weight, seen) = count(node);
            let command = Command {
                expected_revision: Some(seen),
                ..Command::new(Default::default(), weigh("web", 1, weight + 1))
            };
            match node.command(command).await {
                Ok(_) => counted += 1,
                Err(ProposeError::Rejected(Rejection::Conflict { .. })) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    });
    futures::future::join_all(counting).await;
    nodes[3].read().await;
    assert_eq!(count(&nodes[3]).0, 50);
}

#[tokio::test]
async fn a_server_is_not_left_behind_when_its_service_goes() {
    let etcd = Etcd::start(&[]);
    let nodes = nodes(&etcd, 3).await;
    for _ in 0..20 {
        nodes[0].propose(create("web", 80)).await.unwrap();
        let (added, also_added, deleted) = tokio::join!(
            nodes[0].propose(add("web", 1)),
            nodes[1].propose(add("web", 2)),
            nodes[2].propose(delete("web")),
        );
        deleted.unwrap();
        for added in [added, also_added] {
            let gone = ProposeError::Rejected(Rejection::ServiceNotFound(id("web")));
            if let Err(error) = added {
                assert_eq!(error.to_string(), gone.to_string());
            }
        }
        assert_eq!(keys(&etcd).await, [""; 0]);
    }
}

#[tokio::test]
async fn what_the_earlier_system_left_behind_is_told_and_cleared_away() {
    let etcd = Etcd::start(&[]);
    let node = Node::start(etcd.endpoints()).await;
    node.propose(create("web", 80)).await.unwrap();
    node.propose(add("web", 1)).await.unwrap();
    // As the earlier system deletes a service.
    let service = node.read().await.service(&id("web")).unwrap().changed;
    let raw = client(etcd.endpoints());
    raw.change(&Ask::delete("/m/services/web", service.0))
        .await
        .unwrap();
    raw.change(&Ask::create("/m/services/odd", b"\xff"))
        .await
        .unwrap();
    node.until(|catalog| catalog.services().len() == 0).await;
    node.read().await;
    let problems = node.views.status.borrow().problems.clone();
    let keys_of: Vec<_> = problems
        .iter()
        .map(|problem| problem.key.as_str())
        .collect();
    assert_eq!(keys_of, ["/m/servers/web/10.1.0.1:80", "/m/services/odd"]);

    node.propose(create("web", 80)).await.unwrap();
    let catalog = node.read().await;
    assert!(catalog.service(&id("web")).unwrap().servers.is_empty());
    node.propose(delete("odd")).await.unwrap();
    node.read().await;
    assert!(node.views.status.borrow().problems.is_empty());
    assert_eq!(keys(&etcd).await, ["/m/services/web"]);
}

#[tokio::test]
async fn a_directory_that_goes_takes_what_is_in_it() {
    let etcd = Etcd::start(&[]);
    let node = Node::start(etcd.endpoints()).await;
    for name in ["a", "b"] {
        let port = if name == "a" { 80 } else { 81 };
        node.propose(create(name, port)).await.unwrap();
        node.propose(add(name, 1)).await.unwrap();
    }
    etcd.request("DELETE", "/v2/keys/m/servers?recursive=true", "");
    let catalog = node
        .until(|catalog| catalog.services().all(|service| service.servers.is_empty()))
        .await;
    assert_eq!(ids(&catalog).len(), 2);
    node.propose(add("a", 2)).await.unwrap();
}

/// A list does not tell of what is gone.
#[tokio::test]
async fn a_node_that_comes_later_is_not_older_than_the_last_deletion() {
    let etcd = Etcd::cluster();
    let first = Node::start(etcd.endpoints()).await;
    first.propose(create("web", 80)).await.unwrap();
    first.propose(create("mail", 25)).await.unwrap();
    let deleted = first.propose(delete("mail")).await.unwrap().revision;
    // etcd goes on counting for others, and for answers that are kept for retries.
    for _ in 0..3 {
        let others = client(etcd.endpoints());
        let _ = others.change(&Ask::create("/elsewhere", b"")).await;
    }
    let later = Node::start(etcd.endpoints()).await;
    assert_eq!(later.read().await.revision(), deleted);
    assert_eq!(first.read().await.revision(), deleted);
}

#[tokio::test]
async fn events_that_etcd_no_longer_has_are_made_up_for_by_a_list() {
    let etcd = Etcd::cluster();
    let node = Node::start(etcd.endpoints()[..1].to_vec()).await;
    node.propose(create("web", 80)).await.unwrap();
    let before = node.read().await.revision();
    etcd.signal(0, Signal::SIGSTOP);
    let others = client(etcd.endpoints()[1..].to_vec());
    let mut at = loop {
        // The frozen member may have led.
        if let Ok(at) = others.change(&Ask::create("/m/services/other", b"")).await {
            break at;
        }
    };
    // etcd keeps the last thousand.
    for _ in 0..1100 {
        at = others
            .change(&Ask::swap("/m/services/other", b"\x0a\x05other", at))
            .await
            .unwrap();
    }
    others
        .change(&Ask::delete("/m/services/web", before.0))
        .await
        .unwrap();
    etcd.signal(0, Signal::SIGCONT);
    node.until(|catalog| catalog.service(&id("web")).is_none())
        .await;
}

#[tokio::test]
async fn members_come_and_go_and_changes_go_on() {
    let etcd = Etcd::cluster();
    let nodes = nodes(&etcd, 2).await;
    nodes[0].propose(create("web", 80)).await.unwrap();
    let mut made = 0;
    for (member, signal) in [
        (0, Signal::SIGSTOP),
        (0, Signal::SIGCONT),
        (1, Signal::SIGKILL),
    ] {
        etcd.signal(member, signal);
        for node in &nodes {
            let server = add("web", made);
            // An unknown outcome is asked about again, as clients do.
            let command = Command {
                request_id: Some(RequestId::new(&format!("r{made}")).unwrap()),
                ..Command::new(Default::default(), server)
            };
            loop {
                match node.command(command.clone()).await {
                    Ok(_) => break,
                    Err(ProposeError::Rejected(Rejection::ServerExists { .. })) => break,
                    Err(ProposeError::Rejected(rejection)) => panic!("{rejection}"),
                    Err(_) => node.connected().await,
                }
            }
            made += 1;
        }
    }
    for node in &nodes {
        node.until(|catalog| {
            let service = catalog.service(&id("web")).unwrap();
            service.servers.len() == usize::from(made)
        })
        .await;
    }
}

#[tokio::test]
async fn an_etcd_that_was_wiped_is_another_history() {
    let mut etcd = Etcd::start(&[]);
    let node = Node::start(etcd.endpoints()).await;
    for port in 80..90 {
        node.propose(create(&format!("s{port}"), port))
            .await
            .unwrap();
    }
    etcd.wipe();
    node.until(|catalog| catalog.services().len() == 0).await;
    node.connected().await;
    let reply = node.propose(create("new", 80)).await.unwrap();
    let catalog = node.read().await;
    assert_eq!(
        (catalog.revision(), ids(&catalog).len()),
        (reply.revision, 1)
    );
}

#[tokio::test]
async fn records_decide_which_store_is_used() {
    use crate::EtcdStore;

    async fn found(etcd: &Etcd) -> EtcdStore {
        let store = EtcdStore::open(config(etcd.endpoints()));
        let mut catalog = store.catalog();
        let wait = async {
            while !store.status().is_connected() {
                tokio::select! {
                    _ = catalog.changed() => {}
                    () = tokio::time::sleep(Duration::from_millis(10)) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap();
        store
    }

    let etcd = Etcd::start(&[]);
    assert_eq!(found(&etcd).await.status().backend, Some(Backend::Etcd3));
    let node = Node::start(etcd.endpoints()).await;
    node.propose(create("old", 80)).await.unwrap();
    let old = found(&etcd).await;
    assert_eq!(old.status().backend, Some(Backend::Etcd2));
    let command = Command::new(Default::default(), add("old", 1));
    old.propose(command, PATIENCE).await.unwrap();
    let read = old.read(Consistency::Linearizable, PATIENCE).await.unwrap();
    assert_eq!(ids(&read).len(), 1);
    // Records in etcd 3 go before those that a move there left behind.
    let moved = EtcdStore::open(crate::Config {
        backend: Some(Backend::Etcd3),
        ..config(etcd.endpoints())
    });
    let command = Command::new(Default::default(), create("new", 80));
    while moved.propose(command.clone(), PATIENCE).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(found(&etcd).await.status().backend, Some(Backend::Etcd3));

    let plain = Etcd::start(&["--enable-v2=false"]);
    assert_eq!(found(&plain).await.status().backend, Some(Backend::Etcd3));
    for store in [old, moved] {
        store.shutdown().await;
    }
}
