//! Runs the built daemon on this host, with the in-memory data plane.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::types::{ForwardMethod, Protocol};
use merlin_proto::types::{RealServer, VirtualService, real_server, virtual_service};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tonic::transport::Channel;

/// Generous: the machine may be busy. Nothing waits for as long when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A place for a daemon's files, and its addresses.
pub(crate) struct Home {
    dir: TempDir,
    pub(crate) api: SocketAddr,
    pub(crate) http: SocketAddr,
    peers: SocketAddr,
}

/// A running daemon; killed when dropped, by its pid.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) log: PathBuf,
}

impl Home {
    pub(crate) fn new() -> Self {
        // Bound together, so that they differ; free again a moment later.
        let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [api, http, peers] = sockets.map(|socket| socket.local_addr().unwrap());
        let dir = TempDir::new().unwrap();
        Self {
            dir,
            api,
            http,
            peers,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/merlin.sock")
    }

    /// The daemon's command line, without what a test adds.
    pub(crate) fn command(&self) -> Command {
        self.with_addresses_of(self)
    }

    /// A daemon with this home's files that listens where another one would.
    pub(crate) fn with_addresses_of(&self, other: &Self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_merlin"));
        command
            .env_clear()
            .arg("--data-dir")
            .arg(self.data())
            .arg("--run-dir")
            .arg(self.path("run"))
            .args(["--dataplane", "memory", "--node-name", "node"])
            .args(["--api-addr", &other.api.to_string()])
            .args(["--health-addr", &other.http.to_string()])
            .args(["--peer-addr", &other.peers.to_string()])
            .stdin(Stdio::null());
        command
    }

    /// Starts a daemon and waits until it is ready.
    pub(crate) fn start(&self, args: &[&str]) -> Daemon {
        let log = self.path("log");
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = self
            .command()
            .args(args)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut daemon = Daemon { child, log };
        eventually("the daemon is ready", || {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("it ended: {status}\n{}", daemon.log());
            }
            self.get("/ready").starts_with("HTTP/1.1 200")
        });
        daemon
    }

    /// Runs a daemon that is expected to end by itself.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap()
    }

    /// The whole response to a GET, empty when there is none.
    pub(crate) fn get(&self, path: &str) -> String {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(self.http)?;
            stream.set_read_timeout(Some(SOON))?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )?;
            let mut response = String::new();
            stream.read_to_string(&mut response)?;
            Ok(response)
        };
        ask().unwrap_or_default()
    }

    pub(crate) async fn client(&self) -> MerlinClient<Channel> {
        MerlinClient::connect(format!("http://{}", self.api))
            .await
            .unwrap()
    }
}

impl Daemon {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// How it ended, and how long that took.
    pub(crate) fn ended(&mut self) -> (ExitStatus, Duration) {
        let since = Instant::now();
        let mut ended = None;
        eventually("the daemon ends", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        (ended.unwrap(), since.elapsed())
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Memory it holds, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "--- log\n{}", self.log());
        }
    }
}

/// Polls until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn service(id: &str, port: u16) -> VirtualService {
    VirtualService {
        id: id.into(),
        key: Some(virtual_service::Key {
            ip: "10.0.0.1".into(),
            port: port.into(),
            protocol: Protocol::Tcp.into(),
            ..Default::default()
        }),
        config: Some(virtual_service::Config {
            scheduler: "wrr".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn server(service: &str, ip: &str, port: u16) -> RealServer {
    RealServer {
        service_id: service.into(),
        key: Some(real_server::Key {
            ip: ip.into(),
            port: port.into(),
        }),
        config: Some(real_server::Config {
            weight: Some(7),
            forward: ForwardMethod::Masq.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
