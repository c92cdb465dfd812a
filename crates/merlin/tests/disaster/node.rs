//! Built daemons on loopback addresses of their own, told everything by environment, so that the
//! commands are those an operator types.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::v1::cluster_client::ClusterClient;
use merlin_proto::v1::node_client::NodeClient;
use merlin_proto::v1::{LiveRequest, LiveService};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status};

use crate::support::{SOON, eventually, server, service};

/// Hosts with nothing on them yet.
pub(crate) struct Hosts {
    pub(crate) root: TempDir,
}

/// One host: a node's files and addresses, and its daemon when it runs.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) ip: Ipv4Addr,
    dir: PathBuf,
    daemon: Option<Child>,
    /// Where the daemon is to run, if it is to see another file system than everybody else.
    pub(crate) place: Option<Place>,
    /// More environment for the daemon and the commands.
    pub(crate) env: Vec<(String, String)>,
}

/// Starts a program somewhere.
pub(crate) type Place = Box<dyn Fn(&str) -> Command + Send + Sync>;

impl Hosts {
    pub(crate) fn new() -> Self {
        Self {
            root: TempDir::new().unwrap(),
        }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn host(&self, name: &str) -> Node {
        let dir = self.root.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        Node {
            name: name.to_owned(),
            ip: new_address(),
            dir,
            daemon: None,
            place: None,
            env: Vec::new(),
        }
    }

    /// Running nodes of one cluster, all voters.
    pub(crate) fn cluster<const N: usize>(&self, names: [&str; N]) -> [Node; N] {
        self.cluster_with(names, &[])
    }

    /// The same with more environment for each of them.
    pub(crate) fn cluster_with<const N: usize>(
        &self,
        names: [&str; N],
        env: &[(&str, &str)],
    ) -> [Node; N] {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut nodes = names.map(|name| {
            let mut node = self.host(name);
            node.env = env.iter().map(owned).collect();
            node
        });
        let (first, others) = nodes.split_first_mut().unwrap();
        first.start();
        for (joined, node) in others.iter_mut().enumerate() {
            node.join(first);
            node.start();
            first.awaits_voters(joined + 2);
        }
        nodes
    }
}

/// An address of this host that no other test has.
pub(crate) fn new_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(64);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, NEXT.fetch_add(1, Ordering::Relaxed), high, low)
}

impl Node {
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(crate) fn peer_addr(&self) -> SocketAddr {
        (self.ip, 4284).into()
    }

    /// A command of the built binary, as typed on this host.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_merlin"));
        self.environment(&mut command);
        command
    }

    pub(crate) fn environment(&self, command: &mut Command) {
        let addr = |port| SocketAddr::from((self.ip, port)).to_string();
        command
            .env_clear()
            .env("MERLIN_DATA_DIR", self.data())
            .env("MERLIN_RUN_DIR", self.dir.join("run"))
            .env("MERLIN_NODE_NAME", &self.name)
            .env("MERLIN_DATAPLANE", "memory")
            .env("MERLIN_PROMOTE_AFTER", "100ms")
            .env("MERLIN_API_ADDR", addr(4282))
            .env("MERLIN_HEALTH_ADDR", addr(4283))
            .env("MERLIN_PEER_ADDR", addr(4284))
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
    }

    /// Runs `merlin cluster ...` here.
    pub(crate) fn cluster(&self, args: &[&str]) -> Output {
        self.command().arg("cluster").args(args).output().unwrap()
    }

    /// Runs `merlin cluster ...`, which must succeed, and gives what it prints. It is run again
    /// while it says that the cluster cannot answer: a busy machine may lose its leader.
    pub(crate) fn succeeds(&self, args: &[&str]) -> String {
        const UNAVAILABLE: Option<i32> = Some(3);
        let deadline = Instant::now() + SOON;
        let output = loop {
            let output = self.cluster(args);
            if output.status.code() != UNAVAILABLE || Instant::now() > deadline {
                break output;
            }
        };
        let (said, error) = spoken(&output);
        assert!(output.status.success(), "{args:?}: {said}{error}");
        said
    }

    /// Runs `merlin cluster ...`, which must be refused, and gives its words.
    pub(crate) fn refuses(&self, args: &[&str]) -> String {
        let output = self.cluster(args);
        let (said, error) = spoken(&output);
        assert!(!output.status.success(), "{args:?} was not refused: {said}");
        error
    }

    pub(crate) fn join(&self, member: &Self) {
        let line = member.succeeds(&["token", "create", "--name", &self.name]);
        let token = line.split_whitespace().last().unwrap();
        self.succeeds(&["join", token]);
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) fn start(&mut self) {
        self.spawn();
        eventually(&format!("{} is ready", self.name), || {
            if let Some(status) = self.daemon.as_mut().unwrap().try_wait().unwrap() {
                panic!("{} ended: {status}\n{}", self.name, self.log());
            }
            self.get("/ready").starts_with("HTTP/1.1 200")
        });
    }

    /// Starts the daemon as systemd does, which goes on when the daemon says that it is ready: the
    /// kernel's table is right then, quorum or not.
    pub(crate) fn start_as_a_service(&mut self) {
        let path = self.dir.join("notify");
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let path = path.to_str().unwrap().to_owned();
        self.env.push(("NOTIFY_SOCKET".to_owned(), path));
        self.spawn();
        self.env.pop();
        let mut said = [0; 4096];
        loop {
            let length = socket.recv(&mut said).unwrap();
            let said = String::from_utf8_lossy(&said[..length]);
            if said.lines().any(|line| line == "READY=1") {
                return;
            }
        }
    }

    /// Starts the daemon of a node that has no quorum, and waits until it answers.
    pub(crate) fn start_without_quorum(&mut self) {
        self.spawn();
        eventually(&format!("{} answers", self.name), || {
            !self.status().is_null()
        });
    }

    /// Starts the daemon, which may not become ready.
    pub(crate) fn spawn(&mut self) {
        assert!(self.daemon.is_none(), "{} runs already", self.name);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let child = self.daemon().stdout(Stdio::null()).stderr(log).spawn();
        self.daemon = Some(child.unwrap());
    }

    fn daemon(&self) -> Command {
        match &self.place {
            None => self.command(),
            Some(enter) => {
                let mut command = enter(env!("CARGO_BIN_EXE_merlin"));
                self.environment(&mut command);
                command
            }
        }
    }

    /// Whether the daemon has ended by itself, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let ended = self.daemon.as_mut()?.try_wait().unwrap();
        if ended.is_some() {
            self.daemon = None;
        }
        ended
    }

    /// Runs the daemon, which is expected to end by itself, and gives its words.
    pub(crate) fn fails_to_start(&self) -> String {
        let output = self.daemon().output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        spoken(&output).1
    }

    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        self.daemon.take().unwrap().wait().unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.daemon.take().unwrap().wait().unwrap();
    }

    /// Sends the daemon a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.daemon.as_ref().unwrap().id();
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    /// The host is lost with everything on it.
    pub(crate) fn lose(&mut self) {
        if self.daemon.is_some() {
            self.kill();
        }
        std::fs::remove_dir_all(&self.dir).unwrap();
        std::fs::create_dir(&self.dir).unwrap();
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((self.ip, 4283))?;
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

    /// The cluster as this node sees it; null when it cannot be asked.
    pub(crate) fn status(&self) -> Value {
        let output = self.cluster(&["status", "-o", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    pub(crate) fn voters(&self) -> usize {
        let status = self.status();
        let members = status["members"].as_array().cloned().unwrap_or_default();
        let votes = |member: &&Value| member["voter"] == Value::Bool(true);
        members.iter().filter(votes).count()
    }

    pub(crate) fn awaits_voters(&self, count: usize) {
        eventually(&format!("{} sees {count} voters", self.name), || {
            self.voters() == count && self.takes_writes()
        });
    }

    pub(crate) fn takes_writes(&self) -> bool {
        self.status()["unavailable"] == Value::String(String::new())
    }

    fn url(&self) -> String {
        format!("http://{}:4282", self.ip)
    }

    pub(crate) async fn client(&self) -> MerlinClient<Channel> {
        MerlinClient::connect(self.url()).await.unwrap()
    }

    /// As root of this host.
    pub(crate) async fn cluster_client(&self) -> ClusterClient<Channel> {
        let path = self.dir.join("run/merlin.sock");
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        ClusterClient::new(endpoint.connect_with_connector(connector).await.unwrap())
    }

    pub(crate) async fn node_client(&self) -> NodeClient<Channel> {
        NodeClient::connect(self.url()).await.unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            let _ = writeln!(
                std::io::stderr(),
                "--- log of {}\n{}",
                self.name,
                self.log()
            );
        }
    }
}

/// What this node has in its table once all of so many services are there with their servers.
pub(crate) async fn programmed_all(node: &Node, services: usize) -> Table {
    let deadline = Instant::now() + SOON;
    loop {
        let table = programmed(node).await;
        if table.len() == services && table.iter().all(|(_, servers)| !servers.is_empty()) {
            return table;
        }
        assert!(Instant::now() < deadline, "not programmed: {table:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Services, and their servers with weights.
pub(crate) type Table = Vec<(String, Vec<(String, u32)>)>;

/// What this node has in its table: every service with the weights of its servers.
async fn programmed(node: &Node) -> Table {
    let request = LiveRequest {
        local: true,
        ..Default::default()
    };
    let live = node.node_client().await.live(request).await;
    let table = live.unwrap().into_inner().nodes.remove(0);
    assert_eq!(table.error, "");
    let service = |service: LiveService| {
        let servers = service.servers.into_iter();
        let servers = servers.map(|server| (server.key.unwrap().ip, server.weight));
        (service.service_id, servers.collect())
    };
    let mut services: Vec<_> = table.services.into_iter().map(service).collect();
    services.sort();
    services
}

/// Waits until this is in the node's table.
pub(crate) async fn eventually_programmed(node: &Node, table: &[(String, Vec<(String, u32)>)]) {
    let deadline = Instant::now() + SOON;
    while programmed(node).await != table {
        assert!(Instant::now() < deadline, "not programmed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asks until there is an answer: on a busy machine a leader may be lost at any time.
pub(crate) async fn insist<T>(ask: impl AsyncFn() -> Result<Response<T>, Status>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        match ask().await {
            Ok(answer) => return answer.into_inner(),
            Err(status) => assert!(Instant::now() < deadline, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The catalog this node gives: its revision, and the ids of the services.
pub(crate) async fn catalog(node: &Node) -> (u64, Vec<String>) {
    let listed = insist(async || node.client().await.list(()).await).await;
    let ids = listed
        .items
        .into_iter()
        .map(|item| item.service.unwrap().id);
    let mut ids: Vec<_> = ids.collect();
    ids.sort();
    (listed.revision, ids)
}

/// Declares a service with one real server.
pub(crate) async fn declare(node: &Node, id: &str, port: u16) {
    let server = server(id, &format!("10.1.0.{port}"), 8080);
    // What was done although nobody heard so is there already.
    let done = |answer: Result<Response<()>, Status>| match answer {
        Err(status) if status.code() == Code::AlreadyExists => Ok(Response::new(())),
        answer => answer,
    };
    insist(async || done(node.client().await.create_service(service(id, port)).await)).await;
    insist(async || done(node.client().await.create_server(server.clone()).await)).await;
}

pub(crate) fn spoken(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}
