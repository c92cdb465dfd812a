//! The store of one node: opening it, and everything the daemon does with it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use merlin_model::store::{Consistency, ProposeError, ReadError};
use merlin_model::{Catalog, Command, EventRing, Reply};
use openraft::error::{Fatal, InitializeError, RaftError};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::cluster::{AuthorityKeys, ClusterChange, ClusterCommand, Founding};
use crate::config::{Config, InvalidTimers};
use crate::consensus::{Consensus, Leadership};
use crate::datadir::{DataDir, DataDirError, NodeFile};
use crate::identity::{Ca, ClusterId};
use crate::log::LogStore;
use crate::network::Network;
use crate::peers::Peers;
use crate::proposer::{Origin, Proposer, now, unavailable};
use crate::reads::ReadIndex;
use crate::snapshot::{SnapshotError, Snapshots};
use crate::state::{State, StateMachine, Views};
use crate::status::Status;
use crate::typ::{MerlinNode, NodeId, Proposal, Raft};

/// The embedded store of one node. Cheap to clone; every clone is the same store.
#[derive(Clone, Debug)]
pub struct RaftStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: NodeFile,
    consensus: Consensus,
    views: Views,
    proposer: Proposer,
    reads: ReadIndex,
    log: LogStore,
    // Unlocked last.
    _dir: DataDir,
}

/// Why the store cannot be opened. Nothing was changed that a later start would miss.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Timers(#[from] InvalidTimers),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Log(#[from] crate::log::OpenError),
    #[error("the snapshots cannot be used")]
    Snapshots(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(
        "the snapshot ends at entry {snapshot}, but the log begins only after entry {purged}: \
         restore the data directory from a backup, or move it away and join the cluster as a new \
         node"
    )]
    Gap { snapshot: u64, purged: u64 },
    #[error("consensus could not start")]
    Start(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the new cluster could not be founded: {0}")]
    Founding(String),
}

/// The store has stopped for good. Restarting the daemon is the way out; the kernel keeps its
/// rules meanwhile.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store has failed: {0}")]
pub struct StoreFailed(String);

/// The name of a founder's cluster before it is in the log.
const FIRST_NODE: NodeId = 1;
const FIRST_INCARNATION: u64 = 1;

impl RaftStore {
    /// Opens the store in `config.data_dir`. An empty directory becomes a cluster of one node.
    ///
    /// What was committed before is published when this returns, whether or not a quorum of the
    /// cluster can be reached.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let raft_config = config.timers.raft()?;
        let disk = Disk::open(config.data_dir.clone()).await?;
        let founder = disk.node.node == FIRST_NODE && disk.node.incarnation == FIRST_INCARNATION;

        let (machine, views) = StateMachine::new(disk.state, Arc::clone(&disk.snapshots));
        let peers = Peers {};
        let network = Network {
            peers: peers.clone(),
        };
        let raft = Raft::new(
            disk.node.node,
            Arc::new(raft_config),
            network,
            disk.log.clone(),
            machine,
        );
        let raft = raft.await.map_err(start_failed)?;
        let consensus = Consensus::new(raft, config.timers.isolation());
        let store = Self {
            inner: Arc::new(Inner {
                node: disk.node,
                proposer: Proposer::start(consensus.clone(), peers.clone()),
                reads: ReadIndex::start(consensus.clone(), peers),
                consensus,
                views,
                log: disk.log,
                _dir: disk.dir,
            }),
        };
        if founder && store.inner.views.cluster.borrow().founding.is_none() {
            store.found(&config).await?;
        }
        Ok(store)
    }

    /// Makes this node a cluster of its own. Every step can be repeated after a crash.
    async fn found(&self, config: &Config) -> Result<(), OpenError> {
        let raft = &self.inner.consensus.raft;
        let this = MerlinNode {
            name: config.node_name.clone(),
            addr: config.advertise.clone(),
        };
        let members = std::collections::BTreeMap::from([(FIRST_NODE, this)]);
        match raft.initialize(members).await {
            // Done before a crash.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(OpenError::Founding(error.to_string())),
        }
        let wait = raft.wait(Some(config.timers.isolation()));
        let leading = wait.metrics(
            |metrics| metrics.current_leader == Some(FIRST_NODE),
            "a cluster of one has a leader",
        );
        leading
            .await
            .map_err(|error| OpenError::Founding(error.to_string()))?;
        let cluster = self.inner.node.cluster;
        let ca = Ca::create(cluster, now()).map_err(start_failed)?;
        let command = ClusterCommand {
            at: now(),
            change: ClusterChange::Found(Founding {
                cluster,
                incarnation: self.inner.node.incarnation,
                ca: AuthorityKeys {
                    certificate: ca.certificate().to_vec(),
                    key: ca.key().to_vec(),
                },
            }),
        };
        let proposal = Proposal::of_cluster(&command);
        let founded = self.inner.consensus.write(proposal).await;
        founded.map_err(|error| OpenError::Founding(error.to_string()))?;
        Ok(())
    }

    pub fn cluster_id(&self) -> ClusterId {
        self.inner.node.cluster
    }

    /// Raised when a cluster is restored from a copy: revisions of different incarnations are not
    /// comparable.
    pub fn incarnation(&self) -> u64 {
        self.inner.node.incarnation
    }

    pub fn node_id(&self) -> NodeId {
        self.inner.node.node
    }

    /// The catalog as this node has applied it.
    pub fn catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        self.inner.views.catalog.clone()
    }

    /// The catalog's recent changes as this node has applied them.
    pub fn events(&self) -> watch::Receiver<EventRing> {
        self.inner.views.events.clone()
    }

    /// Has the cluster decide a command. Its time stamp is the leader's.
    pub async fn propose(
        &self,
        command: Command,
        timeout: Duration,
    ) -> Result<Reply, ProposeError> {
        if let Leadership::None { reason } = self.inner.consensus.leadership() {
            return Err(unavailable(reason));
        }
        let deadline = Instant::now() + timeout;
        let proposer = &self.inner.proposer;
        proposer
            .propose((&command).into(), Origin::Here, deadline)
            .await
    }

    /// The catalog, as fresh as asked for.
    pub async fn read(
        &self,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<Arc<Catalog>, ReadError> {
        if consistency == Consistency::Linearizable {
            let deadline = Instant::now() + timeout;
            let position = self.inner.reads.get(Origin::Here, deadline).await?;
            let mut applied = self.inner.views.applied.clone();
            let reached =
                applied.wait_for(|applied| applied.is_some_and(|at| at.index >= position));
            match timeout_at(deadline, reached).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => {
                    return Err(ReadError::Unavailable {
                        reason: "the store has stopped".into(),
                    });
                }
                Err(_) => return Err(ReadError::Timeout(timeout)),
            }
        }
        Ok(Arc::clone(&self.inner.views.catalog.borrow()))
    }

    /// How the store is doing, as this node sees it.
    pub fn status(&self) -> Status {
        let Inner { node, .. } = &*self.inner;
        Status::read(&self.inner.consensus, node.cluster, node.incarnation)
    }

    /// Ready when the store can go on no longer.
    pub async fn failed(&self) -> StoreFailed {
        let mut metrics = self.inner.consensus.raft.metrics();
        let stopped = metrics
            .wait_for(|metrics| {
                metrics
                    .running_state
                    .as_ref()
                    .is_err_and(|fatal| *fatal != Fatal::Stopped)
            })
            .await;
        match stopped {
            Ok(metrics) => StoreFailed(match &metrics.running_state {
                Err(Fatal::StorageError(error)) => error.to_string(),
                Err(error) => error.to_string(),
                Ok(()) => String::new(),
            }),
            // Shut down in order.
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops taking part in the cluster and closes the files.
    pub async fn shutdown(&self) {
        if self.inner.consensus.raft.shutdown().await.is_err() {
            tracing::error!("consensus ended in a panic");
        }
        let log = self.inner.log.clone();
        let _ = tokio::task::spawn_blocking(move || log.close()).await;
    }
}

/// What a node finds on its disk.
struct Disk {
    dir: DataDir,
    node: NodeFile,
    log: LogStore,
    snapshots: Arc<Snapshots>,
    state: State,
}

impl Disk {
    async fn open(path: std::path::PathBuf) -> Result<Self, OpenError> {
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(&path));
        let opened = opened.await.map_err(start_failed)?;
        let mut disk = opened?;
        disk.check_gap().await?;
        Ok(disk)
    }

    fn open_blocking(path: &Path) -> Result<Self, OpenError> {
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
        let log = LogStore::open(&dir.log())?;
        Ok(Self {
            dir,
            node,
            log,
            snapshots: Arc::new(snapshots),
            state: state.unwrap_or_default(),
        })
    }

    /// Snapshot and log must meet.
    async fn check_gap(&mut self) -> Result<(), OpenError> {
        use openraft::storage::RaftLogStorage;
        let log = self.log.get_log_state().await.map_err(start_failed)?;
        let purged = log.last_purged_log_id.map_or(0, |at| at.index);
        let snapshot = self.state.applied.map_or(0, |at| at.index);
        if snapshot < purged {
            return Err(OpenError::Gap { snapshot, purged });
        }
        Ok(())
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

#[cfg(test)]
mod tests;
