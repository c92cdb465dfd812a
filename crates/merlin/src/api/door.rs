//! Where connections come in, and what each stands for.
//!
//! ```text
//! unix socket ─▶ the peer's user, from the kernel ─▶ Local
//! TCP ─▶ first byte ─┬▶ a TLS record ─▶ handshake ─▶ Tls(certificate)
//!                    └▶ anything else ─▶ Plaintext, or Stranger where plaintext is not taken
//! ```
//! One port serves both kinds: whoever sits on the host itself goes on speaking plaintext to its
//! loopback address when the port is opened to others by TLS. A stranger's requests are parsed only
//! to be refused in words, which tells more than a connection that closes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use merlin_raft::identity::{Certificate, PeerTls, TlsStream};
use nix::unistd::{Uid, User};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use crate::listen::{Held, PATIENCE};

/// Connections on their way in; further ones wait in the kernel's backlog.
const MAX_ARRIVING: usize = 256;
/// First byte of a TLS connection: a record of a handshake (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// What the requests of one connection stand for.
#[derive(Clone, Debug)]
pub(crate) enum Connection {
    /// A user of this host, by the unix socket.
    Local {
        uid: u32,
        user: Arc<str>,
    },
    /// Somebody who may speak plaintext.
    Plaintext(SocketAddr),
    /// Somebody who may not, and does; whether there is TLS to speak instead.
    Stranger {
        tls: bool,
    },
    Tls(Certificate),
}

/// How the TCP port takes connections.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// None where the store has no certificates.
    pub(crate) tls: Option<PeerTls>,
    /// Whether other hosts may speak plaintext.
    pub(crate) insecure: bool,
}

/// A connection with what it stands for. Its [`Connection`] is among the extensions of every
/// request on it.
#[derive(Debug)]
pub(crate) struct Guest<S> {
    socket: S,
    connection: Connection,
}

/// Finds out about connections of the unix socket.
pub(crate) fn local(
    connections: impl Stream<Item = io::Result<Held<UnixStream>>>,
) -> impl Stream<Item = io::Result<Guest<Held<UnixStream>>>> {
    connections
        .map(async |accepted| {
            let socket = accepted?;
            let uid = socket.get_ref().peer_cred()?.uid();
            // The user data base may be far away, and slow.
            let user = tokio::task::spawn_blocking(move || user_name(uid)).await;
            let user = user.unwrap_or_default().into();
            Ok(Guest {
                socket,
                connection: Connection::Local { uid, user },
            })
        })
        .buffer_unordered(MAX_ARRIVING)
        .filter_map(arrived)
}

fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map(|user| user.name).unwrap_or_default()
}

/// A TCP connection, without TLS or with it.
type Tcp = Either<Held<TcpStream>, TlsStream<Held<TcpStream>>>;

/// Finds out about connections of the TCP port.
pub(crate) fn remote(
    connections: impl Stream<Item = io::Result<Held<TcpStream>>>,
    rules: Rules,
) -> impl Stream<Item = io::Result<Guest<Tcp>>> {
    connections
        .map(move |accepted| {
            let rules = rules.clone();
            async move {
                // From connecting to the end of the handshake.
                let arriving = tokio::time::timeout(PATIENCE, rules.admit(accepted?));
                arriving.await.map_err(|_| io::ErrorKind::TimedOut)?
            }
        })
        .buffer_unordered(MAX_ARRIVING)
        .filter_map(arrived)
}

/// Whoever does not get in does not keep others from it.
async fn arrived<G>(guest: io::Result<G>) -> Option<io::Result<G>> {
    match guest {
        Ok(guest) => Some(Ok(guest)),
        Err(error) => {
            tracing::debug!(%error, "a connection to the API did not get in");
            None
        }
    }
}

impl Rules {
    async fn admit(&self, socket: Held<TcpStream>) -> io::Result<Guest<Tcp>> {
        let mut first = [0];
        let stream = socket.get_ref();
        if stream.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (remote, local) = (stream.peer_addr()?, stream.local_addr()?);
        if let ([TLS_HANDSHAKE], Some(tls)) = (first, &self.tls) {
            let accepted = tls.accept(socket).await;
            let (stream, certificate) = accepted
                .map_err(|error| io::Error::new(error.kind(), format!("{remote}: {error}")))?;
            return Ok(Guest {
                socket: Either::Right(stream),
                connection: Connection::Tls(certificate),
            });
        }
        let on_this_host = remote.ip().is_loopback() && local.ip().is_loopback();
        Ok(Guest {
            socket: Either::Left(socket),
            connection: match self.insecure || on_this_host {
                true => Connection::Plaintext(remote),
                false => Connection::Stranger {
                    tls: self.tls.is_some(),
                },
            },
        })
    }
}

impl<S> Connected for Guest<S> {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guest<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guest<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
