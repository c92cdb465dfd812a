//! The daemon: opens everything, wires it together, waits, and lets go again.
//!
//! ```text
//!  API (gRPC) ──propose/read──▶ store ──watch catalog──▶ health ──watch view──▶ reconciler
//!                                 └──────watch catalog─────────────────────────────▲  │ own thread
//!  HTTP pages, metrics ◀── Node (handles to all of them)                              ▼
//!                                                                              IPVS or memory
//! ```
//!
//! Whatever happens here, the kernel keeps its rules: nothing on the way out touches the table. A
//! task that ends or panics takes the daemon with it, since nobody knows what it left undone; the
//! supervisor starts a new one, which changes no weight.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use merlin_etcd::{EtcdStore, Keep};
use merlin_ipvs::{Handle, Kernel, MemoryTable};
use merlin_model::store::Consistency;
use merlin_model::{Catalog, HealthView};
use merlin_raft::RaftStore;
use merlin_reconcile::Reconciler;
use merlin_reconcile::plan::Foreign as ForeignPolicy;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::api::door;
use crate::cli::{DataplaneKind, Foreign, RunArgs};
use crate::config::Config;
use crate::listen::{self, AdminSocket};
use crate::logging::Level;
use crate::metrics::{Metrics, Requests};
use crate::node::{Dataplane, Inner, Node};
use crate::rejoin::{self, Applicant};
use crate::store::Store;
use crate::{api, fleet, http};

/// How a run came to a good end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Stopped,
    /// This node is another one now, of the cluster that it joined.
    Joined,
}

/// How long open requests may take to finish once the daemon is told to stop.
const DRAIN: Duration = Duration::from_secs(3);

/// Runs until told to stop.
pub(crate) async fn run(config: Config, args: &RunArgs, level: &Level) -> Result<Ended> {
    // Everything that can be wrong with this host is found before anything is made on it.
    let api_listener = listen::tcp("--api-addr", config.api_addr).await?;
    let http_listener = listen::tcp("--health-addr", config.health_addr).await?;
    // The store listens there itself, once it knows who this node is.
    if config.etcd.is_none() {
        drop(listen::tcp("--peer-addr", config.peer_addr).await?);
    }
    let table = config
        .reconcile
        .then(|| open_table(config.dataplane))
        .transpose()?;
    rejoin::with_given_token(&config).await?;
    let store = open_store(&config).await.context("opening the store")?;
    let socket = AdminSocket::bind(&config.run_dir)?;

    let shutdown = CancellationToken::new();
    let mut tasks = Tasks::new(shutdown.clone());
    let (view, health) = watch::channel(HealthView::default());
    let probes = Arc::new(merlin_health::Metrics::default());
    let dataplane = match table {
        Some((kind, table)) => {
            let catalog = store.catalog();
            let check = merlin_health::run(catalog, view, Arc::clone(&probes), shutdown.clone());
            tasks.spawn("health checks", infallible(check));
            let reconciler = Reconciler::new(
                store.catalog(),
                health.clone(),
                table.clone(),
                reconcile_config(&config),
            );
            let status = reconciler.status();
            let settled = settled(store.clone(), config.election_timeout, shutdown.clone());
            let stop = shutdown.clone();
            tasks.spawn("reconciler", async {
                settled.await;
                reconciler.run(stop).await;
                Ok(())
            });
            Some(Dataplane {
                kind,
                table,
                status,
            })
        }
        None => {
            tasks.spawn(
                "API-only mode",
                announce_changes(store.catalog(), shutdown.clone()),
            );
            None
        }
    };
    let tls = store.raft().and_then(RaftStore::tls);
    let (applicant, mut admitted) = Applicant::new(&config);
    let node = Node::new(Inner {
        name: config.node_name.clone(),
        api: tls.as_ref().and_then(|_| config.remote_api()),
        started: Instant::now(),
        store: store.clone(),
        dataplane,
        health,
        probes,
        applicant,
    });
    let answering = node.clone();
    store.set_answerer(move |question| {
        let node = answering.clone();
        async move { fleet::answer(&node, question).await }
    });

    let requests = Requests::default();
    let (routes, reporter) = api::routes(&node, requests.clone(), shutdown.clone())?;
    let metrics = Metrics::new(&node, requests.clone(), config.metrics_per_server);
    let stop = || shutdown.clone();
    let health = api::health::run(reporter, node.clone(), stop());
    tasks.spawn("gRPC health", infallible(health));
    info!(api = %config.api_addr, http = %config.health_addr, node = %config.node_name, "serving");
    if config.api_insecure && !config.api_addr.ip().is_loopback() {
        warn!(
            api = %config.api_addr,
            "THE API TAKES CHANGES FROM WHOEVER REACHES IT, IN PLAINTEXT (--api-insecure{})",
            // On etcd that is how it always was; whoever wants otherwise is told how.
            if config.etcd.is_some() { "; =false keeps other hosts out" } else { "" }
        );
    }
    let rules = door::Rules {
        tls,
        insecure: config.api_insecure,
    };
    let connections = door::remote(listen::connections(api_listener), rules);
    let serve = api::serve(routes.clone(), node.clone(), connections, stop());
    tasks.spawn("API", flatten(serve));
    let connections = door::local(listen::connections(socket));
    let serve = api::serve(routes, node.clone(), connections, stop());
    tasks.spawn("API on the unix socket", flatten(serve));
    let pages = http::serve(http_listener, node.clone(), metrics, stop());
    tasks.spawn("HTTP pages", infallible(pages));
    // Whoever hears that this daemon is ready may stop it in the next moment.
    let mut signals = Signals::listen()?;
    tasks.spawn("readiness", notify_ready(node.clone(), stop()));

    let admitted = tokio::select! {
        ended = wait(&mut signals, &mut tasks, &store, args, level) => match ended {
            Ok(()) => None,
            Err(error) => {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                tasks.drain().await;
                store.shutdown().await;
                return Err(error);
            }
        },
        Ok(admitted) = &mut admitted => Some(admitted),
    };
    if admitted.is_none() {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    }
    tasks.drain().await;
    store.shutdown().await;
    let Some(admitted) = admitted else {
        info!("stopped; the kernel keeps its rules");
        return Ok(Ended::Stopped);
    };
    let name = admitted.name();
    info!(node = name.node, cluster = %name.cluster, "beginning anew as a node of another cluster");
    admitted.settle().await.context("joining")?;
    Ok(Ended::Joined)
}

/// What is sent to this process from now on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("listening for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listening for SIGINT")?,
            hangup: signal(SignalKind::hangup()).context("listening for SIGHUP")?,
        })
    }
}

/// Waits for a reason to stop; only a signal is a good one.
async fn wait(
    signals: &mut Signals,
    tasks: &mut Tasks,
    store: &Store,
    args: &RunArgs,
    level: &Level,
) -> Result<()> {
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => { info!("stopping on SIGTERM"); return Ok(()) }
            _ = signals.interrupt.recv() => { info!("stopping on SIGINT"); return Ok(()) }
            _ = signals.hangup.recv() => reload(args, level, store),
            error = store.failed() => return Err(anyhow!(error).context("the store has failed")),
            error = tasks.first_end() => return Err(error),
        }
    }
}

/// Reads what can change while running. A file that has become wrong changes nothing.
fn reload(args: &RunArgs, level: &Level, store: &Store) {
    match Config::load(args) {
        Ok(config) => {
            level.set(config.debug);
            info!(debug = config.debug, "configuration read again");
        }
        Err(error) => warn!(error = format!("{error:#}"), "configuration kept as it was"),
    }
    match store.raft().map(RaftStore::reload_certificate) {
        Some(Ok(expires)) => info!(expires = expires.0, "certificate read again"),
        Some(Err(error)) => {
            let error = format!("{:#}", anyhow!(error));
            warn!(error, "certificate kept as it was");
        }
        None => {}
    }
}

async fn open_store(config: &Config) -> Result<Store> {
    match &config.etcd {
        None => Ok(Store::Raft(RaftStore::open(raft_config(config)).await?)),
        // Whether it answers or not: the kernel keeps its rules, and clients are told.
        Some(etcd) => {
            info!(endpoints = etcd.endpoints.join(","), prefix = %etcd.layout, "catalog in etcd");
            let dir = &config.data_dir;
            let made = std::fs::create_dir_all(dir);
            made.with_context(|| format!("--data-dir: making {}", dir.display()))?;
            Ok(Store::Etcd(EtcdStore::open(merlin_etcd::Config {
                keep: Some(Keep::in_dir(dir)),
                ..etcd.clone()
            })))
        }
    }
}

fn open_table(kind: DataplaneKind) -> Result<(&'static str, Handle)> {
    Ok(match kind {
        DataplaneKind::Ipvs => {
            let kernel = Kernel::open().context("--dataplane ipvs")?;
            ("ipvs", Handle::spawn(kernel))
        }
        DataplaneKind::Memory => ("memory", Handle::spawn(MemoryTable::default())),
    })
}

pub(crate) fn raft_config(config: &Config) -> merlin_raft::Config {
    merlin_raft::Config {
        data_dir: config.data_dir.clone(),
        node_name: config.node_name.clone(),
        peer_addr: config.peer_addr,
        advertise: config.advertise_addr.to_string(),
        advertise_guessed: config.advertise_guessed,
        timers: merlin_raft::Timers {
            // Consensus looks at its clock every one and a half times as long.
            heartbeat: config.election_timeout / 6,
            election_min: config.election_timeout * 3 / 2,
            election_max: config.election_timeout * 2,
            promote_after: config.promote_after,
        },
        level: config.command_level,
        snapshot_every: config.snapshot_every,
    }
}

fn reconcile_config(config: &Config) -> merlin_reconcile::Config {
    merlin_reconcile::Config {
        sync_period: config.reconcile_sync_period,
        foreign: match config.foreign {
            Foreign::Delete => ForeignPolicy::Delete,
            Foreign::Keep => ForeignPolicy::Keep,
        },
        ..Default::default()
    }
}

/// Ready when the catalog may be compared with the kernel.
///
/// A store that is catching up passes through catalogs of the past, which would take back what the
/// kernel rightly holds. So the first pass waits until the store has everything that was
/// acknowledged. Where no quorum tells, a catalog from before the restart is good after a while:
/// it has everything this node ever applied. A node that never had one, or whose store is etcd, goes
/// on waiting.
async fn settled(store: Store, election_timeout: Duration, shutdown: CancellationToken) {
    let patience = election_timeout * 5;
    // What was last seen of an etcd that is away may be older than what the kernel holds.
    let had_catalog = store.raft().is_some() && !store.catalog().borrow().is_pristine();
    let caught_up = async {
        while store
            .read(Consistency::Linearizable, patience)
            .await
            .is_err()
        {
            tokio::time::sleep(election_timeout / 4).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = caught_up => {}
        () = tokio::time::sleep(patience), if had_catalog => {
            warn!("no quorum: reconciling with the catalog as this node last knew it");
        }
    }
}

/// Without a data plane, a change is only worth a line in the log.
async fn announce_changes(
    mut catalog: watch::Receiver<Arc<Catalog>>,
    shutdown: CancellationToken,
) -> Result<()> {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            changed = catalog.changed() => if changed.is_err() { return Ok(()) },
        }
        let revision = catalog.borrow_and_update().revision();
        debug!(%revision, "sync requested, but reconciling is off");
    }
}

/// Tells systemd when the kernel's table is known to match for the first time.
async fn notify_ready(node: Node, shutdown: CancellationToken) -> Result<()> {
    if let Some(mut status) = node.reconciler_status() {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            done = status.wait_for(|status| status.first_pass_done) => { done?; }
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    info!("ready");
    shutdown.cancelled().await;
    Ok(())
}

async fn infallible(task: impl Future<Output = ()>) -> Result<()> {
    task.await;
    Ok(())
}

async fn flatten(serving: impl Future<Output = Result<(), tonic::transport::Error>>) -> Result<()> {
    Ok(serving.await?)
}

/// The daemon's tasks. None may end before the others.
struct Tasks {
    set: JoinSet<(&'static str, Result<()>)>,
    shutdown: CancellationToken,
}

impl Tasks {
    fn new(shutdown: CancellationToken) -> Self {
        Self {
            set: JoinSet::new(),
            shutdown,
        }
    }

    fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Why the first task ended that did.
    async fn first_end(&mut self) -> anyhow::Error {
        match self.set.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow!("{name}: ended unasked"),
            Some(Ok((name, Err(error)))) => error.context(name),
            Some(Err(panic)) => anyhow!(panic).context("a task panicked"),
            None => anyhow!("there is nothing left to do"),
        }
    }

    /// Lets every task finish what it has begun, but not for ever.
    async fn drain(mut self) {
        self.shutdown.cancel();
        let all = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, all).await.is_err() {
            debug!("open requests were cut off");
        }
        self.set.shutdown().await;
    }
}
