//! A cluster in one process, in which time need not pass: everything of the store is as in the
//! daemon, gRPC between the nodes included, but for three things. Connections are pipes
//! ([`Network`]), the log is on a simulated disk, and there is no TLS.
//!
//! Snapshots and the rest of the data directory are files as ever; in memory, if the directory is.
//! On a runtime whose clock is paused, hours of elections take seconds. For tests and for
//! jepsen-like alone, hence the feature.

mod disk;
mod network;

use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use merlin_model::store::ProposeError;
use merlin_model::{Actor, Timestamp};

use crate::Timers;
use crate::datadir::{DataDir, NodeFile};
use crate::identity::{
    ClusterId, EnrollmentAnswer, EnrollmentCommand, KeyFingerprint, Redemption, Role, SecretHash,
    TokenId, TokenRecord,
};
use crate::knock::Here;
use crate::log::LogStore;
use crate::open::{Disk, OpenError};
use crate::store::RaftStore;
use crate::typ::{MerlinNode, NodeId};

use disk::{Contents, SimulatedDisk};
pub use network::Network;

/// Every simulated cluster has this id.
pub(crate) const CLUSTER: ClusterId = ClusterId::from_bytes([7; 16]);

const SECRET: SecretHash = SecretHash([2; 32]);

/// Longest wait for a part of the founding.
const PATIENCE: Duration = Duration::from_secs(10);

/// The simulated cluster could not be made, which says nothing about merlin.
#[derive(Debug, thiserror::Error)]
pub enum SimulationError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the data directory of a simulated node")]
    Files(#[from] io::Error),
    #[error("the data directory of a simulated node")]
    DataDir(#[from] crate::datadir::DataDirError),
    #[error("a simulated node was not let in")]
    Enroll(#[from] ProposeError),
    #[error("the simulated cluster did not come together: {0}")]
    Founding(&'static str),
}

/// What is left of a node without power, and what it is started from.
#[derive(Debug)]
pub struct Machine {
    pub id: NodeId,
    dir: PathBuf,
    log: Contents,
}

/// A node that runs.
#[derive(Debug)]
pub struct Node {
    pub store: RaftStore,
    disk: SimulatedDisk,
    dir: PathBuf,
}

impl Machine {
    /// One that has not run yet.
    fn new(id: NodeId, dir: PathBuf) -> Result<Self, SimulationError> {
        DataDir::open(&dir)?.set_node(&NodeFile {
            cluster: CLUSTER,
            node: id,
            incarnation: 1,
        })?;
        let log = Contents::default();
        Ok(Self { id, dir, log })
    }

    /// The same once more, in another directory.
    pub fn copy(&self, dir: PathBuf) -> io::Result<Self> {
        copy_files(&self.dir, &dir)?;
        Ok(Self {
            id: self.id,
            dir,
            log: self.log.clone(),
        })
    }

    /// Starts the node. Its disk takes so long to sync.
    pub async fn start(
        self,
        timers: Timers,
        snapshot_every: NonZeroU64,
        latency: Duration,
        network: &Network,
    ) -> Result<Node, SimulationError> {
        let Self { dir, log, .. } = self;
        let simulated = SimulatedDisk::holding(log, latency);
        let engine = simulated.clone();
        // A directory whose log is gone would be refused.
        let place = dir.join("log");
        fs::create_dir_all(&place).and_then(|()| fs::write(place.join("tip"), ""))?;
        let mut disk = Disk::open_with(&dir, |_| Ok(LogStore::on(engine)))?;
        disk.snapshot_every = snapshot_every;
        Ok(Node {
            store: start(disk, timers, network).await?,
            disk: simulated,
            dir,
        })
    }
}

impl Node {
    /// From now on the disk takes so long to sync.
    pub fn slow_disk(&self, latency: Duration) {
        self.disk.slow(latency);
    }

    /// Takes the power from the node. Of what its log has not synced, as much is kept as `kept` says
    /// of its number: all of it when only the process is killed. Files are found in `dir`.
    pub fn kill(
        self,
        network: &Network,
        kept: impl FnOnce(usize) -> usize,
        dir: PathBuf,
    ) -> io::Result<Machine> {
        let id = self.store.node_id();
        network.kill(id);
        let log = self.disk.cut(kept);
        copy_files(&self.dir, &dir)?;
        // What is left of it reaches neither disk nor network, and only has to go.
        tokio::spawn(async move { self.store.shutdown().await });
        Ok(Machine { id, dir, log })
    }
}

/// Makes a cluster of so many voters and turns it off. Its files are below `dir`.
pub async fn found(
    size: u64,
    timers: Timers,
    every: NonZeroU64,
    dir: &Path,
) -> Result<Vec<Machine>, SimulationError> {
    let network = Network::default();
    let mut nodes: Vec<Node> = Vec::new();
    for id in 1..=size {
        let home = dir.join(id.to_string());
        let machine = Machine::new(id, home)?;
        if let Some(first) = nodes.first() {
            enroll(&first.store, id, Role::Voter).await?;
        }
        let latency = Duration::from_millis(1);
        nodes.push(machine.start(timers, every, latency, &network).await?);
        let joined = async {
            while !nodes.iter().all(|node| is_whole(&node.store, id)) {
                tokio::time::sleep(timers.heartbeat).await;
            }
        };
        let joined = tokio::time::timeout(PATIENCE, joined).await;
        joined.map_err(|_| SimulationError::Founding("a node has no vote"))?;
    }
    let off = |node: Node| {
        let id = node.store.node_id();
        node.kill(&network, |all| all, dir.join(format!("off-{id}")))
    };
    Ok(nodes.into_iter().map(off).collect::<Result<_, _>>()?)
}

/// In what the replicated states of two nodes differ.
pub fn differences(a: &RaftStore, b: &RaftStore) -> Vec<&'static str> {
    let (a, b) = (a.inner.views.whole.state(), b.inner.views.whole.state());
    let parts = [
        ("position", a.applied == b.applied),
        ("membership", a.membership == b.membership),
        ("cluster", a.cluster == b.cluster),
        ("catalog", a.catalog == b.catalog),
        ("audit trail", a.audit == b.audit),
    ];
    let differ = parts.into_iter().filter(|(_, same)| !same);
    differ.map(|(part, _)| part).collect()
}

/// Starts what is on a disk as a node of this network.
pub(crate) async fn start(
    disk: Disk,
    timers: Timers,
    network: &Network,
) -> Result<RaftStore, OpenError> {
    let node = disk.node;
    let this = MerlinNode {
        name: format!("n{}", node.node),
        addr: address(node.node),
    };
    let here = Here {
        node: this.clone(),
        guessed: false,
    };
    let store = RaftStore::assemble(disk, here, timers, network.dial(node.node)).await?;
    store.serve(network.listen(node.node));
    store.found(node, this).await?;
    Ok(store)
}

/// Whether a node knows of so many voters and of no change under way.
fn is_whole(store: &RaftStore, size: u64) -> bool {
    let status = store.status();
    let votes = |member: &&crate::Member| member.role != crate::Role::Learner;
    status.members.iter().filter(votes).count() as u64 == size && !status.changing
}

/// Has a leader let the next node in.
pub(crate) async fn enroll(leader: &RaftStore, id: NodeId, role: Role) -> Result<(), ProposeError> {
    let token = match role {
        Role::Voter => TokenId([1; 8]),
        Role::Learner => TokenId([2; 8]),
    };
    let record = TokenRecord {
        secret: SECRET,
        role,
        name: String::new(),
        expires: Timestamp(u64::MAX),
        uses_left: 100,
        revoked: false,
    };
    let create = EnrollmentCommand::CreateToken(token, record);
    leader.enroll(create, Actor::Unknown, PATIENCE).await?;
    let redeem = EnrollmentCommand::Redeem(Redemption {
        token,
        secret: SECRET,
        key: KeyFingerprint([u8::try_from(id).unwrap_or(u8::MAX); 32]),
        name: format!("n{id}"),
        addr: address(id),
    });
    match leader.enroll(redeem, Actor::Unknown, PATIENCE).await? {
        EnrollmentAnswer::Admitted(admission) if admission.node == id => Ok(()),
        answer => Err(ProposeError::Unavailable {
            reason: format!("node {id} was answered {answer:?}"),
        }),
    }
}

pub(crate) fn address(id: NodeId) -> String {
    format!("192.0.2.{id}:4284")
}

/// Files that go while they are copied, as unfinished ones do, are passed over.
fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let copied = if entry.file_type()?.is_dir() {
            copy_files(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), target).map(drop)
        };
        match copied {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TIMERS;

    #[tokio::test(start_paused = true)]
    async fn a_cluster_is_founded_however_slow_the_disk_is() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::new(1, dir.path().join("1")).unwrap();
        let every = NonZeroU64::new(100).unwrap();
        let slow = TIMERS.election_max * 10;
        let network = Network::default();
        let node = machine.start(TIMERS, every, slow, &network).await.unwrap();
        assert!(is_whole(&node.store, 1));
    }
}
