//! The sockets the daemon listens on, with bounds on how many connections each may hold and on how
//! long one of them may do nothing useful.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::Context as _;
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tonic::transport::server::Connected;

/// Connections one listener holds at a time. Idle clients are cheap, but not free: this bounds the
/// memory and descriptors that strangers can take. Further ones wait in the kernel's backlog.
pub(crate) const MAX_CONNECTIONS: usize = 1024;

/// What every client has to say before it is a client: the preface of HTTP/2 is as long, and no
/// request of HTTP/1 is shorter.
const OPENING: usize = 24;
/// Within this time a new client has said that much, and any client has taken some of what it is
/// sent. Whoever is slower gives way to others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Binds a TCP port, naming the flag it came from when that fails.
pub(crate) async fn tcp(flag: &str, addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr)
        .await
        .with_context(|| format!("{flag}: listening on {addr}"))
}

/// The local administrator's socket; its file is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Binds `merlin.sock` in `run_dir` for root and the group `merlin` alone.
    ///
    /// It is bound under another name and moved into place once its permissions are right, so
    /// nobody else can connect in between, and a socket left by a crash is replaced.
    pub(crate) fn bind(run_dir: &Path) -> anyhow::Result<Self> {
        let path = run_dir.join("merlin.sock");
        // What a crash left refuses connections.
        anyhow::ensure!(
            std::os::unix::net::UnixStream::connect(&path).is_err(),
            "--run-dir: another merlin serves {}: stop it, or give this one another --run-dir",
            path.display()
        );
        let bind = || -> io::Result<UnixListener> {
            if !run_dir.exists() {
                std::fs::create_dir_all(run_dir)?;
                // The socket says who may connect; they have to get there.
                std::fs::set_permissions(run_dir, std::fs::Permissions::from_mode(0o755))?;
            }
            let staged = run_dir.join(format!(".merlin.sock.{}", std::process::id()));
            match std::fs::remove_file(&staged) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&staged)?;
            std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o600))?;
            if let Ok(Some(group)) = nix::unistd::Group::from_name("merlin") {
                nix::unistd::chown(&staged, None, Some(group.gid))?;
                std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o660))?;
            }
            std::fs::rename(&staged, &path)?;
            Ok(listener)
        };
        let listener =
            bind().with_context(|| format!("--run-dir: listening on {}", path.display()))?;
        Ok(Self { listener, path })
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // A leftover is harmless: the next start replaces it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A listener's socket type.
pub(crate) trait Accept: Send + 'static {
    type Socket: Send;
    fn accept(&self) -> impl Future<Output = io::Result<Self::Socket>> + Send;
}

impl Accept for TcpListener {
    type Socket = TcpStream;
    async fn accept(&self) -> io::Result<TcpStream> {
        let (socket, _) = Self::accept(self).await?;
        // Small answers should not wait for more of them.
        socket.set_nodelay(true)?;
        Ok(socket)
    }
}

impl Accept for AdminSocket {
    type Socket = UnixStream;
    async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(socket, _)| socket)
    }
}

/// Accepts connections for ever, at most [`MAX_CONNECTIONS`] at a time.
pub(crate) fn connections<L: Accept + Sync>(
    listener: L,
) -> impl Stream<Item = io::Result<Held<L::Socket>>> {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    futures::stream::unfold((listener, permits), async |(listener, permits)| {
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return None;
            };
            match listener.accept().await {
                Ok(socket) => {
                    return Some((Ok(Held::new(socket, permit)), (listener, permits)));
                }
                Err(error) => {
                    // Out of descriptors, or a client that gave up: neither ends the listener.
                    tracing::debug!(%error, "accepting a connection failed");
                    drop(permit);
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    })
}

/// A connection that counts against its listener's bound until it is dropped.
#[derive(Debug)]
pub(crate) struct Held<S> {
    socket: S,
    /// Bytes of the opening that are still to come.
    opening: usize,
    /// Runs from the beginning until the opening is there, and later whenever the client does not
    /// take what it is sent.
    patience: Pin<Box<Sleep>>,
    /// Whether the client is not taking what it is sent.
    blocked: bool,
    _permit: OwnedSemaphorePermit,
}

impl<S> Held<S> {
    pub(crate) fn get_ref(&self) -> &S {
        &self.socket
    }

    fn new(socket: S, permit: OwnedSemaphorePermit) -> Self {
        Self {
            socket,
            opening: OPENING,
            patience: Box::pin(sleep(PATIENCE)),
            blocked: false,
            _permit: permit,
        }
    }

    /// What becomes of a write that would block: it is waited for, but not for ever.
    fn bounded<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.blocked = false;
            return written;
        }
        if !self.blocked {
            self.blocked = true;
            self.patience.as_mut().reset(Instant::now() + PATIENCE);
        }
        self.expired(cx)
    }

    fn expired<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.patience.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: Connected> Connected for Held<S> {
    type ConnectInfo = S::ConnectInfo;
    fn connect_info(&self) -> Self::ConnectInfo {
        self.socket.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buf);
        self.opening = self.opening.saturating_sub(buf.filled().len() - before);
        // A byte now and then does not buy more time.
        if self.opening > 0 && !self.blocked && (read.is_pending() || self.patience.is_elapsed()) {
            return self.expired(cx);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.bounded(cx, written)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.bounded(cx, written)
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
