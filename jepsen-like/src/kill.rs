//! `kill -9` at random moments during writes: every acknowledged write is there afterwards.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use merlin_proto::metadata::read_reply;
use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::types::{
    ForwardMethod, ListResponse, Protocol, RealServer, VirtualService, real_server, virtual_service,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::history::{History, Outcome, Serial, Write};

/// A daemon that is not up by then never will be.
const START: Duration = Duration::from_secs(20);
/// Longer than any write takes on a daemon that lives.
const WRITE: Duration = Duration::from_secs(10);
const WRITERS: u32 = 4;
const SERVICE: &str = "jepsen";
/// What the daemons said, in their home.
const LOG: &str = "log";
/// How a daemon announces how much of its log it found.
const OPENED: &str = "opened the raft log";

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rounds: u32,
    pub seed: u64,
    /// Writing goes on for a random time up to this before each kill, and at least until a write
    /// was acknowledged.
    pub longest: Duration,
    /// Whether to go on, beyond all rounds, until the log has been purged behind a snapshot and
    /// opened again.
    pub until_purged: bool,
}

/// What a writer did before the daemon died under it.
type Log = Vec<(Serial, Write, Outcome)>;

/// Kills one daemon again and again over the same data directory; an error names the violation.
pub async fn run(plan: Plan, mut progress: impl FnMut(u32, &History)) -> Result<History> {
    let program = e2e::programs::locate("merlin")?;
    let home = tempfile::tempdir().context("making a directory for the daemon")?;
    let mut dice = StdRng::seed_from_u64(plan.seed);
    let mut history = History::default();
    let mut next: Serial = 1;
    let mut round = 0;
    while round < plan.rounds || plan.until_purged && !was_purged(home.path())? {
        round += 1;
        let daemon = Daemon::start(&program, home.path())?;
        let mut client = daemon.connect().await?;
        if round == 1 {
            client
                .create_service(service())
                .await
                .context("declaring the service")?;
        }
        look(&mut client, &mut history)
            .await
            .with_context(|| format!("round {round}"))?;

        let mut writers = JoinSet::new();
        let (first, mut acknowledged) = mpsc::channel(1);
        for writer in 0..WRITERS {
            let seed = dice.random();
            writers.spawn(write(client.clone(), next + writer, seed, first.clone()));
        }
        drop(first);
        let until = Instant::now() + plan.longest.mul_f64(dice.random());
        let written = timeout(START, acknowledged.recv()).await;
        sleep_until(until).await;
        drop(daemon);
        ensure!(
            matches!(written, Ok(Some(()))),
            "nothing was written in round {round}: the harness failed, not the store"
        );
        for log in writers.join_all().await {
            for (serial, write, outcome) in log? {
                next = next.max(serial - serial % WRITERS + WRITERS + 1);
                history.record(serial, write, outcome);
            }
        }
        progress(round, &history);
    }
    let daemon = Daemon::start(&program, home.path())?;
    look(&mut daemon.connect().await?, &mut history)
        .await
        .context("at the end")?;
    Ok(history)
}

/// Whether the daemon, when it last opened its log, found fewer entries than were ever in it.
fn was_purged(home: &Path) -> Result<bool> {
    let log = std::fs::read_to_string(home.join(LOG)).unwrap_or_default();
    let Some(opened) = log.lines().rfind(|line| line.contains(OPENED)) else {
        return Ok(false);
    };
    let field = |name: &str| {
        let value = opened
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name));
        value.with_context(|| format!("no {name} in {opened:?}"))
    };
    if !opened.contains("last=") {
        return Ok(false);
    }
    let entries: u64 = field("entries=")?.parse()?;
    let last: u64 = field("last=")?.parse()?;
    Ok(last >= entries)
}

/// Reads everything and has it judged.
async fn look(client: &mut MerlinClient<Channel>, history: &mut History) -> Result<()> {
    let listed = client.list(()).await.context("listing")?.into_inner();
    let held = held(&listed);
    let violations = history.judge(&held, listed.revision);
    let words: Vec<_> = violations.iter().map(ToString::to_string).collect();
    ensure!(
        words.is_empty(),
        "the store broke its promise:\n{}",
        words.join("\n")
    );
    Ok(())
}

/// The serials of everything listed.
pub(crate) fn held(listed: &ListResponse) -> BTreeSet<Serial> {
    let servers = listed.items.iter().flat_map(|item| &item.servers);
    servers
        .filter_map(|server| serial(server.key.as_ref()?))
        .collect()
}

/// Adds servers, and deletes some of its own again, until the daemon dies.
async fn write(
    mut client: MerlinClient<Channel>,
    first: Serial,
    seed: u64,
    acknowledged: mpsc::Sender<()>,
) -> Result<Log> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut log = Log::new();
    let mut added = Vec::new();
    for serial in (first..).step_by(WRITERS as usize) {
        let outcome = settle(timeout(WRITE, client.create_server(server(serial))).await)?;
        log.push((serial, Write::Add, outcome));
        if outcome == Outcome::Unknown {
            break;
        }
        // One is enough to know.
        let _ = acknowledged.try_send(());
        added.push(serial);
        if dice.random_ratio(1, 4) {
            let victim = added.swap_remove(dice.random_range(0..added.len()));
            let outcome = settle(timeout(WRITE, client.delete_server(server(victim))).await)?;
            log.push((victim, Write::Delete, outcome));
            if outcome == Outcome::Unknown {
                break;
            }
        }
    }
    Ok(log)
}

/// What an answer, or its absence, says about the write.
fn settle(
    answer: Result<Result<tonic::Response<()>, tonic::Status>, tokio::time::error::Elapsed>,
) -> Result<Outcome> {
    match answer {
        Ok(Ok(response)) => {
            let reply = read_reply(response.metadata()).context("an answer without a revision")?;
            Ok(Outcome::Acknowledged {
                revision: reply.revision.0,
            })
        }
        // A connection that broke, or was never made: it may have happened all the same.
        Ok(Err(status))
            if [
                Code::Unavailable,
                Code::Unknown,
                Code::Cancelled,
                Code::Internal,
            ]
            .contains(&status.code()) =>
        {
            Ok(Outcome::Unknown)
        }
        Ok(Err(status)) => bail!("a write that nothing is wrong with was refused: {status}"),
        Err(_) => Ok(Outcome::Unknown),
    }
}

// === objects ===

pub(crate) fn service() -> VirtualService {
    VirtualService {
        id: SERVICE.into(),
        key: Some(virtual_service::Key {
            ip: "10.0.0.1".into(),
            port: 80,
            protocol: Protocol::Tcp.into(),
            ..Default::default()
        }),
        config: Some(virtual_service::Config {
            scheduler: "rr".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A server's address is its serial, in 10.128.0.0/9.
pub(crate) fn server(serial: Serial) -> RealServer {
    let address = Ipv4Addr::from_bits(BASE | serial);
    RealServer {
        service_id: SERVICE.into(),
        key: Some(real_server::Key {
            ip: address.to_string(),
            port: 80,
        }),
        config: Some(real_server::Config {
            weight: Some(1),
            forward: ForwardMethod::Masq.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

const BASE: u32 = Ipv4Addr::new(10, 128, 0, 0).to_bits();

fn serial(key: &real_server::Key) -> Option<Serial> {
    match key.ip.parse() {
        Ok(IpAddr::V4(address)) => Some(address.to_bits() & !BASE),
        _ => None,
    }
}

// === daemon ===

/// A daemon that is killed with SIGKILL when dropped.
struct Daemon {
    child: Child,
    api: SocketAddr,
    log: std::path::PathBuf,
}

impl Daemon {
    fn start(program: &Path, home: &Path) -> Result<Self> {
        // Bound together, so that they differ; free again a moment later.
        let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0"));
        let mut addresses = Vec::new();
        for socket in &sockets {
            let socket = socket
                .as_ref()
                .map_err(|e| anyhow::anyhow!("no free port: {e}"))?;
            addresses.push(socket.local_addr()?);
        }
        let [api, http, peers] = addresses[..] else {
            bail!("three ports were asked for")
        };
        drop(sockets);
        let log = home.join(LOG);
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)?;
        let child = Command::new(program)
            .arg("--data-dir")
            .arg(home.join("data"))
            .arg("--run-dir")
            .arg(home.join("run"))
            .args(["--dataplane", "memory", "--node-name", "jepsen"])
            .args([
                "--api-addr",
                &api.to_string(),
                "--health-addr",
                &http.to_string(),
            ])
            .args([
                "--peer-addr",
                &peers.to_string(),
                "--election-timeout",
                "200ms",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("starting the daemon")?;
        Ok(Self { child, api, log })
    }

    async fn connect(&self) -> Result<MerlinClient<Channel>> {
        connect(self.api).await.map_err(|error| {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let from = log.lines().count().saturating_sub(20);
            let tail: Vec<_> = log.lines().skip(from).collect();
            error.context(tail.join("\n"))
        })
    }
}

/// Connects to a daemon once it answers reads.
pub(crate) async fn connect(api: SocketAddr) -> Result<MerlinClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{api}"))?;
    let deadline = Instant::now() + START;
    loop {
        let failure = match endpoint.connect().await {
            Ok(channel) => {
                let mut client = MerlinClient::new(channel).max_decoding_message_size(usize::MAX);
                match client.list(()).await {
                    Ok(_) => return Ok(client),
                    Err(status) => status.to_string(),
                }
            }
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            bail!("the daemon does not answer: {failure}");
        }
        sleep(Duration::from_millis(5)).await;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
