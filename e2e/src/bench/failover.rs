//! How long a cluster takes no writes when its leader is killed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use super::stores::{Etcd, Merlin, Store, Timers, Writer};
use super::{percentile, row};

/// Longer than any fail-over.
const LIMIT: Duration = Duration::from_secs(30);

/// Between two attempts on the same node.
const EVERY: Duration = Duration::from_millis(20);

/// The daemon's own: `--election-timeout 450ms`, which is at most twice as long for both.
const SHIPPED: Timers = Timers {
    heartbeat: Duration::from_millis(75),
    election: Duration::from_millis(450),
};

/// What etcd does unless told.
const THEIR_OWN: Timers = Timers {
    heartbeat: Duration::from_millis(100),
    election: Duration::from_secs(1),
};

/// Kills the leader of each so many times.
pub async fn compare(runs: usize) -> Result<Vec<String>> {
    let title = format!("leader killed {runs} times");
    let mut lines = Vec::new();
    for (name, times) in [
        (
            "merlin, as shipped",
            measure::<Merlin>(SHIPPED, runs).await?,
        ),
        (
            "etcd, the same timers",
            measure::<Etcd>(SHIPPED, runs).await?,
        ),
        (
            "etcd, its own timers",
            measure::<Etcd>(THEIR_OWN, runs).await?,
        ),
    ] {
        for percent in [50, 99] {
            let time = percentile(&times, percent);
            lines.push(row(&title, name, time, &format!("p{percent}")));
        }
    }
    Ok(lines)
}

async fn measure<S: Store>(timers: Timers, runs: usize) -> Result<Vec<Duration>> {
    let store = S::start(3, timers).await;
    let mut store = store.with_context(|| format!("starting {}", S::NAME))?;
    store.prepare(1).await?;
    let mut times = Vec::new();
    for run in 1..=runs {
        let time = fail_over(&mut store).await;
        times.push(time.with_context(|| format!("{}, run {run}", S::NAME))?);
    }
    Ok(times)
}

/// From the leader's death to the first write that is acknowledged afterwards. Every survivor is
/// asked again and again, without waiting for what it was asked before.
async fn fail_over<S: Store>(store: &mut S) -> Result<Duration> {
    let leader = store.leader().await?;
    let mut writers = Vec::new();
    for node in (0..store.nodes()).filter(|node| *node != leader) {
        let mut writer = store.writer(node, 0).await?;
        writer.write(1).await.context("before the kill")?;
        writers.push(writer);
    }
    store.kill(leader)?;
    let killed = Instant::now();
    let mut attempts = JoinSet::new();
    let mut tick = tokio::time::interval(EVERY);
    let mut serial = 1;
    let accepted = async {
        loop {
            tokio::select! {
                _ = tick.tick() => for writer in &writers {
                    serial += 1;
                    let mut writer = writer.clone();
                    attempts.spawn(async move { writer.write(serial).await });
                },
                // A refusal is what a cluster without a leader answers.
                Some(attempt) = attempts.join_next() => if matches!(attempt, Ok(Ok(()))) {
                    return killed.elapsed();
                },
            }
        }
    };
    let accepted = tokio::time::timeout(LIMIT, accepted).await;
    let accepted = accepted.context("no write was accepted again")?;
    attempts.shutdown().await;
    store.restart(leader).await?;
    Ok(accepted)
}
