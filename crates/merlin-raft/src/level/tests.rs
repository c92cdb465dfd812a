use merlin_model::Actor;

use super::*;
use crate::codec::DecodeError;
use crate::identity::{ClientCommand, ClientId, Role};
use crate::open::Disk;
use crate::state::tests::create;
use crate::testing::{PATIENCE, TIMERS, TestCluster, eventually, pause};
use crate::{OpenError, RaftStore};

/// Something that needs more than the first level, and its refusal if any.
async fn newer(node: &RaftStore) -> Result<(), ProposeError> {
    let command = ClientCommand::Revoke(ClientId::random().to_string());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let registry = node.registry();
    let decided = registry.decide_client(command, Actor::Unknown, deadline);
    decided.await.map(drop)
}

fn agreed(node: &RaftStore) -> Level {
    node.inner.consensus.levels.agreed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_member_cannot_apply_waits_for_its_upgrade() {
    let mut cluster = TestCluster::of_level(3, Level::FIRST).await;
    cluster.level = Level::LATEST;
    let mut written = 0;
    for (upgraded, left) in [
        (0, "1 (n1), 2 (n2), 3 (n3)"),
        (1, "2 (n2), 3 (n3)"),
        (2, "3 (n3)"),
    ] {
        if upgraded > 0 {
            cluster.stop(upgraded).await;
            cluster.start(upgraded).await;
        }
        cluster.leader().await;
        cluster.converged().await;
        for node in cluster.nodes() {
            let refused = newer(node).await.unwrap_err();
            let words = left.replace(", ", ", node ");
            assert!(
                matches!(refused, ProposeError::Outdated { .. }),
                "{refused}"
            );
            let expected = format!("upgrade node {words} first");
            assert!(refused.to_string().contains(&expected), "{refused}");
            // What every member knows goes on.
            written += 1;
            node.propose(create(written), PATIENCE).await.unwrap();
        }
    }
    cluster.stop(3).await;
    // One that is away may come back as what it was.
    let refused = newer(cluster.leader().await).await.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("node 3 (n3), which does not answer"),
        "{refused}"
    );
    cluster.start(3).await;
    let latest = || cluster.nodes().all(|node| agreed(node) == Level::LATEST);
    eventually("the cluster agrees on the latest level", latest).await;
    for node in cluster.nodes() {
        newer(node).await.unwrap();
    }
    // From now on it takes no quorum of words to be sure.
    cluster.stop(3).await;
    newer(cluster.leader().await).await.unwrap();
    let mut disk = Disk::open(cluster.disk(3)).await.unwrap();
    assert!(disk.limit(Level::LATEST).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_knows_too_little_is_not_let_in() {
    let mut cluster = TestCluster::of(1).await;
    assert_eq!(agreed(cluster.node(1)), Level::LATEST);
    cluster.level = Level::FIRST;
    cluster.introduce(2, Role::Voter, &[]).await;
    let until = tokio::time::Instant::now() + TIMERS.election_min * 10;
    while tokio::time::Instant::now() < until {
        assert_eq!(cluster.node(1).status().members.len(), 1);
        pause().await;
    }
    cluster.stop(2).await;
    cluster.level = Level::LATEST;
    cluster.start(2).await;
    eventually("it is let in", || {
        cluster.node(1).status().members.len() == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_version_does_not_go_on_where_a_later_one_was() {
    let mut cluster = TestCluster::of(1).await;
    let node = cluster.node(1);
    for n in 1..=3 {
        node.propose(create(n), PATIENCE).await.unwrap();
    }
    let trigger = node.inner.consensus.raft.trigger();
    trigger.snapshot().await.unwrap();
    eventually("a snapshot", || cluster.node(1).status().snapshot.is_some()).await;
    cluster.stop(1).await;
    let mut disk = Disk::open(cluster.disk(1)).await.unwrap();
    let refused = disk.limit(Level::FIRST).unwrap_err();
    assert!(matches!(refused, OpenError::Outdated { .. }), "{refused}");
    let level = format!("level {}", Level::LATEST);
    assert!(refused.to_string().contains(&level), "{refused}");
}

#[tokio::test]
async fn a_member_away_is_not_waited_for_for_long() {
    let cluster = TestCluster::of_level(1, Level::FIRST).await;
    let before = tokio::time::Instant::now();
    newer(cluster.node(1)).await.unwrap_err();
    assert!(before.elapsed() < Duration::from_secs(1));
}

#[test]
fn later_levels_are_told_from_known_ones() {
    let later = Level::LATEST.number() + 1;
    assert_eq!(Level::new(later), None);
    assert_eq!(Level::new(0), None);
    assert_eq!(Level::of_message(0), Level::FIRST);
    let refused = crate::proposal::check(Level::of_message(later), Level::LATEST);
    assert!(matches!(refused, Err(DecodeError::Newer { .. })));
}
