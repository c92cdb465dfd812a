//! A cluster in one process: real stores on real disks and real gRPC between them, over pipes
//! that a test can cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use merlin_model::{Actor, Timestamp};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::Timers;
use crate::datadir::{DataDir, Introducer, NodeFile};
use crate::identity::{
    ClusterId, EnrollmentAnswer, EnrollmentCommand, KeyFingerprint, PeerConnection, PeerName,
    Redemption, Role, SecretHash, TokenId, TokenRecord,
};
use crate::level::Level;
use crate::open::Disk;
use crate::peers::Dial;
use crate::store::RaftStore;
use crate::typ::{MerlinNode, NodeId};

/// Longest wait for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const TIMERS: Timers = Timers {
    heartbeat: Duration::from_millis(50),
    election_min: Duration::from_millis(150),
    election_max: Duration::from_millis(300),
    promote_after: Duration::from_millis(100),
};

pub(crate) const CLUSTER: ClusterId = ClusterId::from_bytes([7; 16]);

const SECRET: SecretHash = SecretHash([2; 32]);

// === the network ===

/// Connects nodes by pipes. What is on the way when a link is cut waits until it is mended, as in
/// a real partition; new connections are made and then hang.
#[derive(Clone, Debug, Default)]
pub(crate) struct Network {
    doors: Arc<Mutex<BTreeMap<NodeId, mpsc::UnboundedSender<io::Result<Pipe>>>>>,
    cuts: Arc<watch::Sender<BTreeSet<(NodeId, NodeId)>>>,
    walls: Arc<Mutex<BTreeSet<(NodeId, NodeId)>>>,
}

impl Network {
    /// Cuts everything from one node to another, in this direction.
    pub(crate) fn cut(&self, from: NodeId, to: NodeId) {
        self.cuts.send_modify(|cuts| {
            cuts.insert((from, to));
        });
    }

    /// Refuses connections from one node to another, as a firewall does. Those in the other
    /// direction work both ways.
    pub(crate) fn wall(&self, from: NodeId, to: NodeId) {
        self.walls.lock().unwrap().insert((from, to));
    }

    /// Cuts a node off from all others.
    pub(crate) fn isolate(&self, node: NodeId, others: impl IntoIterator<Item = NodeId>) {
        for other in others.into_iter().filter(|other| *other != node) {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    pub(crate) fn mend(&self) {
        self.cuts.send_modify(BTreeSet::clear);
        self.walls.lock().unwrap().clear();
    }

    /// What a node that dials with this reaches.
    pub(crate) fn dial(&self, from: NodeId) -> Arc<dyn Dial> {
        Arc::new(PipeDial {
            network: self.clone(),
            from,
        })
    }

    fn listen(&self, node: NodeId) -> UnboundedReceiverStream<io::Result<Pipe>> {
        let (door, incoming) = mpsc::unbounded_channel();
        self.doors.lock().unwrap().insert(node, door);
        UnboundedReceiverStream::new(incoming)
    }

    fn close(&self, node: NodeId) {
        self.doors.lock().unwrap().remove(&node);
    }

    fn connect(&self, from: NodeId, to: NodeId) -> io::Result<DuplexStream> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let (near, near_wire) = tokio::io::duplex(64 << 10);
        let (far_wire, far) = tokio::io::duplex(64 << 10);
        let pipe = Pipe {
            stream: far,
            peer: PeerName {
                cluster: CLUSTER,
                node: from,
            },
        };
        if self.walls.lock().unwrap().contains(&(from, to)) {
            return Err(refused());
        }
        let doors = self.doors.lock().unwrap();
        let door = doors.get(&to).ok_or_else(refused)?;
        door.send(Ok(pipe)).map_err(|_| refused())?;
        let (near_read, near_write) = tokio::io::split(near_wire);
        let (far_read, far_write) = tokio::io::split(far_wire);
        tokio::spawn(self.clone().carry((from, to), near_read, far_write));
        tokio::spawn(self.clone().carry((to, from), far_read, near_write));
        Ok(near)
    }

    async fn carry(
        self,
        link: (NodeId, NodeId),
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) {
        let mut cuts = self.cuts.subscribe();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let read = from.read(&mut buffer).await.unwrap_or(0);
            if cuts.wait_for(|cuts| !cuts.contains(&link)).await.is_err() {
                return;
            }
            if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
                let _ = to.shutdown().await;
                return;
            }
        }
    }
}

#[derive(Debug)]
struct PipeDial {
    network: Network,
    from: NodeId,
}

impl Dial for PipeDial {
    fn channel(
        &self,
        node: NodeId,
        _addr: &str,
        settings: &dyn Fn(Endpoint) -> Endpoint,
    ) -> Option<Channel> {
        let (network, from) = (self.network.clone(), self.from);
        let connector = tower::service_fn(move |_: Uri| {
            let connected = network.connect(from, node).map(TokioIo::new);
            std::future::ready(connected)
        });
        let endpoint = settings(Endpoint::from_static("http://peer"));
        Some(endpoint.connect_with_connector_lazy(connector))
    }
}

/// The accepting end, which knows who dialled as a TLS connection would.
struct Pipe {
    stream: DuplexStream,
    peer: PeerName,
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pipe({})", self.peer)
    }
}

impl Connected for Pipe {
    type ConnectInfo = PeerConnection;

    fn connect_info(&self) -> PeerConnection {
        PeerConnection {
            remote: SocketAddr::from(([127, 0, 0, 1], 0)),
            peer: Some(self.peer),
        }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

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
            addr: format!("192.0.2.{id}:4284"),
        });
        disk.set_introducers(&introducers.collect::<Vec<_>>())
            .unwrap();
        drop(disk);
        self.start(id).await;
        if id > 1 {
            self.enroll(id, role).await;
        }
    }

    async fn enroll(&self, id: NodeId, role: Role) {
        let leader = self.leader().await;
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
        leader
            .enroll(create, Actor::Unknown, PATIENCE)
            .await
            .unwrap();
        let redeem = EnrollmentCommand::Redeem(Redemption {
            token,
            secret: SECRET,
            key: KeyFingerprint([u8::try_from(id).unwrap(); 32]),
            name: format!("n{id}"),
            addr: format!("192.0.2.{id}:4284"),
        });
        let EnrollmentAnswer::Admitted(admission) = leader
            .enroll(redeem, Actor::Unknown, PATIENCE)
            .await
            .unwrap()
        else {
            panic!("the token is good");
        };
        assert_eq!(admission.node, id);
    }

    pub(crate) fn disk(&self, id: NodeId) -> PathBuf {
        self.disks.path().join(id.to_string())
    }

    /// Starts a node that is down.
    pub(crate) async fn start(&mut self, id: NodeId) {
        let mut disk = Disk::open(self.disk(id)).await.unwrap();
        disk.limit(self.level).unwrap();
        let node = disk.node;
        let dial = self.network.dial(id);
        let this = MerlinNode {
            name: format!("n{id}"),
            addr: format!("192.0.2.{id}:4284"),
        };
        let store = RaftStore::assemble(disk, &this, TIMERS, dial)
            .await
            .unwrap();
        store.serve(self.network.listen(id));
        store.found(node, this, TIMERS).await.unwrap();
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
