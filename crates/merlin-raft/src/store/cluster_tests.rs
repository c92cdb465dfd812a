//! Several nodes, and what goes wrong between them.

use std::time::Duration;

use bytes::Bytes;
use merlin_model::store::{Consistency, ProposeError};
use merlin_model::{Command, Revision};

use crate::state::tests::create;
use crate::testing::{PATIENCE, TestCluster, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_takes_writes_and_gives_reads_that_see_them() {
    let cluster = TestCluster::of(3).await;
    for (n, node) in cluster.nodes().enumerate() {
        let revision = Revision(n as u64 + 1);
        let reply = node.propose(create(n as u64), PATIENCE).await.unwrap();
        assert_eq!(reply.revision, revision);
        for reader in cluster.nodes() {
            let catalog = reader.read(Consistency::Linearizable, PATIENCE).await;
            assert_eq!(catalog.unwrap().revision(), revision);
        }
    }
    cluster.converged().await;
}
