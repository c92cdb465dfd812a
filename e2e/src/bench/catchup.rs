//! What a large catalog costs a node that joins, a node that starts, and everybody's memory.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use merlin_model::Scheduler;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::row;
use super::stores::{Merlin, Store, Timers};
use super::workload::{Workload, load};

/// The daemon's own.
const SHIPPED: Timers = Timers {
    heartbeat: Duration::from_millis(110),
    election: Duration::from_millis(450),
};

/// How many services there are, with ten real servers each.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub join: u16,
    pub memory: u16,
}

impl Scale {
    pub const FULL: Self = Self {
        join: 5_000,
        memory: 10_000,
    };
    pub const QUICK: Self = Self {
        join: 20,
        memory: 40,
    };
}

const PER_SERVICE: u8 = 10;

fn workload(services: u16) -> Workload {
    Workload {
        services,
        servers: PER_SERVICE,
        scheduler: Scheduler::Rr,
    }
}

/// A loaded node is killed and starts again; then a second one joins it.
pub async fn join(scale: Scale) -> Result<Vec<String>> {
    let workload = workload(scale.join);
    let mut cluster = Merlin::start(1, SHIPPED).await?;
    load(&cluster.client(0).await?, workload, 0).await?;
    let revision = cluster.status(0).await?.catalog_revision;
    cluster.await_programmed(0, revision).await?;
    cluster.kill(0)?;
    let restarting = Instant::now();
    cluster.restart(0).await?;
    let restarted = restarting.elapsed();

    let bytes = Arc::new(AtomicU64::new(0));
    let node = cluster.add(|peer| relay(peer, Arc::clone(&bytes)))?;
    let joining = cluster.join(node)?;
    cluster.await_programmed(node, revision).await?;
    let joined = joining.elapsed();
    let moved = format!("{:.1} MB", megabytes(bytes.load(Ordering::Relaxed)));

    let title = format!("{} real servers", workload.rules());
    Ok(vec![
        row(&title, "killed, started -> reconciled", restarted, ""),
        row(&title, "joining -> a vote, reconciled", joined, &moved),
    ])
}

/// Resident memory of a node that has done nothing yet, and of one with a large catalog.
pub async fn memory(scale: Scale) -> Result<Vec<String>> {
    let mut cluster = Merlin::start(1, SHIPPED).await?;
    let idle = resident(&cluster)?;
    let workload = workload(scale.memory);
    load(&cluster.client(0).await?, workload, 0).await?;
    let revision = cluster.status(0).await?.catalog_revision;
    cluster.await_programmed(0, revision).await?;
    let loaded = resident(&cluster)?;
    cluster.kill(0)?;
    cluster.restart(0).await?;
    let restarted = resident(&cluster)?;
    let line = |name: &str, kib: u64| {
        let title = "resident memory, one node";
        format!("{title:34} {name:32} {:>9.1} MiB", mebibytes(kib))
    };
    let servers = workload.rules();
    Ok(vec![
        line("idle", idle),
        line(&format!("{servers} real servers, written"), loaded),
        line(&format!("{servers} real servers, restarted"), restarted),
    ])
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn mebibytes(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn resident(cluster: &Merlin) -> Result<u64> {
    let pid = cluster.pid(0).context("it does not run")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("no VmRSS")?.trim().parse()?)
}

/// Stands between the others and a node, and counts what passes, both ways.
fn relay(to: SocketAddr, bytes: Arc<AtomicU64>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(async move {
        while let Ok((from, _)) = listener.accept().await {
            let bytes = Arc::clone(&bytes);
            tokio::spawn(async move {
                // Whoever calls sees a node that is not up yet hang up.
                if let Ok(to) = TcpStream::connect(to).await {
                    let (from, to) = (from.into_split(), to.into_split());
                    let _ = tokio::join!(pass(from.0, to.1, &bytes), pass(to.0, from.1, &bytes));
                }
            });
        }
    });
    Ok(address)
}

async fn pass(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    bytes: &AtomicU64,
) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(to.shutdown().await?);
        }
        to.write_all(&buffer[..read]).await?;
        bytes.fetch_add(read as u64, Ordering::Relaxed);
    }
}
