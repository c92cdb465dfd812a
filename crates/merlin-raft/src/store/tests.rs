use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use merlin_model::{Rejection, Revision};

use super::*;
use crate::config::{Config, Timers};
use crate::state::tests::create;

const PATIENCE: Duration = Duration::from_secs(10);

fn config(dir: &Path) -> Config {
    Config {
        data_dir: dir.to_owned(),
        node_name: "n1".into(),
        advertise: "127.0.0.1:0".into(),
        peer_addr: ([127, 0, 0, 1], 0).into(),
        timers: Timers {
            heartbeat: Duration::from_millis(20),
            election_min: Duration::from_millis(60),
            election_max: Duration::from_millis(120),
        },
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
