//! The rules that make one catalog of whatever the store holds.

use merlin_model::{Forwarding, RealServerConfig, Scheduler, ServiceConfig, Weight};
use proptest::prelude::*;

use super::*;

fn id(id: &str) -> ServiceId {
    ServiceId::new(id).unwrap()
}

fn service(name: &str, key: &str, scheduler: Scheduler) -> VirtualService {
    let at: std::net::SocketAddr = key.parse().unwrap();
    VirtualService {
        id: id(name),
        key: ServiceKey::Address {
            address: at.ip(),
            port: at.port(),
            protocol: merlin_model::Protocol::Tcp,
        },
        config: ServiceConfig::new(scheduler),
        created: Revision::ZERO,
        changed: Revision::ZERO,
        servers: OrdMap::new(),
    }
}

fn server(key: &str, weight: u32) -> RealServer {
    RealServer {
        key: key.parse::<std::net::SocketAddr>().unwrap().into(),
        config: RealServerConfig::new(Weight::new(weight).unwrap(), Forwarding::Masq),
        check: merlin_model::HealthCheck::default(),
        created: Revision::ZERO,
        changed: Revision::ZERO,
    }
}

/// A store: keys and values with revisions, and the replica that follows it.
#[derive(Default)]
struct Store {
    revision: u64,
    keys: std::collections::BTreeMap<Vec<u8>, Stored>,
    replica: Replica,
}

impl Store {
    fn put(&mut self, key: &str, value: Vec<u8>) -> Vec<Change> {
        self.revision += 1;
        let revision = Revision(self.revision);
        let created = self
            .keys
            .get(key.as_bytes())
            .map_or(revision, |s| s.created);
        let stored = Stored {
            value: value.into(),
            created,
            changed: revision,
        };
        self.keys.insert(key.into(), stored.clone());
        self.replica.step(revision, [(key.into(), Some(stored))])
    }

    fn delete(&mut self, key: &str) -> Vec<Change> {
        self.revision += 1;
        self.keys.remove(key.as_bytes());
        self.replica
            .step(Revision(self.revision), [(key.into(), None)])
    }

    fn put_service(&mut self, service: &VirtualService) -> Vec<Change> {
        let key = Layout::default().service(&service.id);
        self.put(&key, records::write_service(service, None))
    }

    fn put_server(&mut self, service: &str, server: &RealServer) -> Vec<Change> {
        let key = Layout::default().server(&id(service), &server.key);
        self.put(&key, records::write_server(&id(service), server, None))
    }

    fn names(&self) -> Vec<String> {
        let services = self.replica.catalog().services();
        services.map(|service| service.id.to_string()).collect()
    }

    fn servers(&self, service: &str) -> Vec<String> {
        let service = self.replica.catalog().service(&id(service)).unwrap();
        service.servers.keys().map(ToString::to_string).collect()
    }

    fn problem(&self) -> Problem {
        let problems = self.replica.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.get_min().unwrap().clone()
    }

    fn relisted(&self) -> Replica {
        let mut replica = Replica::default();
        let list = self
            .keys
            .iter()
            .map(|(key, stored)| (key.clone(), stored.clone()));
        replica.relist(History::Same, list);
        replica
    }
}

#[test]
fn records_become_a_catalog_with_the_stores_revisions() {
    let mut store = Store::default();
    store.put_service(&service("web", "10.0.0.1:80", Scheduler::Wrr));
    store.put_server("web", &server("10.1.0.1:80", 1));
    store.put_server("web", &server("10.1.0.1:80", 5));
    let catalog = store.replica.catalog();
    let web = catalog.service(&id("web")).unwrap();
    assert_eq!((web.created, web.changed), (Revision(1), Revision(1)));
    let server = web.servers.values().next().unwrap();
    assert_eq!((server.created, server.changed), (Revision(2), Revision(3)));
    assert_eq!(server.config.weight.get(), 5);
    assert_eq!(catalog.revision(), Revision(3));
    assert!(store.replica.problems().is_empty());
    assert_eq!(store.replica.len(), 2);
}

#[test]
fn a_step_tells_what_changed_and_nothing_else() {
    let mut store = Store::default();
    let changes = store.put_service(&service("web", "10.0.0.1:80", Scheduler::Wrr));
    assert!(matches!(&changes[..], [Change::ServicePut(web)] if web.servers.is_empty()));
    let changes = store.put_server("web", &server("10.1.0.1:80", 1));
    assert!(
        matches!(&changes[..], [Change::ServerPut { .. }]),
        "{changes:?}"
    );
    let changes = store.put_service(&service("web", "10.0.0.1:80", Scheduler::Rr));
    assert!(matches!(&changes[..], [Change::ServicePut(web)] if web.servers.len() == 1));
    let changes = store.delete("/merlin/services/web");
    assert!(
        matches!(
            &changes[..],
            [Change::ServerDeleted { .. }, Change::ServiceDeleted { .. }]
        ),
        "{changes:?}"
    );
    assert_eq!(store.problem().key, "/merlin/servers/web/10.1.0.1:80");
    assert_eq!(store.delete("/merlin/servers/web/10.1.0.1:80"), []);
    assert!(store.replica.is_empty());
}

#[test]
fn servers_that_come_before_their_service_wait_for_it() {
    let mut store = Store::default();
    assert_eq!(store.put_server("web", &server("10.1.0.1:80", 1)), []);
    assert!(
        store
            .problem()
            .reason
            .contains("service web is not in the catalog")
    );
    let changes = store.put_service(&service("web", "10.0.0.1:80", Scheduler::Wrr));
    assert!(matches!(
        &changes[..],
        [Change::ServicePut(_), Change::ServerPut { .. }]
    ));
    assert!(store.replica.problems().is_empty());
}

#[test]
fn a_service_does_not_get_the_servers_of_one_whose_name_begins_alike() {
    let mut store = Store::default();
    store.put_service(&service("web", "10.0.0.1:80", Scheduler::Wrr));
    store.put_service(&service("web2", "10.0.0.2:80", Scheduler::Wrr));
    store.put_server("web2", &server("10.1.0.1:80", 1));
    assert_eq!(store.servers("web"), Vec::<String>::new());
}

#[test]
fn of_two_services_on_one_key_the_first_has_it_until_it_lets_go() {
    let mut store = Store::default();
    store.put_service(&service("zeta", "10.0.0.1:80", Scheduler::Wrr));
    let changes = store.put_service(&service("alpha", "10.0.0.1:80", Scheduler::Wrr));
    assert_eq!(changes, []);
    assert_eq!(store.names(), ["zeta"]);
    assert_eq!(store.problem().key, "/merlin/services/alpha");
    assert!(store.problem().reason.contains("belongs to service zeta"));
    store.put_server("alpha", &server("10.1.0.1:80", 1));
    assert_eq!(store.replica.problems().len(), 2);

    store.delete("/merlin/services/zeta");
    assert_eq!(store.names(), ["alpha"]);
    assert_eq!(store.servers("alpha"), ["10.1.0.1:80"]);
    assert!(store.replica.problems().is_empty());

    store.put_service(&service("beta", "10.0.0.1:80", Scheduler::Wrr));
    store.put_service(&service("alpha", "10.0.0.9:80", Scheduler::Wrr));
    assert_eq!(store.names(), ["alpha", "beta"], "it moved away");
}

#[test]
fn services_may_exchange_their_keys_in_one_step() {
    let mut store = Store::default();
    let (a, b) = ("10.0.0.1:80", "10.0.0.2:80");
    store.put_service(&service("a", a, Scheduler::Wrr));
    store.put_service(&service("b", b, Scheduler::Wrr));
    let swapped = [
        service("a", b, Scheduler::Wrr),
        service("b", a, Scheduler::Wrr),
    ];
    let updates = swapped.map(|service| {
        let stored = Stored {
            value: records::write_service(&service, None).into(),
            created: Revision(1),
            changed: Revision(3),
        };
        (
            Layout::default().service(&service.id).into_bytes(),
            Some(stored),
        )
    });
    store.replica.step(Revision(3), updates);
    assert_eq!(store.names(), ["a", "b"]);
    let holder = |key: &str| {
        let key = service("x", key, Scheduler::Wrr).key;
        store.replica.catalog().holder(&key).unwrap().id.to_string()
    };
    assert_eq!((holder(a), holder(b)), ("b".to_owned(), "a".to_owned()));
}

#[test]
fn what_cannot_be_read_is_told_and_the_rest_goes_on() {
    let mut store = Store::default();
    store.put("/merlin/services/bad", b"\xff\xff".to_vec());
    assert!(store.problem().reason.contains("not a record"));
    store.put_service(&service("web", "10.0.0.1:80", Scheduler::Wrr));
    store.put("/merlin/servers/web/10.1.0.1:80", b"nonsense".to_vec());
    store.put("/merlin/services/a/b", Vec::new());
    store.put("/merlin/servers/web", Vec::new());
    assert_eq!(store.names(), ["web"]);
    assert_eq!(store.replica.problems().len(), 4);
    assert_eq!(store.replica.len(), 5);
    for key in [
        "/merlin/services/bad",
        "/merlin/services/a/b",
        "/merlin/servers/web",
    ] {
        store.delete(key);
    }
    assert_eq!(store.problem().key, "/merlin/servers/web/10.1.0.1:80");
}

#[test]
fn a_record_that_becomes_unreadable_stays_as_it_was() {
    let mut store = Store::default();
    store.put_service(&service("web", "10.0.0.1:80", Scheduler::Wrr));
    store.put_server("web", &server("10.1.0.1:80", 1));
    assert_eq!(store.put("/merlin/services/web", b"\xff".to_vec()), []);
    assert_eq!(
        store.put("/merlin/servers/web/10.1.0.1:80", b"\xff".to_vec()),
        []
    );
    assert_eq!(store.servers("web"), ["10.1.0.1:80"]);
    let problems = store.replica.problems();
    assert_eq!(problems.len(), 2);
    assert!(
        problems
            .get_min()
            .unwrap()
            .reason
            .contains("kept as it was"),
        "{problems:?}"
    );
    // A list says no more than the single steps did.
    let list: Vec<_> = store.keys.clone().into_iter().collect();
    assert_eq!(store.replica.relist(History::Same, list), []);
    assert_eq!(store.servers("web"), ["10.1.0.1:80"]);
    store.delete("/merlin/services/web");
    assert_eq!(
        store.names(),
        Vec::<String>::new(),
        "a deletion can be read"
    );
}

#[test]
fn a_server_that_does_not_suit_its_service_is_passed_over() {
    let mut store = Store::default();
    store.put_service(&service("web", "10.0.0.1:80", Scheduler::Wrr));
    store.put_server("web", &server("[fd00::1]:80", 1));
    assert_eq!(store.servers("web"), Vec::<String>::new());
    assert!(store.problem().reason.contains("family"));
}

#[test]
fn a_list_of_another_history_counts_as_that_one_does() {
    let mut store = Store::default();
    for port in 1..=9 {
        store.put_service(&service(
            &format!("s{port}"),
            &format!("10.0.0.1:{port}"),
            Scheduler::Rr,
        ));
    }
    let kept = store
        .keys
        .iter()
        .next()
        .map(|(key, stored)| (key.clone(), stored.clone()));
    let changes = store.replica.relist(History::Another, kept.clone());
    assert_eq!(changes.len(), 8);
    assert_eq!(store.replica.revision(), Revision(1));
    assert_eq!(store.replica.relist(History::Same, kept), []);
}

#[test]
fn a_list_keeps_the_revision_of_a_deletion_it_cannot_show() {
    let mut store = Store::default();
    store.put_service(&service("web", "10.0.0.1:80", Scheduler::Wrr));
    store.delete("/merlin/services/web");
    store.replica.relist(History::Same, []);
    assert_eq!(store.replica.revision(), Revision(2));
}

fn writes() -> impl Strategy<Value = Vec<(u8, u8, u8, u8)>> {
    proptest::collection::vec((0..8_u8, 0..3_u8, 0..3_u8, any::<u8>()), 1..40)
}

proptest! {
    #[test]
    fn steps_and_lists_make_the_same_catalog(writes in writes()) {
        let mut store = Store::default();
        let mut follower = Catalog::default();
        for (kind, a, b, value) in writes {
            let (name, at) = (format!("s{a}"), format!("10.0.0.{}:80", b + 1));
            let changes = match kind {
                0 => store.delete(&format!("/merlin/services/{name}")),
                1 => store.delete(&format!("/merlin/servers/{name}/{at}")),
                2..=4 => store.put_service(&service(&name, &at, Scheduler::Wrr)),
                _ => store.put_server(&name, &server(&at, value.into())),
            };
            follower.follow(store.replica.revision(), &changes);
            let relisted = store.relisted();
            prop_assert!(relisted.catalog().services().eq(store.replica.catalog().services()));
            prop_assert_eq!(relisted.problems(), store.replica.problems());
            prop_assert_eq!(relisted.len(), store.replica.len());
            prop_assert!(store.replica.keys().map(String::into_bytes).eq(relisted.keys().map(String::into_bytes)));
            prop_assert_eq!(&follower, store.replica.catalog());
            prop_assert!(!store.replica.claims.values().any(OrdSet::is_empty));
        }
    }
}
