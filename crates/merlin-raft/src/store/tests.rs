use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use merlin_model::{Rejection, Revision};

use super::*;
use crate::config::{Config, Timers};
use crate::knock::Here;
use crate::level::Level;
use crate::open::Disk;
use crate::state::tests::create;
use crate::typ::MerlinNode;

const PATIENCE: Duration = Duration::from_secs(10);

fn config(dir: &Path) -> Config {
    Config {
        data_dir: dir.to_owned(),
        node_name: "n1".into(),
        advertise: "127.0.0.1:0".into(),
        advertise_guessed: false,
        peer_addr: ([127, 0, 0, 1], 0).into(),
        timers: Timers {
            heartbeat: Duration::from_millis(20),
            election_min: Duration::from_millis(180),
            election_max: Duration::from_millis(240),
            ..Timers::default()
        },
        level: Level::LATEST,
        snapshot_every: None,
    }
}

#[tokio::test]
async fn an_empty_directory_becomes_a_cluster_that_remembers() {
    let dir = tempfile::tempdir().unwrap();
    let store = RaftStore::open(config(dir.path())).await.unwrap();
    let reply = store.propose(create(1), PATIENCE).await.unwrap();
    assert_eq!(reply.revision, Revision(1));
    let again = store.propose(create(1), PATIENCE).await.unwrap();
    assert_eq!(again, reply, "the same request id has the same answer");
    let catalog = store
        .read(Consistency::Linearizable, PATIENCE)
        .await
        .unwrap();
    assert_eq!(catalog.revision(), Revision(1));
    let id = store.cluster_id();
    store.shutdown().await;
    drop(store);

    let store = RaftStore::open(config(dir.path())).await.unwrap();
    assert_eq!(store.cluster_id(), id);
    assert_eq!(*store.catalog().borrow(), catalog);
    store.shutdown().await;
}

#[tokio::test]
async fn commands_that_arrive_together_are_each_answered() {
    let dir = tempfile::tempdir().unwrap();
    let store = RaftStore::open(config(dir.path())).await.unwrap();
    let refused = AtomicU64::new(0);
    let propose = async |n: u64| {
        let command = Command {
            request_id: None,
            ..create(n % 200)
        };
        match store.propose(command, PATIENCE).await {
            Ok(_) => {}
            Err(ProposeError::Rejected(Rejection::ServiceExists(_))) => {
                refused.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => panic!("{error}"),
        }
    };
    futures::future::join_all((0..300).map(propose)).await;
    assert_eq!(refused.into_inner(), 100);
    assert_eq!(store.catalog().borrow().revision(), Revision(200));
    store.shutdown().await;
}

#[tokio::test]
async fn a_founding_that_a_crash_interrupted_is_finished_by_the_next_start() {
    let named = tempfile::tempdir().unwrap();
    let disk = Disk::open(named.path().to_owned()).await.unwrap();
    let cluster = disk.node.cluster;
    drop(disk);
    let store = RaftStore::open(config(named.path())).await.unwrap();
    assert_eq!(store.cluster_id(), cluster);
    store.propose(create(1), PATIENCE).await.unwrap();
    store.shutdown().await;

    let initialized = tempfile::tempdir().unwrap();
    let disk = Disk::open(initialized.path().to_owned()).await.unwrap();
    let dial = crate::testing::Network::default().dial(1);
    let timers = config(initialized.path()).timers;
    let this = MerlinNode::default();
    let here = Here {
        node: this.clone(),
        guessed: false,
    };
    let assembled = RaftStore::assemble(disk, here, timers, dial).await;
    let store = assembled.unwrap();
    let nodes = std::collections::BTreeMap::from([(1, this)]);
    let raft = &store.inner.consensus.raft;
    raft.initialize(nodes).await.unwrap();
    store.shutdown().await;
    drop(store);
    let store = RaftStore::open(config(initialized.path())).await.unwrap();
    assert!(store.inner.views.cluster.borrow().founding.is_some());
    store.shutdown().await;
}

#[tokio::test]
async fn a_command_larger_than_an_entry_is_refused_before_it_is_sent_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = RaftStore::open(config(dir.path())).await.unwrap();
    let large = merlin_proto::log::Command {
        request_id: "x".repeat(crate::proposer::BATCH_BYTES),
        ..(&create(1)).into()
    };
    let deadline = Instant::now() + PATIENCE;
    let refused = store.inner.proposer.propose(large, Origin::Here, deadline);
    let refused = refused.await;
    assert!(
        matches!(refused, Err(ProposeError::TooLarge { .. })),
        "{refused:?}"
    );
    store.shutdown().await;
}

#[tokio::test]
async fn a_store_that_is_shut_down_says_so_and_frees_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = RaftStore::open(config(dir.path())).await.unwrap();
    store.shutdown().await;
    store.shutdown().await;
    let refused = store.propose(create(1), PATIENCE).await;
    let Err(ProposeError::Unavailable { reason }) = refused else {
        panic!("{refused:?}");
    };
    assert!(reason.contains("shutting down"), "{reason}");
    drop(store);
    let again = RaftStore::open(config(dir.path())).await.unwrap();
    again.shutdown().await;
}
