//! A daemon under test, where it lives, and its clients.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::v1::node_client::NodeClient;
use merlin_proto::v1::{LiveRequest, NodeTable};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use super::mounts::Mounts;
use super::port::Port;
use super::process::{PROGRAM, Process, merlin, run};
use super::web::{self, Answer};
use super::{AMPLE, eventually};

/// Where a daemon lives: its ports and directories stay while daemons come and go.
#[derive(Debug)]
pub(crate) struct Setup {
    home: TempDir,
    name: String,
    election_timeout: &'static str,
    pub(crate) api: Port,
    pub(crate) http: Port,
    pub(crate) peer: Port,
    flags: Vec<String>,
}

impl Setup {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    /// With flags beside those that say where it lives.
    pub(crate) fn with(flags: &[&str]) -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
            name: "test".to_owned(),
            // A node that is alone need not wait long for a leader.
            election_timeout: "100ms",
            api: Port::reserve(),
            http: Port::reserve(),
            peer: Port::reserve(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        }
    }

    /// The first node of a cluster of several, which a busy machine must not upset.
    pub(crate) fn founder() -> Self {
        Self {
            election_timeout: "1s",
            ..Self::new()
        }
    }

    /// A node that has joined the cluster of another, whose daemon runs; its own does not yet.
    pub(crate) fn member_of(founder: &Self) -> Self {
        let mut member = Self::founder();
        member.name = format!("test-{}", member.peer.addr().port());
        let created = founder.ask_cluster(&["token", "create"]);
        let mut join = merlin();
        join.args(["cluster", "join", created["token"].as_str().unwrap()])
            .arg("--data-dir")
            .arg(member.data_dir())
            .args(["--node-name", &member.name])
            .args(["--peer-addr", &member.peer.addr().to_string()]);
        run(&mut join, "joining");
        member
    }

    /// How many members of the cluster have a vote, as the running daemon knows.
    pub(crate) fn voters(&self) -> usize {
        let described = self.ask_cluster(&["members"]);
        let members = described["members"].as_array().unwrap();
        let voters = members.iter().filter(|member| member["voter"] == true);
        voters.count()
    }

    fn ask_cluster(&self, args: &[&str]) -> serde_json::Value {
        let mut command = merlin();
        command.arg("cluster").args(args).args(["-o", "json"]);
        command.arg("--run-dir").arg(self.home().join("run"));
        serde_json::from_str(&run(&mut command, "asking the daemon")).unwrap()
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.home().join("data")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home().join("run/merlin.sock")
    }

    /// The daemon's whole command line.
    pub(crate) fn args(&self) -> Vec<String> {
        let addresses = [
            "--api-addr".to_owned(),
            self.api.addr().to_string(),
            "--health-addr".to_owned(),
            self.http.addr().to_string(),
        ];
        let args = self.args_without_addresses();
        args.into_iter().chain(addresses).collect()
    }

    /// The command line, for tests that say in another way where to listen for clients.
    pub(crate) fn args_without_addresses(&self) -> Vec<String> {
        let dir = |name: &str| self.home().join(name).display().to_string();
        let args = [
            ("--data-dir", dir("data")),
            ("--run-dir", dir("run")),
            ("--node-name", self.name.clone()),
            ("--dataplane", "memory".to_owned()),
            ("--peer-addr", self.peer.addr().to_string()),
            ("--election-timeout", self.election_timeout.to_owned()),
        ];
        let args = args
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]);
        args.chain(self.flags.iter().cloned()).collect()
    }

    /// Starts a daemon and waits until it is ready.
    pub(crate) async fn start(&self) -> Daemon {
        self.launch(merlin().args(self.args())).await
    }

    /// Starts a daemon that sees other mounts, and waits until it is ready.
    pub(crate) async fn start_in(&self, mounts: &Mounts) -> Daemon {
        self.launch(mounts.enter(PROGRAM).args(self.args())).await
    }

    /// Starts a daemon in its own way and waits until it is ready.
    pub(crate) async fn launch(&self, command: &mut Command) -> Daemon {
        self.launch_until("/ready", command).await
    }

    /// Starts a daemon that cannot be ready, and waits until it answers.
    pub(crate) async fn start_unready(&self) -> Daemon {
        self.launch_unready(merlin().args(self.args())).await
    }

    pub(crate) async fn launch_unready(&self, command: &mut Command) -> Daemon {
        self.launch_until("/alive", command).await
    }

    async fn launch_until(&self, page: &str, command: &mut Command) -> Daemon {
        let mut daemon = Daemon {
            process: Process::spawn(command),
            api: self.api.addr(),
            http: self.http.addr(),
            socket: self.socket(),
        };
        eventually(async || {
            if let Some(status) = daemon.process.ended() {
                panic!("the daemon ended with {status} instead of getting ready");
            }
            match daemon.get(page).await {
                Ok(answer) if answer.status == 200 => Ok(()),
                other => Err(other),
            }
        })
        .await;
        daemon
    }

    pub(crate) async fn client(&self) -> MerlinClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.api.addr())).unwrap();
        MerlinClient::new(endpoint.timeout(AMPLE).connect().await.unwrap())
    }

    /// Starts a daemon that is expected to give up at once.
    pub(crate) fn refusal(&self) -> Refusal {
        Refusal::of(merlin().args(self.args()))
    }
}

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) process: Process,
    api: SocketAddr,
    http: SocketAddr,
    socket: PathBuf,
}

impl Daemon {
    pub(crate) fn api(&self) -> SocketAddr {
        self.api
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    /// Asks for a page.
    pub(crate) async fn get(&self, path: &str) -> std::io::Result<Answer> {
        web::get(self.http, path).await
    }

    /// What the table holds.
    pub(crate) async fn live(&self) -> NodeTable {
        let request = LiveRequest {
            local: true,
            ..Default::default()
        };
        let answer = self.node().await.live(request).await.unwrap();
        answer.into_inner().nodes.remove(0)
    }

    /// Waits until a metric without labels has a value to the taste of the caller.
    pub(crate) async fn metric(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        eventually(async || {
            let metrics = self.page("/metrics").await;
            let mut lines = metrics.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
            if value.is_some_and(&wanted) {
                Ok(())
            } else {
                Err((name, value))
            }
        })
        .await;
    }

    /// Memory it holds, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(path).unwrap();
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix("VmRSS:"));
        let value = line.unwrap().split_whitespace().next();
        value.unwrap().parse().unwrap()
    }

    /// A page that must be there.
    pub(crate) async fn page(&self, path: &str) -> String {
        let answer = self.get(path).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    /// A connection to the API port.
    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.api)).unwrap();
        let endpoint = endpoint.connect_timeout(AMPLE).timeout(AMPLE);
        endpoint.connect().await.unwrap()
    }

    /// A connection to the unix socket.
    pub(crate) async fn channel_by_socket(&self) -> Channel {
        web::connect_unix(&self.socket).await.unwrap()
    }

    pub(crate) async fn merlin(&self) -> MerlinClient<Channel> {
        MerlinClient::new(self.channel().await)
    }

    pub(crate) async fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel().await)
    }

    /// Waits for a line of the log that has all of these words, and gives it back.
    pub(crate) async fn logged(&self, words: &[&str]) -> String {
        eventually(async || {
            let log = self.process.log();
            let mut lines = log.lines();
            let line = lines.find(|line| words.iter().all(|word| line.contains(word)));
            line.map(str::to_owned)
                .ok_or(format!("no line with {words:?}"))
        })
        .await
    }
}

/// How a program ended that gave up by itself.
#[derive(Debug)]
pub(crate) struct Refusal {
    code: Option<i32>,
    pub(crate) words: String,
}

impl Refusal {
    pub(crate) fn of(command: &mut Command) -> Self {
        let mut process = Process::spawn(command);
        let status = process.wait(AMPLE);
        Self {
            code: status.code(),
            words: process.log(),
        }
    }

    /// Fails unless it ended with this code, saying all of this.
    pub(crate) fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.words);
        for word in words {
            assert!(
                self.words.contains(word),
                "{word:?} is not in: {}",
                self.words
            );
        }
    }
}
