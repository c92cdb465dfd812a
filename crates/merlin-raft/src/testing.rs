//! A cluster in one process: real stores on real disks and real gRPC between them, over pipes
//! that a test can cut.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::Timers;
use crate::datadir::{DataDir, Introducer, NodeFile};
use crate::identity::Role;
use crate::level::Level;
use crate::open::Disk;
pub(crate) use crate::simulation::{CLUSTER, Network};
use crate::simulation::{address, enroll, start};
use crate::store::RaftStore;
use crate::typ::NodeId;

/// Longest wait for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const TIMERS: Timers = Timers {
    heartbeat: Duration::from_millis(50),
    election_min: Duration::from_millis(450),
    election_max: Duration::from_millis(600),
    promote_after: Duration::from_millis(100),
};

// === the nodes ===

/// Some nodes, their disks, and the network between them.
pub(crate) struct TestCluster {
    pub(crate) network: Network,
    nodes: BTreeMap<NodeId, RaftStore>,
    disks: tempfile::TempDir,
    /// What nodes know that are started.
    pub(crate) level: Level,
}

impl TestCluster {
    /// A cluster of so many voters, numbered from 1.
    pub(crate) async fn of(size: u64) -> Self {
        Self::of_level(size, Level::LATEST).await
    }

    /// One whose nodes know no later commands than these.
    pub(crate) async fn of_level(size: u64, level: Level) -> Self {
        let mut cluster = Self {
            network: Network::default(),
            nodes: BTreeMap::new(),
            disks: tempfile::tempdir().unwrap(),
            level,
        };
        for node in 1..=size {
            cluster.add(node, Role::Voter).await;
        }
        cluster
    }

    /// Starts the next node, and waits until it has its part.
    pub(crate) async fn add(&mut self, id: NodeId, role: Role) {
        self.introduce(id, role, &[]).await;
        eventually("the node has its part", || {
            let status = self.node(id).status();
            let wanted = |member: &crate::Member| {
                (member.role == crate::Role::Learner) == (role == Role::Learner)
            };
            let this = status.members.iter().find(|member| member.id == id);
            this.is_some_and(wanted) && !status.changing
        })
        .await;
    }

    /// Starts the next node, which was let in by these.
    pub(crate) async fn introduce(&mut self, id: NodeId, role: Role, introducers: &[NodeId]) {
        let disk = DataDir::open(&self.disk(id)).unwrap();
        let node = NodeFile {
            cluster: CLUSTER,
            node: id,
            incarnation: 1,
        };
        disk.set_node(&node).unwrap();
        let introducers = introducers.iter().map(|id| Introducer {
            id: *id,
            addr: address(*id),
        });
        disk.set_introducers(&introducers.collect::<Vec<_>>())
            .unwrap();
        drop(disk);
        self.start(id).await;
        if id > 1 {
            enroll(self.leader().await, id, role).await.unwrap();
        }
    }

    pub(crate) fn disk(&self, id: NodeId) -> PathBuf {
        self.disks.path().join(id.to_string())
    }

    /// Starts a node that is down.
    pub(crate) async fn start(&mut self, id: NodeId) {
        let mut disk = Disk::open(self.disk(id)).await.unwrap();
        disk.limit(self.level).unwrap();
        let store = start(disk, TIMERS, &self.network).await.unwrap();
        self.nodes.insert(id, store);
    }

    /// Stops a node. The others notice by its silence.
    pub(crate) async fn stop(&mut self, id: NodeId) {
        self.network.close(id);
        let store = self.nodes.remove(&id).unwrap();
        store.shutdown().await;
        drop(store);
    }

    /// Leaves a node to itself: the cluster goes on without it.
    pub(crate) fn forget(&mut self, id: NodeId) {
        self.network.close(id);
        self.nodes.remove(&id);
    }

    pub(crate) fn node(&self, id: NodeId) -> &RaftStore {
        &self.nodes[&id]
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &RaftStore> {
        self.nodes.values()
    }

    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// The node that leads and that a majority of the voters follows.
    pub(crate) async fn leader(&self) -> &RaftStore {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(leader) = self.nodes().find(|node| self.is_followed(node.node_id())) {
                return leader;
            }
            assert!(Instant::now() < deadline, "nobody leads");
            pause().await;
        }
    }

    fn is_followed(&self, id: NodeId) -> bool {
        let follows = |node: &&RaftStore| node.status().leader == Some(id);
        let leads = self.node(id).status();
        let votes = |member: &&crate::Member| member.role != crate::Role::Learner;
        leads.role == crate::Role::Leader
            && leads.unavailable.is_none()
            && self.nodes().filter(follows).count() * 2 > leads.members.iter().filter(votes).count()
    }

    /// Any node but the leader.
    pub(crate) async fn follower(&self) -> &RaftStore {
        let leader = self.leader().await.node_id();
        let mut others = self.nodes().filter(|node| node.node_id() != leader);
        others.next().unwrap()
    }

    /// Waits until all running nodes have applied the same.
    pub(crate) async fn converged(&self) {
        eventually("all nodes hold the same", || {
            let applied = |node: &RaftStore| node.inner.views.applied.borrow().map(|at| at.index);
            let first = self.nodes().next().unwrap();
            let last = first.status().last_log;
            self.nodes()
                .all(|node| applied(node) == last && node.status().last_log == last)
        })
        .await;
        let first = self.nodes().next().unwrap().catalog().borrow().clone();
        for node in self.nodes() {
            assert_eq!(*node.catalog().borrow(), first);
        }
    }
}

/// A moment until something may have changed that cannot be waited for.
pub(crate) async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Waits for what must come about.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        pause().await;
    }
}

/// Waits for a future that must finish.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = timeout_at(Instant::now() + PATIENCE, future).await;
    done.unwrap_or_else(|_| panic!("not in time: {what}"))
}
