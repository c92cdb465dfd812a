//! Opening a store: what is on the disk, founding a cluster, and taking part in one.
//!
//! ```text
//! empty directory   name the node, then as below, then: initialise consensus, found the cluster
//! any other         lock, snapshot, log up to what is known to be committed: published
//!                   then take part; a quorum is not waited for
//! ```
//! Every step can be repeated after a crash. The cluster's authority is made anew until one is in
//! the log; only that one has signed anything.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use futures::Stream;
use merlin_model::Actor;
use openraft::error::{InitializeError, RaftError};
use openraft::storage::RaftLogStorage;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server};

use crate::announce;
use crate::aside::{self, Silence};
use crate::cluster::{ClusterChange, Founding};
use crate::config::{Config, InvalidTimers, SNAPSHOT_EVERY, Timers};
use crate::consensus::Consensus;
use crate::datadir::{DataDir, DataDirError, Introducer, NodeFile};
use crate::handover::Handover;
use crate::identity::{
    Ca, ClusterId, Enrollment, IdentityDir, IdentityError, IdentityStoreError, NodeIdentity,
    PeerName, PeerTls, TlsError,
};
use crate::keeper::{Keeper, Troubles};
use crate::knock::{Here, Knocker};
use crate::level::{Level, Levels};
use crate::log::LogStore;
use crate::network::Network;
use crate::peers::route::Me;
use crate::peers::{Dial, Peers, Target};
use crate::proposer::{Proposer, now};
use crate::reads::ReadIndex;
use crate::renewal::Renewal;
use crate::snapshot::{SnapshotError, Snapshots};
use crate::standing::{self, Dismissal, Standing};
use crate::state::{State, StateMachine};
use crate::store::{Inner, RaftStore};
use crate::typ::{MerlinNode, NodeId, Raft};

/// Why the store cannot be opened. Nothing was changed that a later start would miss.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Timers(#[from] InvalidTimers),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Log(#[from] crate::log::OpenError),
    #[error(
        "the snapshots cannot be used: restore the data directory from a backup, or move it away \
         and join the cluster as a new node"
    )]
    Snapshots(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(
        "the snapshot ends at entry {snapshot}, but the log begins only after entry {purged}: \
         restore the data directory from a backup, or move it away and join the cluster as a new \
         node"
    )]
    Gap { snapshot: u64, purged: u64 },
    #[error(transparent)]
    Identity(#[from] IdentityStoreError),
    #[error("the node's identity cannot be used")]
    Certificate(#[from] IdentityError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(
        "this node has no certificate, and the authority that could sign one is not known: if it \
         was joining a cluster, run the same `merlin cluster join` again"
    )]
    NoAuthority,
    #[error(
        "the data directory is {node}'s, the certificate in it {certificate}'s: restore it from a \
         backup, or move it away and join the cluster as a new node"
    )]
    OtherIdentity {
        node: PeerName,
        certificate: PeerName,
    },
    #[error("cannot listen for other nodes on {addr}")]
    Listen {
        addr: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("consensus could not start")]
    Start(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(
        "the cluster uses commands of level {agreed}, this merlin knows level {known}: run the \
         version that ran here before, or a later one"
    )]
    Outdated { agreed: Level, known: Level },
    #[error("the new cluster could not be founded: {0}")]
    Founding(String),
}

const FIRST_NODE: NodeId = 1;
const FIRST_INCARNATION: u64 = 1;

impl RaftStore {
    /// Opens the store in `config.data_dir`. An empty directory becomes a cluster of one node.
    ///
    /// What was committed before is published when this returns, whether or not a quorum of the
    /// cluster can be reached.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        config.timers.raft(SNAPSHOT_EVERY)?;
        let mut disk = Disk::open(config.data_dir.clone()).await?;
        disk.limit(config.level)?;
        disk.snapshot_every = config.snapshot_every.unwrap_or(SNAPSHOT_EVERY);
        let listener = TcpListener::bind(config.peer_addr).await;
        let listener = listener.map_err(|source| OpenError::Listen {
            addr: config.peer_addr,
            source,
        })?;
        let identity_dir = IdentityDir::open(disk.dir.identity())?;
        let dial = Arc::new(TlsDial::default());
        let node = disk.node;
        let (followed, beside) = identity_dir.load_beside(node.life())?;
        if let Some(identity) = identity_dir.load()? {
            check_name(node.name(), identity.name())?;
            dial.set(PeerTls::with(identity, beside)?);
        }
        let here = Here {
            node: MerlinNode {
                name: config.node_name,
                addr: config.advertise,
            },
            guessed: config.advertise_guessed,
        };
        let this = here.node.clone();
        let store = Self::assemble(disk, here, config.timers, Arc::clone(&dial) as _).await?;
        store
            .inner
            .authority_step
            .store(followed, Ordering::Relaxed);
        let introduced = async {
            store.found(node, this).await?;
            store.introduce(node, identity_dir, &dial)
        };
        match introduced.await {
            Ok(tls) => {
                store.serve(tls.incoming(listener));
                Ok(store)
            }
            Err(error) => {
                // Consensus runs already, and would keep the files.
                store.shutdown().await;
                Err(error)
            }
        }
    }

    /// Sees to it that this node has a certificate to show, and goes on having one.
    fn introduce(
        &self,
        node: NodeFile,
        dir: IdentityDir,
        dial: &TlsDial,
    ) -> Result<PeerTls, OpenError> {
        let tls = match dial.tls.get() {
            Some(tls) => tls.clone(),
            None => {
                let tls = PeerTls::new(self.certify(node, &dir)?)?;
                dial.set(tls.clone());
                tls
            }
        };
        self.keep_certified(Renewal {
            tls: tls.clone(),
            dir,
            cluster: self.inner.views.cluster.clone(),
            life: node.life(),
            step: Arc::clone(&self.inner.authority_step),
        });
        Ok(tls)
    }

    /// Puts the parts together and starts them, except for listening.
    pub(crate) async fn assemble(
        disk: Disk,
        here: Here,
        timers: Timers,
        dial: Arc<dyn Dial>,
    ) -> Result<Self, OpenError> {
        let NodeFile {
            cluster,
            node,
            incarnation,
        } = disk.node;
        let me = Me {
            cluster,
            incarnation,
            node,
        };
        let dismissal = Dismissal::new(if disk.dir.is_marked_removed() {
            Standing::Removed
        } else {
            Standing::Member
        });
        let peers = Peers::new(me, dial, timers.election_max, dismissal.clone());
        let silence = Silence::default();
        let network = Network {
            log: disk.log.clone(),
            peers: peers.clone(),
            silence: silence.clone(),
            pause: timers.heartbeat,
        };
        let (machine, views) = StateMachine::new(disk.state, disk.snapshots, disk.level);
        let config = Arc::new(timers.raft(disk.snapshot_every)?);
        let raft = Raft::new(node, config, network, disk.log.of(node), machine).await;
        let raft = raft.map_err(start_failed)?;
        let is_alone = {
            let metrics = raft.metrics();
            let members = Arc::clone(&metrics.borrow().membership_config);
            members.membership().voter_ids().eq([node])
        };
        if is_alone {
            // There is nobody whose silence it would have to wait for.
            raft.trigger().elect().await.map_err(start_failed)?;
        }
        let levels = Levels {
            own: disk.level,
            cluster: views.cluster.clone(),
            peers: peers.clone(),
        };
        let consensus = Consensus::new(raft, levels, timers.isolation(), dismissal.clone());
        let handover = Handover {
            consensus: consensus.clone(),
            peers: peers.clone(),
            lease: timers.lease(),
        };
        let troubles = Troubles::default();
        let keeper = Keeper {
            consensus: consensus.clone(),
            peers: peers.clone(),
            cluster: views.cluster.clone(),
            handover: handover.clone(),
            pause: timers.election_min,
            promote_after: timers.promote_after,
            troubles: troubles.clone(),
        };
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let aside = aside::run(consensus.clone(), silence, timers.election_min);
        tasks.spawn(stop.clone().run_until_cancelled_owned(keeper.run()));
        tasks.spawn(stop.clone().run_until_cancelled_owned(aside));
        let announce = announce::run(consensus.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(announce));
        let introducers = disk.dir.introducers();
        let dir = Arc::new(disk.dir);
        let standing = standing::run(
            consensus.clone(),
            views.cluster.clone(),
            dismissal.clone(),
            Arc::clone(&dir),
        );
        tasks.spawn(stop.clone().run_until_cancelled_owned(standing));
        let store = Self {
            inner: Arc::new(Inner {
                me,
                dismissal,
                handover,
                troubles,
                proposer: Proposer::start(consensus.clone(), peers.clone()),
                reads: ReadIndex::start(consensus.clone(), peers.clone(), timers.isolation()),
                consensus,
                views,
                peers,
                answerer: Arc::default(),
                renewal: OnceLock::new(),
                authority_step: Arc::default(),
                log: disk.log,
                tasks,
                stop,
                dir,
            }),
        };
        let introducers = introducers.into_iter();
        let knocker = Knocker {
            members: store.members(),
            introducers: introducers
                .map(|Introducer { id, addr }| Target { id, addr })
                .collect(),
            here,
            pause: timers.election_max,
        };
        let stop = store.inner.stop.clone();
        let knocking = stop.run_until_cancelled_owned(knocker.run());
        store.inner.tasks.spawn(knocking);
        Ok(store)
    }

    /// Answers other nodes on the connections that come in, until the store is shut down.
    pub(crate) fn serve<I, S>(&self, incoming: I)
    where
        I: Stream<Item = std::io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let stop = self.inner.stop.clone();
        let server = Server::builder()
            .add_service(self.peer_service().server())
            .add_service(Enrollment::new(self.registry(), now).into_service())
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
        self.inner.tasks.spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the listener for other nodes has failed");
            }
        });
    }

    /// Makes the first node of a new cluster that cluster.
    pub(crate) async fn found(&self, node: NodeFile, this: MerlinNode) -> Result<(), OpenError> {
        let founder = node.node == FIRST_NODE && node.incarnation == FIRST_INCARNATION;
        if !founder || self.inner.views.cluster.borrow().founding.is_some() {
            return Ok(());
        }
        let failed = |error: &dyn std::error::Error| OpenError::Founding(error.to_string());
        let raft = &self.inner.consensus.raft;
        match raft.initialize(BTreeMap::from([(FIRST_NODE, this)])).await {
            // Done before a crash.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(failed(&error)),
        }
        // It votes for itself; how long that takes is up to the disk, and not to be given up.
        let wait = raft.wait(None);
        let leading = wait.current_leader(FIRST_NODE, "a cluster of one has a leader");
        leading.await.map_err(|error| failed(&error))?;
        let ca = Ca::create(node.cluster, now()).map_err(IdentityError::from)?;
        let founding = ClusterChange::Found(Founding {
            cluster: node.cluster,
            incarnation: node.incarnation,
            ca: (&ca).into(),
            level: self.inner.consensus.levels.own,
        });
        let founded = self
            .inner
            .consensus
            .write_cluster(founding, Actor::Node(node.node))
            .await;
        founded.map_err(|error| failed(&error))?;
        tracing::info!(cluster = %node.cluster, "founded a cluster of one node");
        Ok(())
    }

    /// Gives this node an identity signed by the cluster's authority, which every member can use.
    fn certify(&self, node: NodeFile, dir: &IdentityDir) -> Result<NodeIdentity, OpenError> {
        let cluster = Arc::clone(&self.inner.views.cluster.borrow());
        let founding = cluster.founding.as_ref().ok_or(OpenError::NoAuthority)?;
        let ca = founding.authority().map_err(IdentityError::from)?;
        let identity = NodeIdentity::found(&ca, node.name(), now())?;
        dir.save(&identity)?;
        Ok(identity)
    }

    /// Renews the certificate as long as the store runs, beginning before it is first shown.
    fn keep_certified(&self, renewal: Renewal) {
        renewal.look();
        let (inner, stop) = (&self.inner, self.inner.stop.clone());
        let renewing = renewal.clone().run();
        inner.tasks.spawn(stop.run_until_cancelled_owned(renewing));
        // Set here only.
        let _ = inner.renewal.set(renewal);
    }
}

fn check_name(node: PeerName, certificate: PeerName) -> Result<(), OpenError> {
    if node == certificate {
        Ok(())
    } else {
        Err(OpenError::OtherIdentity { node, certificate })
    }
}

/// What a node finds on its disk.
pub(crate) struct Disk {
    dir: DataDir,
    pub(crate) node: NodeFile,
    log: LogStore,
    snapshots: Arc<Snapshots>,
    state: State,
    level: Level,
    pub(crate) snapshot_every: NonZeroU64,
}

impl Disk {
    pub(crate) async fn open(path: PathBuf) -> Result<Self, OpenError> {
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(&path));
        let mut disk = opened.await.map_err(start_failed)??;
        disk.check_gap().await?;
        Ok(disk)
    }

    fn open_blocking(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, |log| Ok(LogStore::open(log)?))
    }

    /// Opens what is in the directory, and the log in its own way.
    pub(crate) fn open_with(
        path: &Path,
        open_log: impl FnOnce(&Path) -> Result<LogStore, OpenError>,
    ) -> Result<Self, OpenError> {
        let dir = DataDir::open(path)?;
        let node = match dir.node()? {
            Some(node) => node,
            None => {
                let node = NodeFile {
                    cluster: ClusterId::random(),
                    node: FIRST_NODE,
                    incarnation: FIRST_INCARNATION,
                };
                dir.set_node(&node)?;
                node
            }
        };
        let snapshots = Snapshots::open(dir.snapshots()).map_err(OpenError::snapshots)?;
        let state = snapshots.load().map_err(OpenError::snapshots)?;
        let log = open_log(&dir.log())?;
        dir.set_has_log(&node)?;
        Ok(Self {
            dir,
            node,
            log,
            snapshots: Arc::new(snapshots),
            state: state.unwrap_or_default(),
            level: Level::LATEST,
            snapshot_every: SNAPSHOT_EVERY,
        })
    }

    /// Makes the node one that knows no later commands than these.
    pub(crate) fn limit(&mut self, known: Level) -> Result<(), OpenError> {
        let agreed = self.state.cluster.level;
        if agreed > known {
            return Err(OpenError::Outdated { agreed, known });
        }
        self.level = known;
        Ok(())
    }

    /// Snapshot and log must meet.
    async fn check_gap(&mut self) -> Result<(), OpenError> {
        let log = self.log.get_log_state().await.map_err(start_failed)?;
        let purged = log.last_purged_log_id.map_or(0, |at| at.index);
        let snapshot = self.state.applied.map_or(0, |at| at.index);
        if snapshot < purged {
            return Err(OpenError::Gap { snapshot, purged });
        }
        Ok(())
    }
}

/// Dials other nodes by mutual TLS, once this node has an identity.
#[derive(Debug, Default)]
struct TlsDial {
    tls: OnceLock<PeerTls>,
}

impl TlsDial {
    /// The first one stays; later ones are the same node's.
    fn set(&self, tls: PeerTls) {
        let _ = self.tls.set(tls);
    }
}

impl Dial for TlsDial {
    fn channel(
        &self,
        node: NodeId,
        addr: &str,
        settings: &dyn Fn(Endpoint) -> Endpoint,
    ) -> Option<Channel> {
        Some(self.tls.get()?.channel(node, addr, settings))
    }
}

impl OpenError {
    fn snapshots(error: SnapshotError) -> Self {
        Self::Snapshots(Box::new(error))
    }
}

fn start_failed(error: impl std::error::Error + Send + Sync + 'static) -> OpenError {
    OpenError::Start(Box::new(error))
}
