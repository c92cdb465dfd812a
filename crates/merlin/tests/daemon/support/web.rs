//! The client side of HTTP and of unix sockets, and a web server to be probed.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::AbortHandle;
use tonic::transport::{Channel, Endpoint, Error};
use tower::service_fn;

use super::AMPLE;

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Asks for a page on a connection of its own.
pub(crate) async fn get(server: SocketAddr, path: &str) -> io::Result<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = tokio::time::timeout(AMPLE, exchange).await??;
    parse(&answer).ok_or_else(|| io::Error::other(format!("not an answer: {answer:?}")))
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// Connects a gRPC client to a unix socket.
pub(crate) async fn connect_unix(path: &Path) -> Result<Channel, Error> {
    let path = path.to_owned();
    let connect = service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address only fills the request's authority.
    let endpoint = Endpoint::from_static("http://localhost").timeout(AMPLE);
    endpoint.connect_with_connector(connect).await
}

/// A real server with a health page whose status can be set.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) addr: SocketAddr,
    status: Arc<AtomicU16>,
    task: AbortHandle,
}

impl Backend {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let status = Arc::new(AtomicU16::new(200));
        let serving = serve(listener, Arc::clone(&status));
        let task = tokio::spawn(serving).abort_handle();
        Self { addr, status, task }
    }

    pub(crate) fn answer_with(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, status: Arc<AtomicU16>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let status = status.load(Ordering::Relaxed);
        tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await?);
            }
            let answer = format!("HTTP/1.1 {status} As told\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await
        });
    }
}
