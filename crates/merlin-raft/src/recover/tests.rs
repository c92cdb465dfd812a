use std::time::Duration;

use merlin_model::store::{Consistency, ProposeError};

use super::*;
use crate::state::tests::create;
use crate::testing::{PATIENCE, TIMERS, TestCluster, eventually};
use crate::{Config, OpenError, RaftStore};

async fn open(path: &Path) -> Result<RaftStore, OpenError> {
    RaftStore::open(Config {
        data_dir: path.to_owned(),
        node_name: "n1".into(),
        advertise: "127.0.0.1:4284".into(),
        advertise_guessed: false,
        peer_addr: ([127, 0, 0, 1], 0).into(),
        timers: TIMERS,
        level: crate::Level::LATEST,
        snapshot_every: None,
    })
    .await
}

async fn recover(path: &Path) -> Recovered {
    let remains = Remains::inspect(path).await.unwrap();
    let recovered = remains.perform("n1".into(), "127.0.0.1:4284".into());
    recovered.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_lost_majority_may_have_acknowledged_is_kept() {
    let mut cluster = TestCluster::of(3).await;
    let leader = cluster.leader().await.clone();
    let id = leader.node_id();
    for n in 1..=3 {
        leader.propose(create(n), PATIENCE).await.unwrap();
    }
    cluster.converged().await;
    cluster.network.isolate(id, cluster.ids());
    // Logged here, and for all that is known elsewhere too.
    let short = Duration::from_millis(200);
    let outcome = leader.propose(create(4), short).await;
    assert!(
        matches!(outcome, Err(ProposeError::Unknown { .. })),
        "{outcome:?}"
    );
    drop(leader);
    for id in cluster.ids() {
        cluster.stop(id).await;
    }

    let path = cluster.disk(id);
    let remains = Remains::inspect(&path).await.unwrap();
    let summary = remains.summary();
    assert_eq!((summary.revision, summary.services), (Revision(4), 4));
    assert!(summary.uncertain >= 1, "{summary:?}");
    assert_eq!(summary.others.len(), 2);
    // As long as it is looked at, no daemon gets at it.
    assert!(matches!(open(&path).await, Err(OpenError::DataDir(_))));
    drop(remains);

    let recovered = recover(&path).await;
    assert!(recovered.backup.join("node.json").exists());
    let store = open(&path).await.unwrap();
    assert_eq!((store.node_id(), store.incarnation()), (101, 2));
    eventually("it leads", || store.status().leader == Some(101)).await;
    let catalog = store
        .read(Consistency::Linearizable, PATIENCE)
        .await
        .unwrap();
    assert_eq!(catalog.services().len(), 4);
    assert_eq!(catalog.revision(), Revision(1_000_004));
    store.propose(create(5), PATIENCE).await.unwrap();
    store.shutdown().await;
    drop(store);
    // It is its only member now, so there is nothing to recover.
    let again = Remains::inspect(&path).await.unwrap_err();
    assert!(matches!(again, RecoverError::Alone), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_is_cut_off_can_be_run_again() {
    let mut cluster = TestCluster::of(3).await;
    let leader = cluster.leader().await.clone();
    leader.propose(create(1), PATIENCE).await.unwrap();
    cluster.converged().await;
    drop(leader);
    for id in cluster.ids() {
        cluster.stop(id).await;
    }
    let path = cluster.disk(2);
    let (node, log) = (path.join("node.json"), path.join("log"));
    let old = fs::read(&node).unwrap();
    let before = recover(&path).await.backup;
    // The log was not cleared away, and the directory still has the name of the old node.
    fs::write(&node, old).unwrap();
    fs::remove_dir_all(&log).unwrap();
    copy(&before.join("log"), &log).unwrap();

    let remains = Remains::inspect(&path).await.unwrap();
    assert_eq!(remains.summary().node_name, None);
    drop(remains);
    let again = recover(&path).await;
    assert_eq!((again.reborn.name.node, again.reborn.incarnation), (201, 3));
    let store = open(&path).await.unwrap();
    eventually("it leads", || store.status().leader == Some(201)).await;
    assert_eq!(store.catalog().borrow().services().len(), 1);
    store.shutdown().await;
}

#[tokio::test]
async fn what_is_no_node_of_a_lost_cluster_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let refused = Remains::inspect(&missing).await.unwrap_err();
    assert!(matches!(refused, RecoverError::Empty { .. }), "{refused}");
    assert!(!missing.exists());

    let alone = dir.path().join("alone");
    let store = open(&alone).await.unwrap();
    let running = Remains::inspect(&alone).await.unwrap_err();
    assert!(
        running.to_string().contains("another merlin uses"),
        "{running}"
    );
    store.shutdown().await;
    drop(store);
    let refused = Remains::inspect(&alone).await.unwrap_err();
    assert!(matches!(refused, RecoverError::Alone), "{refused}");
    let store = open(&alone).await.unwrap();
    assert_eq!(store.incarnation(), 1);
    store.shutdown().await;
}
