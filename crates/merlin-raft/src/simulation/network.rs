//! A network of pipes, which can be cut, slowed down, and broken off with a process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};

use super::CLUSTER;
use crate::identity::{PeerConnection, PeerName};
use crate::peers::Dial;
use crate::typ::NodeId;

/// Connects nodes by pipes. What is on the way when a link is cut waits until it is mended, as in
/// a real partition; new connections are made and then hang.
#[derive(Clone, Debug, Default)]
pub struct Network {
    doors: Arc<Mutex<BTreeMap<NodeId, mpsc::UnboundedSender<io::Result<Pipe>>>>>,
    lives: Arc<watch::Sender<BTreeMap<NodeId, u64>>>,
    delay: Arc<watch::Sender<Duration>>,
    cuts: Arc<watch::Sender<BTreeSet<(NodeId, NodeId)>>>,
    walls: Arc<Mutex<BTreeSet<(NodeId, NodeId)>>>,
}

impl Network {
    /// Cuts everything from one node to another, in this direction.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.cuts.send_modify(|cuts| {
            cuts.insert((from, to));
        });
    }

    /// Refuses connections from one node to another, as a firewall does. Those in the other
    /// direction work both ways.
    pub fn wall(&self, from: NodeId, to: NodeId) {
        self.walls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((from, to));
    }

    /// Cuts a node off from all others.
    pub fn isolate(&self, node: NodeId, others: impl IntoIterator<Item = NodeId>) {
        for other in others.into_iter().filter(|other| *other != node) {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    pub fn mend(&self) {
        self.cuts.send_modify(BTreeSet::clear);
        self.walls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// How long everything is under way from now on.
    pub fn slow(&self, delay: Duration) {
        self.delay.send_replace(delay);
    }

    /// Breaks every connection of a node, whose process is gone. What is left of it reaches nobody.
    pub fn kill(&self, node: NodeId) {
        self.close(node);
        self.lives
            .send_modify(|lives| *lives.entry(node).or_default() += 1);
    }

    fn lives_of(&self, ends: (NodeId, NodeId)) -> [u64; 2] {
        lives_in(&self.lives.borrow(), ends)
    }

    /// What a node that dials with this reaches.
    pub(crate) fn dial(&self, from: NodeId) -> Arc<dyn Dial> {
        Arc::new(PipeDial {
            life: self.lives_of((from, from))[0],
            network: self.clone(),
            from,
        })
    }

    pub(crate) fn listen(&self, node: NodeId) -> UnboundedReceiverStream<io::Result<Pipe>> {
        let (door, incoming) = mpsc::unbounded_channel();
        self.doors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node, door);
        UnboundedReceiverStream::new(incoming)
    }

    pub(crate) fn close(&self, node: NodeId) {
        self.doors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&node);
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
        if self
            .walls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&(from, to))
        {
            return Err(refused());
        }
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        let door = doors.get(&to).ok_or_else(refused)?;
        door.send(Ok(pipe)).map_err(|_| refused())?;
        let (near_read, near_write) = tokio::io::split(near_wire);
        let (far_read, far_write) = tokio::io::split(far_wire);
        let lives = self.lives_of((from, to));
        let there = self.clone().carry((from, to), near_read, far_write);
        let back = self.clone().carry((to, from), far_read, near_write);
        let network = self.clone();
        tokio::spawn(async move {
            let mut watched = network.lives.subscribe();
            let dead = watched.wait_for(|now| lives_in(now, (from, to)) != lives);
            tokio::select! {
                _ = async { tokio::join!(there, back) } => {}
                _ = dead => {}
            }
        });
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
            let delay = *self.delay.borrow();
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
                let _ = to.shutdown().await;
                return;
            }
        }
    }
}

fn lives_in(lives: &BTreeMap<NodeId, u64>, (a, b): (NodeId, NodeId)) -> [u64; 2] {
    [a, b].map(|node| lives.get(&node).copied().unwrap_or_default())
}

#[derive(Debug)]
struct PipeDial {
    network: Network,
    from: NodeId,
    /// Which of the processes that this node has been.
    life: u64,
}

impl Dial for PipeDial {
    fn channel(
        &self,
        node: NodeId,
        _addr: &str,
        settings: &dyn Fn(Endpoint) -> Endpoint,
    ) -> Option<Channel> {
        let (network, from, life) = (self.network.clone(), self.from, self.life);
        let connector = tower::service_fn(move |_: Uri| {
            let connected = if network.lives_of((from, from))[0] == life {
                network.connect(from, node).map(TokioIo::new)
            } else {
                Err(io::ErrorKind::ConnectionRefused.into())
            };
            std::future::ready(connected)
        });
        let endpoint = settings(Endpoint::from_static("http://peer"));
        Some(endpoint.connect_with_connector_lazy(connector))
    }
}

/// The accepting end, which knows who dialled as a TLS connection would.
pub(crate) struct Pipe {
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
