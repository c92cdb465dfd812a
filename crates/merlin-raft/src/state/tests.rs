use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use merlin_model::{
    Actor, Family, Mutation, RequestId, Role, Scheduler, ServiceConfig, ServiceId, ServiceKey,
    Timestamp,
};
use openraft::CommittedLeaderId;

use super::*;
use crate::cluster::{AuthorityKeys, ClusterChange, ClusterCommand, Founding};
use crate::identity::{ClientCommand, ClientId, ClientRecord, ClusterId, KeyFingerprint};
use crate::typ::{Membership, MerlinNode, Proposal};

pub(crate) fn at(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(3, 1), index)
}

/// A command that creates a service of its own.
pub(crate) fn create(n: u64) -> Command {
    let mark = NonZeroU32::new(u32::try_from(n).unwrap() + 1).unwrap();
    let create = Mutation::CreateService {
        id: ServiceId::new(&format!("service-{n}")).unwrap(),
        key: ServiceKey::Fwmark {
            mark,
            family: Family::Ipv4,
        },
        config: ServiceConfig::new("rr".parse::<Scheduler>().unwrap()),
    };
    Command {
        by: Actor::Plaintext([127, 0, 0, 1].into()),
        request_id: Some(RequestId::new(&format!("request-{n}")).unwrap()),
        ..Command::new(Timestamp(1_000 + n), create)
    }
}

fn normal(index: u64, proposal: Proposal) -> Entry {
    Entry {
        log_id: at(index),
        payload: EntryPayload::Normal(proposal),
    }
}

/// An entry that creates a service of its own.
pub(crate) fn entry(index: u64) -> Entry {
    normal(index, Proposal::of_commands(vec![(&create(index)).into()]))
}

fn founding() -> ClusterCommand {
    ClusterCommand {
        at: Timestamp(999),
        by: Actor::Node(1),
        change: ClusterChange::Found(Founding {
            cluster: ClusterId::from_bytes([5; 16]),
            incarnation: 1,
            ca: AuthorityKeys {
                certificate: b"certificate".to_vec(),
                key: b"key".to_vec(),
            },
            level: Level::LATEST,
        }),
    }
}

fn client() -> ClusterCommand {
    let record = ClientRecord {
        name: "ana".into(),
        role: Role::Operator,
        key: KeyFingerprint([6; 32]),
        expires: Timestamp(9_000),
        revoked: false,
    };
    ClusterCommand {
        at: Timestamp(1_004),
        by: Actor::Node(1),
        change: ClusterChange::Client(ClientCommand::Create(ClientId([0x4a; 8]), record)),
    }
}

fn membership() -> Membership {
    let node = MerlinNode {
        name: "n1".into(),
        addr: "192.0.2.1:4284".into(),
    };
    let nodes = BTreeMap::from([(1, node.clone()), (2, node)]);
    Membership::new(vec![BTreeSet::from([1])], nodes)
}

/// A state with something of everything.
pub(crate) fn populated() -> State {
    let mut state = State::default();
    let entries = [
        Entry {
            log_id: at(0),
            payload: EntryPayload::Membership(membership()),
        },
        normal(1, Proposal::of_cluster(&founding())),
        entry(2),
        entry(3),
        normal(4, Proposal::of_cluster(&client())),
    ];
    for entry in entries {
        state.apply(entry, &mut Changes::new()).unwrap();
    }
    state
}

#[test]
fn each_entry_leads_to_its_answers() {
    let mut state = populated();
    let mut changes = Changes::new();
    let batch = vec![
        (&create(9)).into(),
        (&create(2)).into(),
        (&create(9)).into(),
    ];
    let entry = normal(5, Proposal::of_commands(batch));
    let Outcome::Answers(answers) = state.apply(entry, &mut changes).unwrap() else {
        panic!("commands have answers");
    };
    // Accepted, remembered from before, and remembered from the same batch.
    assert_eq!(answers[0].as_ref().unwrap().revision, Revision(3));
    assert_eq!(answers[1].as_ref().unwrap().revision, Revision(1));
    assert_eq!(answers[2], answers[0]);
    assert_eq!(changes.len(), 1);
    assert_eq!(state.applied, Some(at(5)));
}

#[test]
fn what_was_changed_is_noted_once_with_who_and_when() {
    let mut state = populated();
    let delete = |id: &str| {
        let id = ServiceId::new(id).unwrap();
        Command::new(Timestamp(7_000), Mutation::DeleteService { id })
    };
    // A retry, a refusal and a deletion of nothing change nothing.
    let refused = Command {
        request_id: None,
        ..create(2)
    };
    let batch = [
        create(9),
        create(9),
        refused,
        delete("none"),
        delete("service-9"),
    ];
    let batch = batch.iter().map(Into::into).collect();
    let entry = normal(5, Proposal::of_commands(batch));
    state.apply(entry, &mut Changes::new()).unwrap();
    let again = normal(6, Proposal::of_cluster(&founding()));
    state.apply(again, &mut Changes::new()).unwrap();
    let noted = state.audit.records().rev().map(|record| {
        let (at, by, what, revision) = (record.at.0, &record.by, &record.what, record.revision);
        format!("{at} {by}: {what} ({revision})")
    });
    let expected = [
        "999 node 1: found the cluster 05050505-0505-0505-0505-050505050505 (0)",
        "1002 127.0.0.1 in plaintext: add service service-2 FWM 3 rr (1)",
        "1003 127.0.0.1 in plaintext: add service service-3 FWM 4 rr (2)",
        "1004 node 1: create client ana (operator), id 4a4a4a4a4a4a4a4a (2)",
        "1009 127.0.0.1 in plaintext: add service service-9 FWM 10 rr (3)",
        "7000 unknown: delete service service-9 (4)",
    ];
    assert_eq!(noted.collect::<Vec<_>>(), expected);
}

#[test]
fn a_refusal_is_an_answer() {
    let mut state = populated();
    let again = Command {
        request_id: None,
        ..create(2)
    };
    let entry = normal(5, Proposal::of_commands(vec![(&again).into()]));
    let Outcome::Answers(answers) = state.apply(entry, &mut Changes::new()).unwrap() else {
        panic!("commands have answers");
    };
    assert!(answers[0].is_err());
    assert_eq!(state.catalog.revision(), Revision(2));
}

#[test]
fn a_cluster_is_founded_once() {
    let mut state = populated();
    let first = state.cluster.founding.clone();
    let mut again = founding();
    if let ClusterChange::Found(founding) = &mut again.change {
        founding.incarnation = 7;
    }
    let entry = normal(5, Proposal::of_cluster(&again));
    let outcome = state.apply(entry, &mut Changes::new()).unwrap();
    assert_eq!(outcome, Outcome::Cluster(ClusterAnswer::Founded(false)));
    assert_eq!(state.cluster.founding, first);
}

#[test]
fn an_entry_that_is_not_understood_stops_the_node() {
    let mut state = populated();
    let before = state.clone();
    let entry = normal(5, Proposal(bytes::Bytes::from_static(b"\xff")));
    assert!(state.apply(entry, &mut Changes::new()).is_err());
    assert_eq!(state, before);
}

fn machine() -> (tempfile::TempDir, StateMachine, Views) {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path().to_owned()).unwrap();
    let (machine, views) = StateMachine::new(State::default(), Arc::new(snapshots), Level::LATEST);
    (dir, machine, views)
}

#[tokio::test]
async fn what_is_applied_is_published_without_a_gap() {
    let (_dir, mut machine, views) = machine();
    machine.apply((1..=3).map(entry)).await.unwrap();
    machine.apply((4..=5).map(entry)).await.unwrap();
    assert_eq!(views.catalog.borrow().revision(), Revision(5));
    assert_eq!(*views.applied.borrow(), Some(at(5)));
    let events = views.events.borrow();
    let groups: Vec<_> = events.after(Revision(0)).unwrap().collect();
    let revisions: Vec<_> = groups.iter().map(|group| group.revision.0).collect();
    assert_eq!(revisions, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn an_installed_snapshot_replaces_the_state_and_begins_the_events_anew() {
    let (_dir, mut machine, views) = machine();
    machine.apply([entry(1)]).await.unwrap();
    let state = populated();
    let data = SnapshotData(crate::snapshot::encode(&state));
    let meta = crate::snapshot::meta(&state);
    machine
        .install_snapshot(&meta, Box::new(data))
        .await
        .unwrap();
    assert_eq!(**views.catalog.borrow(), state.catalog);
    assert_eq!(*views.cluster.borrow(), state.cluster);
    assert!(views.events.borrow().after(Revision(1)).is_err());
    let stored = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(stored.meta, meta);
}

#[tokio::test]
async fn a_snapshot_that_went_bad_on_disk_is_written_anew() {
    let (dir, mut machine, _views) = machine();
    machine.apply((1..=3).map(entry)).await.unwrap();
    let built = machine.get_snapshot_builder().await.build_snapshot().await;
    let file = std::fs::read_dir(dir.path()).unwrap().next().unwrap();
    std::fs::write(file.unwrap().path(), b"rubbish").unwrap();
    let current = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.snapshot, built.unwrap().snapshot);
}
