//! The daemon under test on a balancer of the lab, and its admin tool.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::lab::{Host, Lab, Process};
use crate::poll::eventually;
use crate::programs;

/// How long a daemon may take to answer. In a guest under load it takes one or two seconds.
const START: Duration = Duration::from_secs(15);

/// How long a daemon may take to stop; the contract is five seconds.
const STOP: Duration = Duration::from_secs(5);

/// How long a new node may take to become a voter.
const JOIN: Duration = Duration::from_secs(60);

const PEER_PORT: u16 = 4284;

/// What begins a token to join a cluster with.
const TOKEN: &str = "mjt1.";

/// A merlin node: its directories and flags stay when its daemon goes and comes.
#[derive(Debug)]
pub struct Merlin<'lab> {
    lab: &'lab Lab,
    host: &'lab Host,
    directory: PathBuf,
    flags: Vec<String>,
    daemon: Option<Process>,
}

/// What a command of the admin tool said.
#[derive(Debug, Clone)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl<'lab> Merlin<'lab> {
    /// A node that has not been started yet. `flags` are the daemon's, separated by blanks.
    pub fn new(lab: &'lab Lab, host: &'lab Host, flags: &str) -> Result<Self> {
        let directory = lab.directory().join(host.name());
        fs::create_dir_all(&directory)?;
        let flags = flags.split_whitespace().map(str::to_owned).collect();
        Ok(Self {
            lab,
            host,
            directory,
            flags,
            daemon: None,
        })
    }

    /// A node, started.
    pub fn start_new(lab: &'lab Lab, host: &'lab Host, flags: &str) -> Result<Self> {
        let mut merlin = Self::new(lab, host, flags)?;
        merlin.start()?;
        Ok(merlin)
    }

    #[must_use]
    pub fn host(&self) -> &'lab Host {
        self.host
    }

    /// Starts the daemon, for the first time or again, and waits until it answers and has looked
    /// at the kernel's table once.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.await_ready()
    }

    /// Waits until a daemon that was launched answers and has looked at the kernel's table once.
    pub fn await_ready(&mut self) -> Result<()> {
        eventually(START, || {
            self.ensure_running()?;
            self.ready()
        })
        .with_context(|| format!("starting merlin on {}", self.host.name()))
    }

    /// Starts the daemon without waiting.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = Command::new(programs::locate("merlin")?);
        command.arg("run").args(&self.flags);
        self.set_environment(&mut command);
        self.daemon = Some(self.lab.spawn(self.host, "merlin", &mut command)?);
        Ok(())
    }

    fn ensure_running(&mut self) -> Result<()> {
        let daemon = self.daemon.as_mut().context("it was not started")?;
        ensure!(daemon.is_running()?, "the daemon ended");
        Ok(())
    }

    fn ready(&self) -> Result<()> {
        let (status, body) = self.http("/ready")?;
        ensure!(status == 200, "/ready answers {status}: {body}");
        Ok(())
    }

    /// Asks the daemon's HTTP port from its own host.
    pub fn http(&self, path: &str) -> Result<(u16, String)> {
        let target = SocketAddr::from(([127, 0, 0, 1], 4283));
        let timeout = Duration::from_secs(2);
        self.host
            .namespace
            .enter(|| Ok(crate::peer::client::get(target, path, timeout)?))
            .with_context(|| format!("asking for {path}"))
    }

    /// Whether the daemon was started, and neither killed nor stopped since.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.daemon.is_some()
    }

    /// The daemon's process.
    pub fn process(&self) -> Result<&Process> {
        self.daemon.as_ref().context("the daemon is not running")
    }

    /// Kills the daemon, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon
            .take()
            .context("the daemon is not running")?
            .kill()
    }

    /// Stops the daemon as its supervisor would.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("the daemon is not running")?;
        daemon.terminate(STOP)
    }

    /// Runs `meradm` on this node's host; it must succeed.
    pub fn meradm(&self, words: &str) -> Result<String> {
        let said = self.try_meradm(words)?;
        if said.code != Some(0) {
            bail!("`meradm {words}` on {}: {said:?}", self.host.name());
        }
        Ok(said.stdout)
    }

    /// Runs `meradm` on this node's host, whatever comes of it.
    pub fn try_meradm(&self, words: &str) -> Result<Said> {
        self.tool("meradm", words)
    }

    /// Runs `merlin cluster ...` on this node's host; it must succeed.
    pub fn cluster(&self, words: &str) -> Result<String> {
        self.merlin(&format!("cluster {words}"))
    }

    /// Runs a command of `merlin` on this node's host; it must succeed.
    pub fn merlin(&self, words: &str) -> Result<String> {
        let said = self.tool("merlin", words)?;
        if said.code != Some(0) {
            bail!("`merlin {words}` on {}: {said:?}", self.host.name());
        }
        Ok(said.stdout)
    }

    /// What differs from host to host. The hosts of a lab share one file system.
    fn set_environment(&self, command: &mut Command) {
        // What one test set must not reach the daemon of the next.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"MERLIN_") {
                command.env_remove(name);
            }
        }
        let peer = SocketAddr::new(self.host.control(), PEER_PORT);
        command
            .env("MERLIN_NODE_NAME", self.host.name())
            .env("MERLIN_DATA_DIR", self.data_dir())
            .env("MERLIN_RUN_DIR", self.run_directory())
            .env("MERLIN_PEER_ADDR", peer.to_string())
            // A guest has one CPU for all nodes, and everything else.
            .env("MERLIN_ELECTION_TIMEOUT", "1s")
            // What newcomers are given to prove themselves is not what is tested.
            .env("MERLIN_PROMOTE_AFTER", "1s");
    }

    fn tool(&self, program: &str, words: &str) -> Result<Said> {
        let mut command = Command::new(programs::locate(program)?);
        command.args(words.split_whitespace());
        self.set_environment(&mut command);
        let Output {
            status,
            stdout,
            stderr,
        } = self.host.namespace.enter(|| Ok(command.output()?))?;
        Ok(Said {
            code: status.code(),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }

    /// What `meradm status` says of this node.
    pub fn status(&self) -> Result<Value> {
        let name = self.host.name();
        let mut nodes = self.fleet_status()?;
        let position = nodes.iter().position(|node| node["name"] == name);
        match position {
            Some(position) => Ok(nodes.swap_remove(position)),
            None => bail!("no {name} in {nodes:?}"),
        }
    }

    /// What `meradm status` says of every node.
    pub fn fleet_status(&self) -> Result<Vec<Value>> {
        let said = self.meradm("status -o json")?;
        let status: Value = serde_json::from_str(&said).context("reading meradm's JSON")?;
        status["nodes"]
            .as_array()
            .cloned()
            .context("the status has no nodes")
    }

    /// Where the daemon's API is, for whoever is on this file system.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_directory().join("merlin.sock")
    }

    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Starts the daemon, which is expected to give up by itself.
    pub fn refuse(&mut self) -> Result<ExitStatus> {
        self.launch()?;
        let mut daemon = self.daemon.take().context("it was not started")?;
        eventually(START, || {
            daemon.exit_status()?.context("the daemon goes on running")
        })
    }

    fn run_directory(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// Makes this running node and the hosts of others one cluster.
    pub fn join_by(&self, hosts: &'lab [Host]) -> Result<Vec<Self>> {
        let flags = self.flags.join(" ");
        hosts
            .iter()
            .map(|host| {
                let mut node = Self::new(self.lab, host, &flags)?;
                let token = node.directory.join("token");
                fs::write(&token, self.token(host)?)?;
                node.flags
                    .extend(["--join-token-file".to_owned(), token.display().to_string()]);
                node.start()?;
                Ok(node)
            })
            .collect()
    }

    fn token(&self, joining: &Host) -> Result<String> {
        let said = self.cluster(&format!("token create --name {}", joining.name()))?;
        let token = said.split_whitespace().find(|word| word.starts_with(TOKEN));
        token
            .map(str::to_owned)
            .with_context(|| format!("no token in {said:?}"))
    }

    /// Waits until this node knows so many nodes that have a vote, itself included.
    pub fn await_voters(&self, wanted: usize) -> Result<()> {
        eventually(JOIN, || {
            let status = self.fleet_status()?;
            let voters = status
                .iter()
                .filter(|node| {
                    matches!(node["store"]["role"].as_str(), Some("leader" | "follower"))
                })
                .count();
            ensure!(voters == wanted, "{voters} of {wanted} voters: {status:?}");
            Ok(())
        })
    }
}
