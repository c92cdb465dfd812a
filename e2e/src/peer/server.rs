//! A real server that answers everything with its name.
//!
//! On one port:
//! * TCP: every line is answered by a line with the name, until the client closes.
//! * HTTP on the same port, when a line is a `GET`: `/health` answers 200, or 503 while the sick
//!   file exists; every other path answers 200 with the name.
//! * UDP: every datagram is answered by one with the name.
//!
//! One thread, because a system call in a guest costs fifteen microseconds and a context switch
//! several times that.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{LocalSet, spawn_local};

/// What a server is called and where it listens.
#[derive(Debug, Clone)]
pub struct Server {
    pub name: String,
    pub port: u16,
    /// While this file exists, `/health` answers 503.
    pub sick_file: Option<PathBuf>,
}

impl Server {
    /// Serves until the process ends; `ready` is called once every socket is bound.
    pub fn run(self, ready: impl FnOnce()) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        LocalSet::new().block_on(&runtime, self.serve(ready))
    }

    async fn serve(self, ready: impl FnOnce()) -> Result<()> {
        let server = Rc::new(self);
        // A datagram's answer must come from the address it was sent to, which under direct
        // routing is not the one the kernel would choose: hence one socket per address.
        for address in local_addresses()? {
            let address = SocketAddr::new(address, server.port);
            let socket = UdpSocket::bind(address)
                .await
                .with_context(|| format!("binding UDP {address}"))?;
            spawn_local(Rc::clone(&server).answer_datagrams(socket));
        }
        // The IPv6 wildcard takes IPv4 too; without IPv6 in the kernel the IPv4 one must do.
        let any6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, server.port));
        let any4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, server.port));
        let listener = match TcpListener::bind(any6).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind(any4)
                .await
                .with_context(|| format!("binding TCP port {}", server.port))?,
        };
        ready();
        loop {
            // An error here is a connection that ended before it was accepted.
            if let Ok((stream, _)) = listener.accept().await {
                spawn_local(Rc::clone(&server).answer_connection(stream));
            }
        }
    }

    async fn answer_datagrams(self: Rc<Self>, socket: UdpSocket) {
        let mut datagram = [0; 2048];
        loop {
            // Errors are late ICMP messages about clients that have gone.
            if let Ok((_, from)) = socket.recv_from(&mut datagram).await {
                let _ = socket.send_to(self.name.as_bytes(), from).await;
            }
        }
    }

    async fn answer_connection(self: Rc<Self>, stream: TcpStream) {
        // A broken connection is the client's to notice and to count.
        let _ = self.converse(stream).await;
    }

    async fn converse(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let Some(path) = line
                .strip_prefix("GET ")
                .and_then(|rest| rest.split(' ').next())
            else {
                stream
                    .write_all(format!("{}\n", self.name).as_bytes())
                    .await?;
                continue;
            };
            let response = self.http_response(path);
            let mut keep_alive = line.contains("HTTP/1.1");
            loop {
                line.clear();
                if stream.read_line(&mut line).await? == 0 || line.trim_end().is_empty() {
                    break;
                }
                keep_alive &= !line.trim_end().eq_ignore_ascii_case("connection: close");
            }
            stream.write_all(response.as_bytes()).await?;
            if !keep_alive {
                return stream.shutdown().await;
            }
        }
    }

    fn http_response(&self, path: &str) -> String {
        let sick = self.sick_file.as_deref().is_some_and(Path::exists);
        let (status, body) = match path {
            "/health" if sick => ("503 Service Unavailable", "sick"),
            "/health" => ("200 OK", "healthy"),
            _ => ("200 OK", self.name.as_str()),
        };
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

/// Every address of this network namespace that can be bound as it is.
fn local_addresses() -> Result<Vec<IpAddr>> {
    let addresses = getifaddrs()
        .context("listing this host's addresses")?
        .filter_map(|interface| interface.address.and_then(ip_address))
        // A link-local address means nothing without its interface.
        .filter(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()));
    Ok(addresses.collect())
}

fn ip_address(address: SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}
