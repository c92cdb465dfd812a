//! Connections between nodes: TLS 1.3 with the cluster's certificates at both ends.
//!
//! ```text
//! listener ─▶ PeerTls::incoming ─▶ handshakes, side by side ─▶ PeerStream ─▶ gRPC server
//!                                                              │ who is at the other end
//!                                                              ▼
//!                                            verify_peer(&request, who it claims to be)
//! PeerTls::channel(node, addr) ─▶ TCP ─▶ TLS, for that node's name only ─▶ gRPC client
//! ```
//! A server takes connections without a certificate too, because a new node has none when it asks
//! in; every other call goes through [`verify_peer`]. A certificate that is shown must be good.
//!
//! Sessions are not resumed: a resumed one would outlive the certificates it began with.
//!
//! While the cluster's authority is replaced, both are trusted, and clients, which may know the former
//! one alone, are shown a certificate of that.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, FuturesUnordered, Stream, StreamExt};
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use super::client::ClientName;
use super::complaint::Complaints;
use super::digest::CaFingerprint;
use super::name::PeerName;
use super::node::NodeIdentity;
use crate::typ::NodeId;

/// gRPC is HTTP/2.
pub(super) const ALPN: &[u8] = b"h2";

/// More than a healthy network needs, and few enough not to hold up a caller that has other
/// addresses to try.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Handshakes under way; further connections wait in the listener's queue.
const MAX_HANDSHAKES: usize = 256;

/// Connections at a time of those without a node's certificate, and how long each may last. They
/// come to ask in, which takes a moment; anybody can make them, so they are bounded.
const MAX_VISITORS: usize = 64;
const VISIT: Duration = Duration::from_secs(20);

/// How long to wait when a connection cannot be accepted, which is when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why an identity cannot be used for connections.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the node's certificates cannot be used for TLS")]
    Unusable(#[source] rustls::Error),
    #[error("the cluster's CA certificate cannot be used for TLS")]
    Authority(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{found} cannot take the place of {held}")]
    OtherNode { held: PeerName, found: PeerName },
    #[error("the new certificate is from CA {found}, the node's connections trust {held}")]
    OtherAuthority {
        held: CaFingerprint,
        found: CaFingerprint,
    },
}

/// The one crypto provider, handed to every configuration so that no global default is needed.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

// === what a node shows, and whom it trusts ===

/// What a node has beside its identity while the authority is being replaced.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beside {
    /// Certificates of these authorities are as good as those of its own.
    pub(crate) trusted: Vec<CertificateDer<'static>>,
    /// Shown to clients, which know the former authority alone.
    pub(crate) former: Option<Arc<NodeIdentity>>,
}

/// Everything that follows from it. Connections that exist stay as they are when it changes.
#[derive(Clone, Debug)]
struct Current {
    identity: Arc<NodeIdentity>,
    beside: Beside,
    /// For connections that other nodes make,
    nodes: Arc<ServerConfig>,
    /// that clients make,
    clients: Arc<ServerConfig>,
    /// and that this node makes.
    dialing: Arc<ClientConfig>,
}

impl Current {
    fn new(identity: Arc<NodeIdentity>, beside: Beside) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in std::iter::once(identity.ca()).chain(&beside.trusted) {
            roots
                .add(authority.clone())
                .map_err(|error| TlsError::Authority(error.into()))?;
        }
        let roots = Arc::new(roots);
        let certified = certified(&identity)?;
        let nodes = Arc::new(server_config(&roots, &certified)?);
        let clients = match &beside.former {
            Some(former) => Arc::new(server_config(&roots, &self::certified(former)?)?),
            None => Arc::clone(&nodes),
        };
        Ok(Self {
            dialing: Arc::new(client_config(roots, &certified)?),
            nodes,
            clients,
            identity,
            beside,
        })
    }
}

fn certified(identity: &NodeIdentity) -> Result<Arc<SingleCertAndKey>, TlsError> {
    // The CA's certificate goes along for new nodes, which only know its hash.
    let chain = vec![identity.certificate().clone(), identity.ca().clone()];
    provider()
        .key_provider
        .load_private_key(identity.key().private_key())
        .map(|key| Arc::new(CertifiedKey::new(chain, key).into()))
        .map_err(TlsError::Unusable)
}

// === both ends ===

/// Makes and takes the connections of one node. Cheap to clone; every clone changes with the others.
#[derive(Clone, Debug)]
pub struct PeerTls {
    current: Arc<RwLock<Current>>,
    complaints: Arc<Complaints>,
}

impl PeerTls {
    pub fn new(identity: NodeIdentity) -> Result<Self, TlsError> {
        Self::with(identity, Beside::default())
    }

    pub(crate) fn with(identity: NodeIdentity, beside: Beside) -> Result<Self, TlsError> {
        Ok(Self {
            current: Arc::new(RwLock::new(Current::new(Arc::new(identity), beside)?)),
            complaints: Arc::default(),
        })
    }

    fn current(&self) -> Current {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn identity(&self) -> Arc<NodeIdentity> {
        self.current().identity
    }

    pub fn name(&self) -> PeerName {
        self.identity().name()
    }

    pub(crate) fn beside(&self) -> Beside {
        self.current().beside
    }

    /// Goes on with a renewed certificate of the same node.
    pub fn replace(&self, identity: NodeIdentity) -> Result<(), TlsError> {
        let held = self.current();
        let found = identity.ca_fingerprint();
        let trusted = held.beside.trusted.iter().map(|ca| CaFingerprint::of(ca));
        let own = held.identity.ca_fingerprint();
        if found != own && !trusted.into_iter().any(|trusted| trusted == found) {
            return Err(TlsError::OtherAuthority { held: own, found });
        }
        self.change(Arc::new(identity), held.beside)
    }

    /// Goes on with other authorities.
    pub(crate) fn change(
        &self,
        identity: Arc<NodeIdentity>,
        beside: Beside,
    ) -> Result<(), TlsError> {
        let held = self.name();
        if identity.name() != held {
            return Err(TlsError::OtherNode {
                held,
                found: identity.name(),
            });
        }
        let current = Current::new(identity, beside)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(())
    }

    /// The connections of a listener, for `serve_with_incoming`. Never ends and yields no errors:
    /// whoever fails the handshake does not get in, and does not hold up the others.
    pub fn incoming(
        &self,
        listener: TcpListener,
    ) -> impl Stream<Item = io::Result<PeerStream>> + Send + 'static {
        let incoming = Incoming {
            listener,
            tls: self.clone(),
            visitors: Arc::new(Semaphore::new(MAX_VISITORS)),
            handshakes: FuturesUnordered::new(),
        };
        stream::unfold(incoming, |mut incoming| async move {
            let stream = incoming.next().await;
            Some((Ok(stream), incoming))
        })
    }

    /// Calls to one node, connected when first needed and again when lost. Nobody else can answer
    /// them, whatever listens at the address.
    pub fn channel(
        &self,
        node: NodeId,
        addr: &str,
        settings: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Channel {
        let name = PeerName {
            node,
            ..self.name()
        };
        let addr: Arc<str> = addr.into();
        let tls = self.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let (tls, addr) = (tls.clone(), Arc::clone(&addr));
            async move {
                let connected = connect(tls.current().dialing, &addr, name).await;
                connected
                    .inspect_err(|error| tls.complaints.hear(&addr, error))
                    .map(TokioIo::new)
            }
        });
        settings(endpoint(name)).connect_with_connector_lazy(connector)
    }
}

/// A connection that somebody made to this node by TLS.
pub type TlsStream<S> = server::TlsStream<S>;

/// Who a certificate of the cluster's authority speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    None,
    Client(ClientName),
    Node(PeerName),
    /// Of the authority, but for nobody this version knows.
    Other,
}

impl PeerTls {
    /// Takes a connection of somebody who may be a client. A certificate that is shown has been
    /// checked, but for whether its holder is still welcome.
    pub async fn accept<S>(&self, socket: S) -> io::Result<(TlsStream<S>, Certificate)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = TlsAcceptor::from(self.current().clients);
        let tls = acceptor.accept(socket).await?;
        let certificates = tls.get_ref().1.peer_certificates();
        let certificate = match certificates.and_then(|chain| chain.first()) {
            None => Certificate::None,
            Some(certificate) => match ClientName::of_certificate(certificate) {
                Some(client) => Certificate::Client(client),
                None => PeerName::of_certificate(certificate)
                    .map_or(Certificate::Other, Certificate::Node),
            },
        };
        Ok((tls, certificate))
    }
}

/// TLS is the connector's matter, so to gRPC the connection is a plain one. The address is too:
/// only the name appears in requests.
pub(super) fn endpoint(name: PeerName) -> Endpoint {
    let uri = format!("http://{name}");
    Endpoint::from(Uri::try_from(uri).expect("hyphens, digits and dots make an authority"))
}

fn server_config(
    roots: &Arc<RootCertStore>,
    certified: &Arc<SingleCertAndKey>,
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Authority(error.into()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Unusable)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::clone(certified) as _);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(
    roots: Arc<RootCertStore>,
    certified: &Arc<SingleCertAndKey>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Unusable)?
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::clone(certified) as _);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

// === dialing ===

/// Connects to an address; who answers there must prove to be `name`, or whatever else `config`
/// asks for.
pub(super) async fn connect(
    config: Arc<ClientConfig>,
    addr: &str,
    name: PeerName,
) -> io::Result<client::TlsStream<TcpStream>> {
    let connecting = async {
        let tcp = TcpStream::connect(addr).await?;
        tcp.set_nodelay(true)?;
        TlsConnector::from(config)
            .connect(name.server_name(), tcp)
            .await
    };
    timeout(HANDSHAKE_TIMEOUT, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

// === accepting ===

struct Incoming {
    listener: TcpListener,
    tls: PeerTls,
    visitors: Arc<Semaphore>,
    handshakes: FuturesUnordered<BoxFuture<'static, Option<PeerStream>>>,
}

impl Incoming {
    async fn next(&mut self) -> PeerStream {
        loop {
            tokio::select! {
                // Cancel safe: an unfinished accept has taken nothing off the queue.
                accepted = self.listener.accept(), if self.handshakes.len() < MAX_HANDSHAKES => {
                    match accepted {
                        Ok((tcp, remote)) => {
                            let visitors = Arc::clone(&self.visitors);
                            let complaints = Arc::clone(&self.tls.complaints);
                            let acceptor = TlsAcceptor::from(self.tls.current().nodes);
                            let handshake =
                                handshake(acceptor, visitors, complaints, tcp, remote);
                            self.handshakes.push(Box::pin(handshake));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "cannot accept connections of other nodes");
                            sleep(ACCEPT_PAUSE).await;
                        }
                    }
                }
                // Cancel safe: the handshakes stay in the set.
                Some(finished) = self.handshakes.next() => {
                    if let Some(stream) = finished {
                        return stream;
                    }
                }
            }
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    visitors: Arc<Semaphore>,
    complaints: Arc<Complaints>,
    tcp: TcpStream,
    remote: SocketAddr,
) -> Option<PeerStream> {
    let handshake = async {
        tcp.set_nodelay(true)?;
        acceptor.accept(tcp).await
    };
    match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(tls)) => {
            let stream = PeerStream::new(tls, remote, visitors);
            if stream.is_none() {
                tracing::debug!(%remote, "too many connections without a certificate");
            }
            stream
        }
        Ok(Err(error)) => {
            // Its port is another one each time.
            complaints.hear(&remote.ip().to_string(), &error);
            None
        }
        Err(_) => {
            tracing::debug!(%remote, "a connection did not finish its handshake in time");
            None
        }
    }
}

/// Who is at the other end of a connection, as its handshake proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerConnection {
    pub remote: SocketAddr,
    /// None without a certificate, or with one that names no node.
    pub peer: Option<PeerName>,
}

/// An accepted connection. Its [`PeerConnection`] is among the extensions of every request on it.
pub struct PeerStream {
    tls: server::TlsStream<TcpStream>,
    connection: PeerConnection,
    visit: Option<Visit>,
}

/// The stay of somebody who has not shown to be a node.
struct Visit {
    ends: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl PeerStream {
    /// None if there are too many visitors already.
    fn new(
        tls: server::TlsStream<TcpStream>,
        remote: SocketAddr,
        visitors: Arc<Semaphore>,
    ) -> Option<Self> {
        // The handshake has checked who issued the certificate, and its dates.
        let certificates = tls.get_ref().1.peer_certificates();
        let peer = certificates
            .and_then(|chain| chain.first())
            .and_then(|certificate| PeerName::of_certificate(certificate).ok());
        let visit = match peer {
            Some(_) => None,
            None => Some(Visit {
                ends: Box::pin(sleep(VISIT)),
                _permit: visitors.try_acquire_owned().ok()?,
            }),
        };
        Some(Self {
            tls,
            connection: PeerConnection { remote, peer },
            visit,
        })
    }
}

impl fmt::Debug for PeerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerStream").field(&self.connection).finish()
    }
}

impl Connected for PeerStream {
    type ConnectInfo = PeerConnection;

    fn connect_info(&self) -> PeerConnection {
        self.connection
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(visit) = &mut self.visit
            && visit.ends.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// Lets a call pass only if its connection belongs to the node it claims to come from.
pub fn verify_peer<T>(request: &Request<T>, claimed: PeerName) -> Result<(), Status> {
    let connection = request.extensions().get::<PeerConnection>();
    match connection.and_then(|connection| connection.peer) {
        Some(peer) if peer == claimed => Ok(()),
        Some(peer) => Err(Status::permission_denied(format!(
            "the call claims to come from {claimed}, its certificate is {peer}'s"
        ))),
        None => Err(Status::unauthenticated(
            "calls between nodes need a certificate of the cluster",
        )),
    }
}

#[cfg(test)]
mod tests;
