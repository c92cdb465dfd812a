//! Nodes that come and go, and a leadership that is handed on.

use std::collections::BTreeSet;

use merlin_model::store::{Consistency, ProposeError};
use openraft::ChangeMembers;
use tokio::time::Instant;

use super::cluster_tests::{SHORT, holds, insist};
use crate::identity::{EnrollmentCommand, Role as Wanted};
use crate::peers::Target;
use crate::state::tests::create;
use crate::testing::{PATIENCE, TIMERS, TestCluster, eventually, soon};
use merlin_model::Actor;

use crate::{Change, ChangeError, Changed, NodeId, RaftStore, Role, Standing};

fn remove(node: NodeId) -> Change {
    Change::Remove {
        node: node.to_string(),
        force: false,
    }
}

async fn ask(node: &RaftStore, change: Change) -> Result<Changed, ChangeError> {
    node.change(change, Actor::Unknown, PATIENCE).await
}

fn voters(node: &RaftStore) -> BTreeSet<NodeId> {
    let members = node.status().members.into_iter();
    let voters = members.filter(|member| member.role != Role::Learner);
    voters.map(|member| member.id).collect()
}

fn ids(ids: impl IntoIterator<Item = NodeId>) -> BTreeSet<NodeId> {
    ids.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_removed_is_told_so_and_keeps_what_it_has() {
    let mut cluster = TestCluster::of(3).await;
    insist(cluster.node(1), create(1)).await;
    cluster.converged().await;
    let removed = cluster.follower().await.clone();
    let id = removed.node_id();
    let rest = ids([1, 2, 3].into_iter().filter(|other| *other != id));
    // Asked for by name, on a node that does not lead.
    let asked = cluster.nodes().find(|node| {
        let role = node.status().role;
        role == Role::Follower && node.node_id() != id
    });
    let change = Change::Remove {
        node: format!("n{id}"),
        force: false,
    };
    let changed = ask(asked.unwrap(), change).await.unwrap();
    assert_eq!((changed.node, &changed.after), (id, &rest));
    assert_eq!(changed.before, ids([1, 2, 3]));

    eventually("the node learns it", || {
        removed.standing() == Standing::Removed
    })
    .await;
    let why = removed.status().unavailable.unwrap();
    assert!(why.contains("was removed"), "{why}");
    let refused = removed.propose(create(2), SHORT).await;
    assert!(matches!(refused, Err(ProposeError::Unavailable { .. })));
    // Nobody listens to it any more.
    let target = Target {
        id: *rest.first().unwrap(),
        addr: String::new(),
    };
    let refused = removed.inner.peers.hello(&target, PATIENCE).await;
    let words = refused.unwrap_err().to_string();
    assert!(words.contains("was removed"), "{words}");
    // Its catalog stays, also over a restart without the others.
    assert!(holds(&removed, 1));
    drop(removed);
    cluster.stop(id).await;
    cluster.network.isolate(id, [1, 2, 3]);
    cluster.start(id).await;
    let again = cluster.node(id).clone();
    assert_eq!(again.standing(), Standing::Removed);
    assert!(holds(&again, 1));
    cluster.forget(id);
    insist(cluster.leader().await, create(2)).await;
    assert!(!holds(&again, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_when_it_was_removed_learns_it_when_it_comes_back() {
    for role in [Wanted::Voter, Wanted::Learner] {
        let mut cluster = TestCluster::of(3).await;
        cluster.add(4, role).await;
        cluster.stop(4).await;
        let leader = cluster.leader().await.clone();
        ask(&leader, remove(4)).await.unwrap();
        let again = ask(&leader, remove(4)).await.unwrap_err();
        assert!(again.to_string().contains("removed already"), "{again}");
        cluster.start(4).await;
        let back = cluster.node(4).clone();
        eventually("it learns it", || back.standing() == Standing::Removed).await;
        cluster.forget(4);
        insist(&leader, create(1)).await;
        assert_eq!(voters(&leader), ids([1, 2, 3]));
        // Its number is not used again.
        assert_eq!(leader.enrollment().next_node, 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_removed_hands_over_first() {
    let mut cluster = TestCluster::of(3).await;
    let leader = cluster.leader().await.clone();
    let id = leader.node_id();
    insist(&leader, create(1)).await;
    let changed = ask(&leader, remove(id)).await.unwrap();
    assert!(!changed.after.contains(&id));
    eventually("it learns it", || leader.standing() == Standing::Removed).await;
    cluster.forget(id);
    let successor = cluster.leader().await.clone();
    assert_eq!(voters(&successor), changed.after);
    insist(&successor, create(2)).await;
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quorum_is_not_given_away() {
    let mut cluster = TestCluster::of(3).await;
    let absent = cluster.follower().await.node_id();
    cluster.stop(absent).await;
    let leader = cluster.leader().await.clone();
    let present = cluster.follower().await.node_id();
    for change in [remove(present), Change::Demote(present.to_string())] {
        let refused = ask(&leader, change).await.unwrap_err();
        assert!(matches!(refused, ChangeError::Refused(_)), "{refused:?}");
        assert!(refused.to_string().contains("too few"), "{refused}");
    }
    insist(&leader, create(1)).await;
    // The one that is away can go, and then the other is the last but one.
    let changed = ask(&leader, remove(absent)).await.unwrap();
    assert_eq!(changed.after, ids([leader.node_id(), present]));
    ask(&leader, remove(present)).await.unwrap();
    cluster.forget(present);
    let last = ask(&leader, remove(leader.node_id())).await;
    let words = last.unwrap_err().to_string();
    assert!(words.contains("only voter"), "{words}");
    insist(&leader, create(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_can_become_a_learner_for_good_and_a_voter_again() {
    let cluster = TestCluster::of(3).await;
    let leader = cluster.leader().await.clone();
    let follower = cluster.follower().await.clone();
    let name = follower.node_id().to_string();
    let demoted = ask(&leader, Change::Demote(name.clone())).await;
    assert!(!demoted.unwrap().already);
    assert!(!voters(&leader).contains(&follower.node_id()));
    let again = ask(&follower, Change::Demote(name.clone())).await;
    assert!(again.unwrap().already);
    insist(&follower, create(1)).await;
    let promoted = ask(&follower, Change::Promote(name.clone())).await;
    assert_eq!(promoted.unwrap().after, ids([1, 2, 3]));
    assert!(voters(&leader).contains(&follower.node_id()));
    // The leader itself can be demoted: another leads then.
    let demoted = ask(&leader, Change::Demote(leader.node_id().to_string()));
    assert!(!demoted.await.unwrap().after.contains(&leader.node_id()));
    let successor = cluster.leader().await;
    assert_ne!(successor.node_id(), leader.node_id());
    insist(&leader, create(2)).await;
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_is_promoted_once_it_has_caught_up_and_answers() {
    let mut cluster = TestCluster::of(1).await;
    cluster.add(2, Wanted::Learner).await;
    let leader = cluster.node(1).clone();
    cluster.stop(2).await;
    let away = ask(&leader, Change::Promote("2".into())).await;
    let words = away.unwrap_err().to_string();
    assert!(words.contains("does not answer"), "{words}");
    for n in 1..=100 {
        insist(&leader, create(n)).await;
    }
    cluster.start(2).await;
    let promote = async {
        loop {
            match ask(&leader, Change::Promote("n2".into())).await {
                Ok(changed) => return changed,
                // Too far behind, or not back yet.
                Err(ChangeError::Refused(_)) => crate::testing::pause().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let changed = soon("the learner gets its vote", promote).await;
    assert_eq!(changed.after, ids([1, 2]));
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_voters_and_a_rack_of_learners_agree() {
    let mut cluster = TestCluster::of(3).await;
    for id in 4..=8 {
        cluster.add(id, Wanted::Learner).await;
    }
    for (n, id) in (1..).zip(1..=8) {
        insist(cluster.node(id), create(n)).await;
    }
    cluster.converged().await;
    assert_eq!(voters(cluster.node(8)), ids([1, 2, 3]));
    for node in cluster.nodes() {
        let read = node.read(Consistency::Linearizable, PATIENCE).await;
        assert_eq!(read.unwrap().revision().0, 8);
    }
    // Learners count for nothing: without two of the voters nothing is decided.
    cluster.stop(2).await;
    cluster.stop(3).await;
    let outcome = cluster.node(8).propose(create(9), SHORT).await;
    assert!(outcome.is_err());
    cluster.start(2).await;
    cluster.start(3).await;
    insist(cluster.node(8), create(9)).await;
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_is_handed_over_without_losing_a_write() {
    let cluster = TestCluster::of(3).await;
    let writers = cluster.ids().into_iter().map(async |id| {
        let node = cluster.node(id);
        for n in 0..60 {
            insist(node, create(id * 1000 + n)).await;
        }
    });
    let transfers = async {
        for to in [1, 2, 3, 1] {
            let leader = cluster.leader().await;
            let to_it = Change::TransferLeader(Some(format!("n{to}")));
            let changed = ask(leader, to_it).await.unwrap();
            assert_eq!(changed.node, to);
            eventually("the successor leads", || {
                cluster.node(to).status().role == Role::Leader
            })
            .await;
        }
    };
    futures::join!(futures::future::join_all(writers), transfers);
    cluster.converged().await;
    let leader = cluster.leader().await;
    assert_eq!(leader.catalog().borrow().revision().0, 180);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_wait_for_the_new_leader_instead_of_failing() {
    let cluster = TestCluster::of(3).await;
    let leader = cluster.leader().await.clone();
    let transfer = ask(&leader, Change::TransferLeader(None));
    let write = async {
        // Begun while the gate is closed, more often than not.
        tokio::time::sleep(TIMERS.heartbeat).await;
        leader.propose(create(1), PATIENCE).await
    };
    let (transferred, written) = futures::join!(transfer, write);
    assert_ne!(transferred.unwrap().node, leader.node_id());
    written.unwrap();
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_successor_fails_goes_on_leading() {
    let cluster = TestCluster::of(3).await;
    let leader = cluster.leader().await.clone();
    let follower = cluster.follower().await.clone();
    // Its calls arrive nowhere, so nobody can elect it.
    for other in cluster.ids() {
        cluster.network.cut(follower.node_id(), other);
    }
    let to = Change::TransferLeader(Some(follower.node_id().to_string()));
    let outcome = ask(&leader, to).await;
    assert!(
        matches!(
            outcome,
            Err(ChangeError::Refused(_) | ChangeError::Unavailable(_))
        ),
        "{outcome:?}"
    );
    insist(cluster.leader().await, create(1)).await;
    cluster.network.mend();
    insist(cluster.leader().await, create(2)).await;
    let learner = ask(&leader, Change::TransferLeader(Some("9".into())));
    assert!(learner.await.unwrap_err().to_string().contains("members"));
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_takes_its_state_with_it() {
    let mut cluster = TestCluster::of(3).await;
    insist(cluster.node(1), create(1)).await;
    cluster.converged().await;
    let leaver = cluster.leader().await.clone();
    let id = leaver.node_id();
    let archive = leaver.leave(Actor::Unknown, PATIENCE).await.unwrap();
    assert!(archive.join("node.json").exists() && archive.join("log").exists());
    assert!(!archive.parent().unwrap().join("node.json").exists());
    assert_eq!(leaver.standing(), Standing::Left);
    assert!(holds(&leaver, 1), "the data plane goes on");
    let revision = leaver.forget_catalog().unwrap();
    assert!(!holds(&leaver, 1));
    assert_eq!(leaver.catalog().borrow().revision(), revision);
    cluster.forget(id);
    let leader = cluster.leader().await;
    assert_eq!(leader.status().members.len(), 2);
    insist(leader, create(2)).await;
    assert_eq!(leader.forget_catalog(), None);
}

/// A leader that dies between the two steps of a change leaves the cluster with two
/// configurations; whoever leads next finishes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_cut_off_is_finished_by_the_next_leader() {
    let mut cluster = TestCluster::of(3).await;
    let leader = cluster.leader().await.clone();
    let gone = cluster.follower().await.node_id();
    // Enough to agree on both configurations at once, but not on the new one alone.
    let remains = ids([1, 2, 3].into_iter().filter(|id| *id != gone));
    let remove = EnrollmentCommand::RemoveNode(gone);
    leader
        .enroll(remove, Actor::Unknown, PATIENCE)
        .await
        .unwrap();
    let raft = leader.inner.consensus.raft.clone();
    let begun = tokio::spawn(async move {
        let change = ChangeMembers::RemoveVoters([gone].into());
        let _ = raft.change_membership(change, false).await;
    });
    eventually("a change is under way", || {
        leader.status().changing || !voters(&leader).contains(&gone)
    })
    .await;
    let id = leader.node_id();
    drop(leader);
    cluster.stop(id).await;
    let _ = begun.await;
    cluster.start(id).await;
    eventually("the change is finished", || {
        let rest = cluster.nodes().filter(|node| node.node_id() != gone);
        rest.into_iter().all(|node| {
            let status = node.status();
            !status.changing && voters(node) == remains && status.members.len() == 2
        })
    })
    .await;
    let removed = cluster.node(gone).clone();
    eventually("the node learns it", || {
        removed.standing() == Standing::Removed
    })
    .await;
    cluster.forget(gone);
    insist(cluster.leader().await, create(1)).await;
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_be_called_back_is_told_why() {
    let mut cluster = TestCluster::of(2).await;
    let leader = cluster.leader().await.clone();
    for member in [1, 2] {
        cluster.network.wall(member, 3);
    }
    cluster.introduce(3, Wanted::Voter, &[1, 2]).await;
    let outside = cluster.node(3).clone();
    eventually("both sides know", || {
        let why = outside.status().unavailable.unwrap_or_default();
        let waiting = leader.status().waiting;
        why.contains("192.0.2.3:4284") && waiting.iter().any(|node| node.trouble.is_some())
    })
    .await;
    cluster.network.mend();
    eventually("it is taken in", || voters(&leader) == ids([1, 2, 3])).await;
    eventually("and knows", || outside.status().unavailable.is_none()).await;
    assert_eq!(leader.status().waiting, []);
    cluster.converged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_who_insists_may_wait_for_those_who_are_away() {
    let mut cluster = TestCluster::of(3).await;
    let leader = cluster.leader().await.clone();
    let others = [1, 2, 3].into_iter().filter(|id| *id != leader.node_id());
    let [gone, away]: [NodeId; 2] = others.collect::<Vec<_>>().try_into().unwrap();
    cluster.stop(away).await;
    let insisted = Change::Remove {
        node: gone.to_string(),
        force: true,
    };
    // Decided, but the two that remain have to agree, and one is away.
    let outcome = leader.change(insisted, Actor::Unknown, SHORT * 2).await;
    assert!(
        matches!(outcome, Err(ChangeError::Unknown(_))),
        "{outcome:?}"
    );
    cluster.start(away).await;
    let rest = ids([leader.node_id(), away]);
    eventually("it is done when it can be", || voters(&leader) == rest).await;
    let removed = cluster.node(gone).clone();
    eventually("and the node is told", || {
        removed.standing() == Standing::Removed
    })
    .await;
    cluster.forget(gone);
    insist(&leader, create(1)).await;
    cluster.converged().await;
}

/// Whatever is wrong, nobody waits longer than they said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_are_kept_on_every_side_of_a_partition() {
    let cluster = TestCluster::of(3).await;
    let leader = cluster.leader().await.clone();
    let follower = cluster.follower().await.clone();
    cluster.network.isolate(leader.node_id(), cluster.ids());
    for node in [&leader, &follower] {
        for n in 1..=3 {
            let before = Instant::now();
            let _ = node.propose(create(n), SHORT).await;
            let _ = node.read(Consistency::Linearizable, SHORT).await;
            let _ = node
                .change(remove(9), Actor::Unknown, SHORT)
                .await
                .unwrap_err();
            let took = before.elapsed();
            assert!(took < SHORT * 4, "{took:?}");
        }
    }
    cluster.network.mend();
    insist(&follower, create(9)).await;
    cluster.converged().await;
}
