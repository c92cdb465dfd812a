//! Several nodes, and what goes wrong between them.

use std::time::Duration;

use bytes::Bytes;
use merlin_model::store::{Consistency, ProposeError, ReadError};
use merlin_model::{Command, EventRing, Revision};
use tokio::sync::watch;

use crate::RaftStore;
use crate::state::tests::create;
use crate::testing::{PATIENCE, TIMERS, TestCluster, eventually, soon};

/// Long enough to be decided, short enough to wait for when it cannot be.
pub(super) const SHORT: Duration = Duration::from_millis(500);

/// Retries until the command is decided, as a client would, always with the same request id.
pub(super) async fn insist(node: &RaftStore, command: Command) -> Revision {
    let decided = async {
        loop {
            match node.propose(command.clone(), SHORT).await {
                Ok(reply) => return reply.revision,
                Err(ProposeError::Unavailable { .. } | ProposeError::Unknown { .. }) => {
                    crate::testing::pause().await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    soon("a command is decided", decided).await
}

pub(super) fn holds(node: &RaftStore, n: u64) -> bool {
    let id = merlin_model::ServiceId::new(&format!("service-{n}")).unwrap();
    node.catalog().borrow().service(&id).is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_takes_writes_and_gives_reads_that_see_them() {
    let cluster = TestCluster::of(3).await;
    for (n, node) in (1..).zip(cluster.nodes()) {
        let reply = node.propose(create(n), PATIENCE).await.unwrap();
        assert_eq!(reply.revision, Revision(n));
        for reader in cluster.nodes() {
            let catalog = reader.read(Consistency::Linearizable, PATIENCE).await;
            assert_eq!(catalog.unwrap().revision(), Revision(n));
        }
    }
    cluster.converged().await;
}

/// What it knew to be committed it may have lost, and reads it confirmed would miss the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_starts_again_has_to_be_elected_again() {
    for size in [1, 3] {
        let mut cluster = TestCluster::of(size).await;
        insist(cluster.node(1), create(1)).await;
        let leader = cluster.leader().await;
        let (id, term) = (leader.node_id(), leader.status().term);
        // Back before anybody misses it.
        cluster.stop(id).await;
        cluster.start(id).await;
        assert!(cluster.leader().await.status().term > term, "of {size}");
        for node in cluster.nodes() {
            let catalog = node.read(Consistency::Linearizable, PATIENCE).await;
            assert_eq!(catalog.unwrap().revision(), Revision(1));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_its_leader() {
    let mut cluster = TestCluster::of(3).await;
    let mut acknowledged = 0;
    for _ in 0..2 {
        let writer = cluster.follower().await.clone();
        for _ in 0..20 {
            acknowledged += 1;
            insist(&writer, create(acknowledged)).await;
        }
        let leader = cluster.leader().await.node_id();
        cluster.stop(leader).await;
        let successor = cluster.leader().await;
        assert!((1..=acknowledged).all(|n| holds(successor, n)));
        acknowledged += 1;
        insist(successor, create(acknowledged)).await;
        cluster.start(leader).await;
        cluster.converged().await;
    }
    let status = cluster.leader().await.status();
    assert_eq!(status.members.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_of_an_unknown_outcome_happens_once() {
    let cluster = TestCluster::of(3).await;
    let old = cluster.leader().await.clone();
    // The entry reaches the others, their answers do not come back.
    for other in cluster.ids() {
        cluster.network.cut(other, old.node_id());
    }
    let outcome = old.propose(create(1), SHORT).await;
    assert!(
        matches!(outcome, Err(ProposeError::Unknown { .. })),
        "{outcome:?}"
    );
    eventually("another leader is found", || {
        cluster.nodes().any(|node| {
            let status = node.status();
            status.role == crate::Role::Leader && status.node != old.node_id()
        })
    })
    .await;
    let successor = cluster
        .nodes()
        .find(|node| node.status().role == crate::Role::Leader && node.node_id() != old.node_id());
    let revision = insist(successor.unwrap(), create(1)).await;
    assert_eq!(revision, Revision(1));
    cluster.network.mend();
    cluster.converged().await;
    // The same answer anywhere, at any time, and no second effect.
    assert_eq!(insist(&old, create(1)).await, Revision(1));
    assert_eq!(old.catalog().borrow().revision(), Revision(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_from_the_others_soon_takes_no_more_commands() {
    let cluster = TestCluster::of(3).await;
    let leader = cluster.leader().await.clone();
    insist(&leader, create(1)).await;
    cluster.network.isolate(leader.node_id(), cluster.ids());
    let outcome = leader.propose(create(2), SHORT).await;
    assert!(matches!(outcome, Err(ProposeError::Unknown { .. })));
    eventually("the leader notices", || {
        leader.status().unavailable.is_some()
    })
    .await;
    let before = tokio::time::Instant::now();
    let outcome = leader.propose(create(3), PATIENCE).await;
    assert!(matches!(outcome, Err(ProposeError::Unavailable { .. })));
    let read = leader.read(Consistency::Linearizable, PATIENCE).await;
    assert!(matches!(read, Err(ReadError::Unavailable { .. })));
    assert!(before.elapsed() < TIMERS.isolation(), "failed fast");
    // What it holds it can still show.
    let stale = leader.read(Consistency::Stale, PATIENCE).await.unwrap();
    assert_eq!(stale.revision(), Revision(1));

    cluster.network.mend();
    cluster.converged().await;
    // What was refused for certain is nowhere.
    assert!(cluster.nodes().all(|node| !holds(node, 3)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_cut_off_from_the_leader_neither_writes_nor_confirms_reads() {
    let cluster = TestCluster::of(3).await;
    let follower = cluster.follower().await.clone();
    cluster.network.isolate(follower.node_id(), cluster.ids());
    eventually("the follower misses its leader", || {
        follower.status().unavailable.is_some()
    })
    .await;
    let outcome = follower.propose(create(1), SHORT).await;
    assert!(matches!(outcome, Err(ProposeError::Unavailable { .. })));
    let read = follower.read(Consistency::Linearizable, SHORT).await;
    assert!(read.is_err());
    follower.read(Consistency::Stale, SHORT).await.unwrap();

    insist(cluster.leader().await, create(2)).await;
    cluster.network.mend();
    cluster.converged().await;
    assert!(holds(&follower, 2) && !holds(&follower, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_forwarded_once_and_not_around_in_circles() {
    let cluster = TestCluster::of(3).await;
    let leader = cluster.leader().await.clone();
    let follower = cluster.follower().await.clone();
    // The follower still takes the leader for one when nobody else does.
    cluster.network.isolate(leader.node_id(), cluster.ids());
    let outcome = follower.propose(create(1), SHORT).await;
    assert!(
        matches!(
            outcome,
            Err(ProposeError::Unknown { .. } | ProposeError::Unavailable { .. })
        ),
        "{outcome:?}"
    );
    cluster.network.mend();
    cluster.converged().await;
    assert!(
        cluster
            .nodes()
            .all(|node| node.catalog().borrow().revision().0 <= 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_missed_more_than_the_log_holds_gets_a_snapshot() {
    let mut cluster = TestCluster::of(3).await;
    let absent = cluster.follower().await.node_id();
    cluster.stop(absent).await;
    let leader = cluster.leader().await.clone();
    for n in 1..=30 {
        insist(&leader, create(n)).await;
    }
    forget_log(&leader).await;
    insist(&leader, create(31)).await;

    cluster.start(absent).await;
    cluster.converged().await;
    let late = cluster.node(absent);
    assert_eq!(late.catalog().borrow().revision(), Revision(31));
    assert!(late.status().snapshot.is_some());
    // Watches of events there have to begin anew.
    assert!(late.events().borrow().after(Revision(3)).is_err());
    // It can lead as well as any other, and starts from the snapshot it was given.
    cluster.stop(absent).await;
    cluster.start(absent).await;
    cluster.converged().await;
}

/// Has a node take a snapshot and drop the log before it.
async fn forget_log(node: &RaftStore) {
    let raft = &node.inner.consensus.raft;
    let upto = node.status().applied.unwrap();
    raft.trigger().snapshot().await.unwrap();
    eventually("the snapshot is taken", || {
        node.status().snapshot >= Some(upto)
    })
    .await;
    raft.trigger().purge_log(upto).await.unwrap();
    eventually("the log is dropped", || {
        raft.metrics().borrow().purged.map(|at| at.index) >= Some(upto)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_restarts_from_snapshot_and_log_and_without_the_others() {
    let mut cluster = TestCluster::of(3).await;
    let writer = cluster.leader().await.clone();
    for n in 1..=10 {
        insist(&writer, create(n)).await;
    }
    forget_log(&writer).await;
    for n in 11..=20 {
        insist(&writer, create(n)).await;
    }
    cluster.converged().await;
    let id = writer.node_id();
    drop(writer);
    for node in cluster.ids() {
        cluster.stop(node).await;
    }
    // Alone, it cannot decide anything, but it knows what was decided at once.
    cluster.start(id).await;
    let alone = cluster.node(id).clone();
    assert_eq!(alone.catalog().borrow().revision(), Revision(20));
    let outcome = alone.propose(create(21), SHORT).await;
    assert!(matches!(outcome, Err(ProposeError::Unavailable { .. })));
    let events = alone.events().borrow().clone();
    assert_eq!(events.after(Revision(10)).unwrap().count(), 10);

    for other in [1, 2, 3].into_iter().filter(|other| *other != id) {
        cluster.start(other).await;
    }
    insist(&alone, create(21)).await;
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_reach_every_node_in_order_and_without_a_gap() {
    let cluster = TestCluster::of(3).await;
    let follower = cluster.follower().await;
    let watcher = tokio::spawn(follow(follower.events(), 300));
    let propose = async |n: u64| insist(cluster.node(1 + n % 3), create(n)).await;
    futures::future::join_all((1..=300).map(propose)).await;
    let seen = soon("the watcher sees everything", watcher).await.unwrap();
    assert_eq!(seen, (1..=300).collect::<Vec<_>>());
}

async fn follow(mut events: watch::Receiver<EventRing>, until: u64) -> Vec<u64> {
    let mut seen = Vec::new();
    while seen.last() != Some(&until) {
        events.changed().await.unwrap();
        let ring = events.borrow_and_update().clone();
        let since = Revision(seen.last().copied().unwrap_or(0));
        seen.extend(ring.after(since).unwrap().map(|group| group.revision.0));
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_can_ask_each_other() {
    let cluster = TestCluster::of(2).await;
    for node in cluster.nodes() {
        let id = node.node_id();
        node.set_answerer(move |question: Bytes| async move {
            [&question[..], format!(" {id}").as_bytes()].concat().into()
        });
    }
    for to in [1, 2] {
        let question = Bytes::from_static(b"who are you?");
        let answer = cluster.node(1).ask(to, question, PATIENCE).await.unwrap();
        assert_eq!(answer, format!("who are you? {to}"));
    }
    let unknown = cluster.node(1).ask(9, Bytes::new(), PATIENCE).await;
    assert!(matches!(unknown, Err(super::AskError::UnknownNode(9))));
    cluster.network.cut(2, 1);
    let silent = cluster.node(1).ask(2, Bytes::new(), SHORT).await;
    assert!(matches!(silent, Err(super::AskError::NoAnswer(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_is_not_understood_ends_the_store_with_words() {
    let cluster = TestCluster::of(1).await;
    let store = cluster.node(1);
    insist(store, create(1)).await;
    let garbage = crate::typ::Proposal(Bytes::from_static(b"\xff\xff"));
    let _ = store.inner.consensus.raft.client_write(garbage).await;
    let failure = soon("the failure shows", store.failed()).await;
    assert!(failure.to_string().contains("proposal"), "{failure}");
    let outcome = store.propose(create(2), SHORT).await;
    assert!(matches!(outcome, Err(ProposeError::Unavailable { .. })));
    // What it holds stays available to the reconciler.
    assert_eq!(store.catalog().borrow().revision(), Revision(1));
}
