//! Faults of a cluster in this process.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use merlin_model::Actor;
use merlin_raft::{Change, Role};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use tokio::time::sleep;

use super::site::{Cluster, SYNC};
use crate::ops::Node;
use crate::recorder::{Fault, Recorder};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    PartitionLeader,
    PartitionHalves,
    /// Every message of some directions is held back.
    PartitionOneWay,
    Kill,
    KillLeader,
    KillAll,
    /// What the disk was not done with is lost, or a part of it.
    PowerCut,
    PowerCutAll,
    /// The leader's disk lags behind the others', then the power is gone for a moment: it is back
    /// before anybody misses it.
    Flicker,
    SlowLinks,
    SlowDisk,
    LeaderTransfer,
    Demotion,
}

/// Longest wait for a change of the members.
const PATIENCE: Duration = Duration::from_secs(1);

/// One fault after another, some of which begin before the one before is over, until it is time.
/// Everything is as it should be when this returns.
pub(super) async fn run(
    cluster: &Cluster,
    recorder: &Recorder,
    mut dice: StdRng,
    time: Duration,
) -> Result<()> {
    let until = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < until {
        pause(&mut dice, 0..600).await;
        let first = Kind::value_variants().choose(&mut dice);
        let second = Kind::value_variants().choose(&mut dice);
        let second = second.filter(|_| dice.random_ratio(1, 3));
        let hold = Duration::from_millis(dice.random_range(50..1200));
        for kind in first.into_iter().chain(second) {
            let from = recorder.clock.now();
            let detail = inflict(cluster, *kind, &mut dice).await?;
            recorder.fault(Fault {
                name: crate::name_of(*kind),
                detail,
                from,
                to: from + u64::try_from(hold.as_micros()).unwrap_or_default(),
                recovered: None,
                beside: None,
            });
        }
        sleep(hold).await;
        mend(cluster).await?;
    }
    Ok(())
}

async fn pause(dice: &mut StdRng, millis: std::ops::Range<u64>) {
    sleep(Duration::from_millis(dice.random_range(millis))).await;
}

/// Begins a fault, and tells whom it hurts.
async fn inflict(cluster: &Cluster, kind: Kind, dice: &mut StdRng) -> Result<String> {
    let mut nodes: Vec<Node> = cluster.nodes().collect();
    nodes.shuffle(dice);
    let leader = leader(cluster).unwrap_or(nodes[0]);
    let some = dice.random_range(1..nodes.len().max(2));
    let network = &cluster.network;
    match kind {
        Kind::PartitionLeader => {
            network.isolate(leader.into(), nodes.iter().map(|node| u64::from(*node)));
            Ok(format!("n{leader}"))
        }
        Kind::PartitionHalves => {
            let (here, there) = nodes.split_at(some);
            for (a, b) in pairs(here, there) {
                network.cut(a, b);
                network.cut(b, a);
            }
            Ok(format!("{here:?} from {there:?}"))
        }
        Kind::PartitionOneWay => {
            let all = pairs(&nodes, &nodes);
            let cut: Vec<_> = all.choose_multiple(dice, some).copied().collect();
            cut.iter().for_each(|(from, to)| network.cut(*from, *to));
            Ok(format!("{cut:?}"))
        }
        Kind::Kill => kill(cluster, &nodes[..some], |all| all),
        Kind::KillLeader => kill(cluster, &[leader], |all| all),
        Kind::KillAll => kill(cluster, &nodes, |all| all),
        Kind::PowerCut => kill(cluster, &[leader], |all| dice.random_range(0..=all)),
        Kind::PowerCutAll => kill(cluster, &nodes, |all| dice.random_range(0..=all)),
        Kind::Flicker => {
            let latency = Duration::from_millis(dice.random_range(20..700));
            cluster.slow_disk(leader, latency);
            pause(dice, 0..300).await;
            let detail = kill(cluster, &[leader], |all| dice.random_range(0..=all));
            cluster.start(leader).await?;
            detail
        }
        Kind::SlowLinks => {
            let delay = Duration::from_millis(dice.random_range(5..80));
            network.slow(delay);
            Ok(format!("{delay:?}"))
        }
        Kind::SlowDisk => {
            let latency = Duration::from_millis(dice.random_range(20..700));
            cluster.slow_disk(nodes[0], latency);
            Ok(format!("n{} {latency:?}", nodes[0]))
        }
        Kind::LeaderTransfer => {
            let change = Change::TransferLeader(Some(format!("n{}", nodes[0])));
            Ok(attempt(cluster, leader, change).await)
        }
        Kind::Demotion => {
            let change = Change::Demote(format!("n{}", nodes[0]));
            Ok(attempt(cluster, leader, change).await)
        }
    }
}

fn pairs(here: &[Node], there: &[Node]) -> Vec<(u64, u64)> {
    let from = |a: &Node| {
        let a = *a;
        let to = there.iter().filter(move |b| **b != a);
        to.map(move |b| (u64::from(a), u64::from(*b)))
    };
    here.iter().flat_map(from).collect()
}

fn kill(cluster: &Cluster, nodes: &[Node], mut kept: impl FnMut(usize) -> usize) -> Result<String> {
    for node in nodes {
        cluster.kill(*node, &mut kept)?;
    }
    Ok(format!("{nodes:?}"))
}

/// What nobody can decide at the moment is left.
async fn attempt(cluster: &Cluster, at: Node, change: Change) -> String {
    let words = format!("{change:?} at n{at}");
    match cluster.store(at) {
        Some(store) => match store.change(change, Actor::Unknown, PATIENCE).await {
            Ok(_) => words,
            Err(error) => format!("{words}: {error}"),
        },
        None => format!("{words}: it is down"),
    }
}

/// Ends every fault there is.
pub(super) async fn mend(cluster: &Cluster) -> Result<()> {
    cluster.network.mend();
    cluster.network.slow(Duration::ZERO);
    for node in cluster.nodes() {
        cluster.start(node).await?;
        cluster.slow_disk(node, SYNC);
    }
    promote(cluster).await;
    Ok(())
}

/// Gives every node its vote back, as far as that can be decided.
pub(super) async fn promote(cluster: &Cluster) {
    let Some(leader) = leader(cluster) else {
        return;
    };
    let learners: Vec<_> = cluster.store(leader).map_or_else(Vec::new, |store| {
        let members = store.status().members.into_iter();
        let learners = members.filter(|member| member.role == Role::Learner);
        learners.map(|member| member.name).collect()
    });
    for name in learners {
        attempt(cluster, leader, Change::Promote(name)).await;
    }
}

/// Who leads in the latest term that anybody leads in.
fn leader(cluster: &Cluster) -> Option<Node> {
    let claims = cluster.nodes().filter_map(|node| {
        let status = cluster.store(node)?.status();
        (status.role == Role::Leader).then_some((status.term, node))
    });
    claims.max().map(|(_, node)| node)
}
