//! How many writes a store commits, each of them durable on a quorum before it is acknowledged.
//!
//! Clients write one after the other, each on a connection of its own, spread over all nodes. What
//! the same clients get of the same nodes for a call that asks no store says how much of it gRPC
//! takes, on a machine whose processors clients and nodes share.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use super::stores::{Etcd, Merlin, Store, Timers, Writer};
use super::{percentile, rate_row};

/// Generous: nobody fails here, and a machine that is busy with clients is slow.
const TIMERS: Timers = Timers {
    heartbeat: Duration::from_millis(200),
    election: Duration::from_secs(2),
};

/// What to measure.
#[derive(Debug, Clone)]
pub struct Scale {
    /// How long each measurement counts.
    time: Duration,
    rounds: usize,
    /// How many clients there are at a time.
    pub clients: Vec<u16>,
}

impl Scale {
    #[must_use]
    pub fn full() -> Self {
        Self {
            time: Duration::from_secs(3),
            rounds: 3,
            clients: vec![1, 16, 64],
        }
    }

    /// Enough to see that everything runs.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            time: Duration::from_millis(300),
            rounds: 1,
            clients: vec![1, 16],
        }
    }
}

/// What one measurement came to.
#[derive(Debug, Clone)]
struct Figures {
    writes: usize,
    time: Duration,
    latencies: Vec<Duration>,
}

impl Figures {
    fn per_second(&self) -> f64 {
        f64::from(u32::try_from(self.writes).unwrap_or(u32::MAX)) / self.time.as_secs_f64()
    }
}

/// Both stores with so many nodes each. Both run all the time, and one at a time is asked.
pub async fn compare(nodes: usize, scale: &Scale) -> Result<Vec<String>> {
    let merlin = started::<Merlin>(nodes, scale).await?;
    let etcd = started::<Etcd>(nodes, scale).await?;
    let mut lines = Vec::new();
    for &clients in &scale.clients {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..scale.rounds {
            if round % 2 == 0 {
                ours.push(measure(&merlin, clients, scale.time).await?);
                theirs.push(measure(&etcd, clients, scale.time).await?);
            } else {
                theirs.push(measure(&etcd, clients, scale.time).await?);
                ours.push(measure(&merlin, clients, scale.time).await?);
            }
        }
        let (ours, theirs) = (median(ours)?, median(theirs)?);
        let mut callers = Vec::new();
        for slot in 0..clients {
            callers.push(merlin.caller(usize::from(slot) % merlin.nodes()).await?);
        }
        let alone = count(callers, scale.time).await?;
        let title = format!("writes, {nodes} node(s), {clients} client(s)");
        let rows = [
            (Merlin::NAME, &ours),
            (Etcd::NAME, &theirs),
            ("merlin, a call without a write", &alone),
        ];
        for (name, figures) in rows {
            lines.push(rate_row(
                &title,
                name,
                figures.per_second(),
                &[
                    ("p50", percentile(&figures.latencies, 50)),
                    ("p99", percentile(&figures.latencies, 99)),
                ],
                ours.per_second() / figures.per_second(),
            ));
        }
    }
    Ok(lines)
}

async fn started<S: Store>(nodes: usize, scale: &Scale) -> Result<S> {
    let store = S::start(nodes, TIMERS).await;
    let store = store.with_context(|| format!("starting {nodes} nodes of {}", S::NAME))?;
    let slots = scale.clients.iter().copied().max().unwrap_or(0);
    let prepared = store.prepare(slots).await;
    prepared.with_context(|| format!("preparing {}", S::NAME))?;
    Ok(store)
}

async fn measure<S: Store>(store: &S, clients: u16, time: Duration) -> Result<Figures> {
    let mut writers = Vec::new();
    for slot in 0..clients {
        let node = usize::from(slot) % store.nodes();
        writers.push(store.writer(node, slot).await?);
    }
    let counted = count(writers, time).await;
    counted.with_context(|| format!("writing to {}", S::NAME))
}

/// What so many writers do in this time.
async fn count<W: Writer>(writers: Vec<W>, time: Duration) -> Result<Figures> {
    // Connections warm up before anything counts.
    let from = Instant::now() + time / 5;
    let to = from + time;
    let mut running = JoinSet::new();
    for mut writer in writers {
        running.spawn(async move {
            let mut latencies = Vec::new();
            for serial in (1..=u16::MAX).cycle() {
                let asked = Instant::now();
                writer.write(serial).await?;
                let answered = Instant::now();
                if answered > to {
                    break;
                }
                if answered >= from {
                    latencies.push(answered - asked);
                }
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(writer) = running.join_next().await {
        latencies.extend(writer??);
    }
    let writes = latencies.len();
    ensure!(writes > 0, "nothing was done in {time:?}");
    Ok(Figures {
        writes,
        time,
        latencies,
    })
}

fn median(mut rounds: Vec<Figures>) -> Result<Figures> {
    rounds.sort_by_key(|figures| figures.writes);
    let middle = rounds.len() / 2;
    rounds.into_iter().nth(middle).context("no rounds")
}
