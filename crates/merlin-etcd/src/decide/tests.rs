//! Every decision is carried out on a model of the store: a map with revisions and transactions.

use std::collections::BTreeMap;

use merlin_model::command::{ServerPatch, ServicePatch};
use merlin_model::{
    Forwarding, HealthCheck, Protocol, RealServerConfig, Scheduler, ServiceConfig, ServiceKey,
    Timestamp, Weight,
};
use proptest::prelude::*;

use super::*;
use crate::replica::{History, Stored};

#[derive(Clone, Debug, Default)]
struct Model {
    revision: u64,
    keys: BTreeMap<String, Stored>,
}

impl Model {
    fn holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::Absent { key } => !self.keys.contains_key(key),
            Guard::Unchanged { key, since } => self
                .keys
                .get(key)
                .is_some_and(|stored| stored.changed == *since),
            Guard::Quiet { prefix, since } => {
                let mut below = self.keys.iter().filter(|(key, _)| key.starts_with(prefix));
                below.all(|(_, stored)| stored.changed <= *since)
            }
        }
    }

    /// Carries a decision out if its guards hold.
    fn commit(&mut self, decision: &Decision) -> bool {
        if !decision.guards.iter().all(|guard| self.holds(guard)) {
            return false;
        }
        if !decision.writes.is_empty() {
            self.revision += 1;
        }
        for write in &decision.writes {
            match write {
                Write::Put { key, value } => self.put_at(key, value.clone()),
                Write::Delete { key } => drop(self.keys.remove(key)),
                Write::DeleteAll { prefix } => self.keys.retain(|key, _| !key.starts_with(prefix)),
            }
        }
        true
    }

    fn put_at(&mut self, key: &str, value: Vec<u8>) {
        let revision = Revision(self.revision);
        let created = self.keys.get(key).map_or(revision, |stored| stored.created);
        let stored = Stored {
            value: value.into(),
            created,
            changed: revision,
        };
        self.keys.insert(key.to_owned(), stored);
    }

    /// Somebody else writes.
    fn put(&mut self, key: &str, value: &[u8]) {
        self.revision += 1;
        self.put_at(key, value.to_vec());
    }

    fn replica(&self) -> Replica {
        let mut replica = Replica::default();
        let list = self
            .keys
            .iter()
            .map(|(key, stored)| (key.clone().into_bytes(), stored.clone()));
        replica.relist(History::Same, list);
        replica
    }

    /// As a node that is up to date has it decided.
    fn run(&mut self, mutation: Mutation) -> Result<bool, Rejection> {
        let decision = decide(&self.replica(), &command(mutation));
        assert!(self.commit(&decision), "{decision:?}");
        decision.answer
    }
}

fn command(mutation: Mutation) -> Command {
    Command::new(Timestamp::default(), mutation)
}

fn id(id: &str) -> ServiceId {
    ServiceId::new(id).unwrap()
}

fn key(at: &str) -> ServiceKey {
    let at: std::net::SocketAddr = at.parse().unwrap();
    ServiceKey::Address {
        address: at.ip(),
        port: at.port(),
        protocol: Protocol::Tcp,
    }
}

fn at(at: &str) -> RealServerKey {
    at.parse::<std::net::SocketAddr>().unwrap().into()
}

fn create(service: &str, address: &str) -> Mutation {
    Mutation::CreateService {
        id: id(service),
        key: key(address),
        config: ServiceConfig::new(Scheduler::Wrr),
    }
}

fn update(service: &str, scheduler: Scheduler) -> Mutation {
    Mutation::UpdateService {
        id: id(service),
        patch: ServicePatch {
            scheduler: Some(scheduler),
            ..ServicePatch::default()
        },
    }
}

fn delete(service: &str) -> Mutation {
    Mutation::DeleteService { id: id(service) }
}

fn create_server(service: &str, address: &str) -> Mutation {
    Mutation::CreateServer {
        service: id(service),
        key: at(address),
        config: RealServerConfig::new(Weight::new(1).unwrap(), Forwarding::Masq),
        check: HealthCheck::default(),
    }
}

fn update_server(service: &str, address: &str, weight: u32) -> Mutation {
    Mutation::UpdateServer {
        service: id(service),
        key: at(address),
        patch: ServerPatch {
            weight: Some(Weight::new(weight).unwrap()),
            ..ServerPatch::default()
        },
    }
}

fn delete_server(service: &str, address: &str) -> Mutation {
    Mutation::DeleteServer {
        service: id(service),
        key: at(address),
    }
}

/// What another node does meanwhile.
type Somebody = fn(&mut Model);

const SERVER: &str = "10.1.0.1:80";

/// `web` with one server.
fn web() -> Model {
    let mut model = Model::default();
    assert_eq!(model.run(create("web", "10.0.0.1:80")), Ok(true));
    assert_eq!(model.run(create_server("web", SERVER)), Ok(true));
    model
}

#[test]
fn a_service_goes_with_its_servers_in_one_transaction() {
    let mut model = web();
    model.run(create("web2", "10.0.0.2:80")).unwrap();
    model.run(create_server("web2", SERVER)).unwrap();
    assert_eq!(model.run(delete("web")), Ok(true));
    let left: Vec<_> = model.keys.keys().collect();
    assert_eq!(
        left,
        ["/merlin/servers/web2/10.1.0.1:80", "/merlin/services/web2"]
    );
    let decision = decide(&model.replica(), &command(delete("web")));
    assert_eq!((decision.answer, decision.writes), (Ok(false), vec![]));
}

#[test]
fn a_decision_on_an_old_copy_fails_wherever_somebody_was_faster() {
    let server = format!("/merlin/servers/web/{SERVER}");
    let cases: [(Mutation, Somebody); 8] = [
        (create("new", "10.0.0.9:80"), |m| {
            drop(m.run(create("new", "10.0.0.8:80")))
        }),
        // Another service on the same key.
        (create("new", "10.0.0.9:80"), |m| {
            drop(m.run(create("else", "10.0.0.9:80")))
        }),
        (update("web", Scheduler::Rr), |m| {
            drop(m.run(update("web", Scheduler::Lc)))
        }),
        (update("web", Scheduler::Rr), |m| drop(m.run(delete("web")))),
        // No server is created while its service goes.
        (create_server("web", "10.1.0.2:80"), |m| {
            drop(m.run(delete("web")))
        }),
        (update_server("web", SERVER, 7), |m| {
            drop(m.run(update_server("web", SERVER, 8)))
        }),
        (delete_server("web", SERVER), |m| {
            drop(m.run(update_server("web", SERVER, 8)))
        }),
        (delete("web"), |m| drop(m.run(update("web", Scheduler::Lc)))),
    ];
    assert!(web().keys.contains_key(&server));
    for (mutation, faster) in cases {
        let mut model = web();
        let decision = decide(&model.replica(), &command(mutation.clone()));
        assert_eq!(decision.answer, Ok(true), "{mutation:?}");
        faster(&mut model);
        let before = model.keys.clone();
        assert!(!model.commit(&decision), "{mutation:?}");
        assert_eq!(model.keys, before);
    }
}

#[test]
fn a_refusal_on_an_old_copy_does_not_count_either() {
    let cases: [(Mutation, Somebody); 5] = [
        (create("web", "10.0.0.9:80"), |m| drop(m.run(delete("web")))),
        (create("new", "10.0.0.1:80"), |m| drop(m.run(delete("web")))),
        (update("new", Scheduler::Rr), |m| {
            drop(m.run(create("new", "10.0.0.9:80")))
        }),
        (create_server("web", SERVER), |m| {
            drop(m.run(delete_server("web", SERVER)))
        }),
        (update_server("web", "10.1.0.2:80", 1), |m| {
            drop(m.run(create_server("web", "10.1.0.2:80")));
        }),
    ];
    for (mutation, faster) in cases {
        let mut model = web();
        let decision = decide(&model.replica(), &command(mutation.clone()));
        assert!(decision.answer.is_err(), "{mutation:?}");
        assert!(model.clone().commit(&decision), "it held so far");
        faster(&mut model);
        assert!(!model.commit(&decision), "{mutation:?}");
    }
}

#[test]
fn commands_about_other_objects_do_not_get_into_each_others_way() {
    let mut model = web();
    model.run(create("other", "10.0.0.2:80")).unwrap();
    let decision = decide(&model.replica(), &command(update("web", Scheduler::Rr)));
    model.run(update("other", Scheduler::Rr)).unwrap();
    model.run(create_server("other", SERVER)).unwrap();
    model.run(create_server("web", "10.1.0.2:80")).unwrap();
    assert!(model.commit(&decision));
}

#[test]
fn nobody_takes_a_key_that_an_old_node_has_just_given_away() {
    let mut model = web();
    let decision = decide(&model.replica(), &command(create("new", "10.0.0.9:80")));
    let mut old_node = model.clone();
    old_node.run(create("old", "10.0.0.9:80")).unwrap();
    let record = old_node.keys["/merlin/services/old"].value.clone();
    model.put("/merlin/services/old", &record);
    assert!(!model.commit(&decision));
    let taken = model.run(create("new", "10.0.0.9:80")).unwrap_err();
    assert!(matches!(taken, Rejection::KeyTaken { holder, .. } if holder == id("old")));
}

#[test]
fn the_expected_revision_is_the_records_own() {
    let mut model = web();
    let changed = model.keys["/merlin/services/web"].changed;
    let expecting = |expected_revision| Command {
        expected_revision: Some(expected_revision),
        ..command(update("web", Scheduler::Rr))
    };
    let stale = decide(&model.replica(), &expecting(Revision(99)));
    let expected = Revision(99);
    let conflict = Rejection::Conflict {
        expected,
        actual: Some(changed),
    };
    assert_eq!(stale.answer, Err(conflict));
    let good = decide(&model.replica(), &expecting(changed));
    assert_eq!(good.answer, Ok(true));
    assert!(model.commit(&good));
}

#[test]
fn what_the_earlier_system_left_behind_is_cleared_away() {
    let mut model = web();
    model.keys.remove("/merlin/services/web");
    assert_eq!(model.run(create("web", "10.0.0.1:80")), Ok(true));
    let replica = model.replica();
    assert_eq!(
        replica.catalog().service(&id("web")).unwrap().servers.len(),
        0
    );
    assert!(replica.problems().is_empty());

    let mut model = web();
    model.keys.remove("/merlin/services/web");
    assert_eq!(model.run(delete("web")), Ok(true));
    assert!(model.keys.is_empty());
}

#[test]
fn a_record_that_cannot_be_read_is_in_the_way_until_it_is_deleted() {
    let mut model = web();
    model.put("/merlin/services/bad", b"\xff");
    model.put(&format!("/merlin/servers/web/{SERVER}"), b"\xff");
    assert_eq!(
        model.run(create("bad", "10.0.0.9:80")),
        Err(Rejection::ServiceExists(id("bad")))
    );
    let refusal = model.run(update("bad", Scheduler::Rr)).unwrap_err();
    assert!(refusal.to_string().contains("not a record"), "{refusal}");
    let refusal = model.run(update_server("web", SERVER, 1)).unwrap_err();
    assert!(refusal.to_string().contains("delete it first"), "{refusal}");
    assert_eq!(model.run(delete("bad")), Ok(true));
    assert_eq!(model.run(delete_server("web", SERVER)), Ok(true));
    assert_eq!(model.run(create("bad", "10.0.0.9:80")), Ok(true));
    assert_eq!(model.run(create_server("web", SERVER)), Ok(true));
}

#[test]
fn a_record_is_written_where_it_was_found() {
    let mut model = web();
    let record = model
        .keys
        .remove(&format!("/merlin/servers/web/{SERVER}"))
        .unwrap();
    // An old node spelled the address in its own way.
    let mut message: merlin_proto::types::RealServer =
        prost::Message::decode(record.value).unwrap();
    message.key.as_mut().unwrap().ip = "::ffff:10.1.0.1".to_owned();
    let path = "/merlin/servers/web/::ffff:10.1.0.1:80";
    model.put(path, &prost::Message::encode_to_vec(&message));
    assert_eq!(model.run(update_server("web", SERVER, 7)), Ok(true));
    let keys: Vec<_> = model.keys.keys().map(String::as_str).collect();
    assert_eq!(keys, [path, "/merlin/services/web"]);
    assert_eq!(model.run(delete_server("web", SERVER)), Ok(true));
    assert_eq!(model.keys.len(), 1);
}

fn mutations() -> impl Strategy<Value = Mutation> {
    let service = || (0..3_u8).prop_map(|n| format!("s{n}"));
    let address = || (1..4_u8).prop_map(|n| format!("10.0.0.{n}:80"));
    prop_oneof![
        (service(), address()).prop_map(|(s, a)| create(&s, &a)),
        service().prop_map(|s| update(&s, Scheduler::Rr)),
        service().prop_map(|s| delete(&s)),
        (service(), address()).prop_map(|(s, a)| create_server(&s, &a)),
        (service(), address(), 0..9_u32).prop_map(|(s, a, w)| update_server(&s, &a, w)),
        (service(), address()).prop_map(|(s, a)| delete_server(&s, &a)),
    ]
}

proptest! {
    /// Two nodes with copies of any age: whoever commits has decided as on the newest records.
    #[test]
    fn what_is_committed_was_decided_rightly_however_old_the_copy(
        steps in proptest::collection::vec((mutations(), 0..6_usize), 1..40)
    ) {
        let mut model = Model::default();
        let mut copies = vec![model.replica()];
        for (mutation, age) in steps {
            let command = command(mutation);
            let old = &copies[copies.len().saturating_sub(age + 1)];
            let decision = decide(old, &command);
            let now = decide(&model.replica(), &command);
            let mut as_now = model.clone();
            prop_assert!(as_now.commit(&now));
            if model.commit(&decision) {
                prop_assert_eq!(decision.answer, now.answer);
                prop_assert_eq!(&model.keys, &as_now.keys);
            }
            copies.push(model.replica());
        }
    }

    /// The records say what the catalog of the embedded store says.
    #[test]
    fn every_store_has_one_rule_book(steps in proptest::collection::vec(mutations(), 1..40)) {
        let mut model = Model::default();
        let mut catalog = merlin_model::Catalog::default();
        for mutation in steps {
            let command = command(mutation);
            let decision = decide(&model.replica(), &command);
            prop_assert!(model.commit(&decision));
            let applied = catalog.apply(&command);
            prop_assert_eq!(&decision.answer, &applied.map(|applied| applied.reply.changed));
            let replica = model.replica();
            prop_assert!(replica.problems().is_empty());
            let plain = |catalog: &merlin_model::Catalog| -> Vec<_> {
                let services = catalog.services();
                services.map(|s| (s.id.clone(), s.key, s.config, s.servers.values().map(|s| {
                    (s.key, s.config, s.check.clone())
                }).collect::<Vec<_>>())).collect()
            };
            prop_assert_eq!(plain(replica.catalog()), plain(&catalog));
        }
    }
}
