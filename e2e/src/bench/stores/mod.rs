//! The stores that are measured side by side on this machine: merlin's own, and etcd.
//!
//! Both keep their data on the disk the programs are on, talk over loopback and are asked over
//! gRPC by the same client library. One write stores one real server, in merlin as a change of the
//! catalog, in etcd as a value of the same bytes.

mod etcd;
mod merlin;

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::programs;

pub use etcd::Etcd;
pub(super) use etcd::{PutRequest, put, put_together};
pub use merlin::Merlin;

/// For a store to do anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a store that is waited for.
const PAUSE: Duration = Duration::from_millis(10);

/// How patient the nodes of a cluster are with each other.
#[derive(Debug, Clone, Copy)]
pub struct Timers {
    pub heartbeat: Duration,
    /// A follower waits for this long, or up to twice as long, for its leader.
    pub election: Duration,
}

/// A cluster on this machine. Its processes end with it.
#[allow(async_fn_in_trait, reason = "its futures stay in this crate")]
pub trait Store: Sized {
    type Writer: Writer;

    const NAME: &str;

    /// Starts so many nodes, and waits until each is ready and has a vote.
    async fn start(nodes: usize, timers: Timers) -> Result<Self>;

    fn nodes(&self) -> usize;

    /// Creates the objects that writers will change, one for each slot.
    async fn prepare(&self, slots: u16) -> Result<()>;

    /// Connects to a node.
    async fn writer(&self, node: usize, slot: u16) -> Result<Self::Writer>;

    async fn leader(&self) -> Result<usize>;

    /// As a crash would.
    fn kill(&mut self, node: usize) -> Result<()>;

    /// Starts a killed node, and waits until it follows.
    async fn restart(&mut self, node: usize) -> Result<()>;
}

/// A client with a connection of its own, for an object of its own.
pub trait Writer: Clone + Send + Sync + 'static {
    /// Changes the object. No two writes with different serials are the same.
    fn write(&mut self, serial: u16) -> impl Future<Output = Result<()>> + Send;
}

/// A daemon, killed with its owner.
#[derive(Debug)]
struct Daemon(Child);

impl Daemon {
    /// Its output is added to a log.
    fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Self(child))
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    fn kill(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// On the disk that is measured: memory, which many machines keep `/tmp` in, needs no syncing.
fn directory() -> Result<TempDir> {
    let program = programs::locate("merlin")?;
    let beside = program.parent().unwrap_or(Path::new("."));
    Ok(tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(beside)?)
}

/// Addresses nobody listens at. Bound together, so that they differ; free again a moment later.
/// They are of this process alone, or a connection of another one might take a port meanwhile.
fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    let [.., high, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, 100, high, low.max(1));
    let mut sockets = Vec::with_capacity(N);
    for _ in 0..N {
        sockets.push(TcpListener::bind((host, 0))?);
    }
    let addresses: Vec<_> = sockets
        .iter()
        .map(TcpListener::local_addr)
        .collect::<Result<_, _>>()?;
    addresses.try_into().ok().context("addresses were lost")
}

async fn connect(address: SocketAddr) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    eventually(async || Ok(endpoint.clone().tcp_nodelay(true).connect().await?)).await
}

/// Tries until it succeeds; the error of the last try says what was still wrong.
async fn eventually<T>(mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("not within {PATIENCE:?}"));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// A command to its end; what it printed.
fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{command:?} failed ({}): {}",
            output.status,
            words.trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
