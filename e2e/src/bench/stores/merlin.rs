//! merlin with its embedded store. The table is in memory: only the store is measured.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::v1::node_client::NodeClient;
use merlin_proto::v1::{NodeStatus, StatusRequest};
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::{
    Daemon, Store, Timers, Writer, connect, directory, eventually, free_addresses, output,
};
use crate::bench::workload;
use crate::programs;

/// What begins the words after `merlin cluster` that join a node.
const JOIN: &str = "join mjt1.";

/// A cluster of daemons.
#[derive(Debug)]
pub struct Merlin {
    nodes: Vec<Node>,
    timers: Timers,
    home: TempDir,
}

/// One daemon, its addresses and its directories.
#[derive(Debug)]
struct Node {
    name: String,
    directory: PathBuf,
    api: SocketAddr,
    http: SocketAddr,
    peer: SocketAddr,
    /// Where the others are told to find it.
    advertised: SocketAddr,
    daemon: Option<Daemon>,
}

impl Merlin {
    /// Adds a node that has not been started. `advertised` is where the others find it, when
    /// something is between them.
    pub fn add(
        &mut self,
        advertised: impl FnOnce(SocketAddr) -> Result<SocketAddr>,
    ) -> Result<usize> {
        let index = self.nodes.len();
        let [api, http, peer] = free_addresses()?;
        let name = format!("n{}", index + 1);
        let directory = self.home.path().join(&name);
        std::fs::create_dir(&directory)?;
        self.nodes.push(Node {
            name,
            directory,
            api,
            http,
            peer,
            advertised: advertised(peer)?,
            daemon: None,
        });
        Ok(index)
    }

    /// Makes a node that was added a member, and starts it; tells when that began.
    pub fn join(&mut self, node: usize) -> Result<Instant> {
        let name = &self.nodes[node].name;
        let create = ["token", "create", "--name", name];
        let line = output(self.command(0)?.arg("cluster").args(create))?;
        let join = line.find(JOIN).map(|start| line[start..].trim());
        let join = join.with_context(|| format!("no command to join with in {line:?}"))?;
        let at = Instant::now();
        output(
            self.command(node)?
                .arg("cluster")
                .args(join.split_whitespace()),
        )?;
        self.launch(node)?;
        Ok(at)
    }

    /// Starts the daemon without waiting.
    pub fn launch(&mut self, node: usize) -> Result<()> {
        let mut command = self.command(node)?;
        command.args(["run", "--dataplane", "memory"]);
        let node = &mut self.nodes[node];
        let log = node.directory.join("log");
        node.daemon = Some(Daemon::spawn(&mut command, &log)?);
        Ok(())
    }

    /// `merlin` with everything that differs from node to node.
    fn command(&self, node: usize) -> Result<Command> {
        let node = &self.nodes[node];
        let mut command = Command::new(programs::locate("merlin")?);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"MERLIN_") {
                command.env_remove(name);
            }
        }
        command
            .env("MERLIN_NODE_NAME", &node.name)
            .env("MERLIN_DATA_DIR", node.directory.join("data"))
            .env("MERLIN_RUN_DIR", node.directory.join("run"))
            .env("MERLIN_API_ADDR", node.api.to_string())
            .env("MERLIN_HEALTH_ADDR", node.http.to_string())
            .env("MERLIN_PEER_ADDR", node.peer.to_string())
            .env("MERLIN_ADVERTISE_ADDR", node.advertised.to_string())
            .env("MERLIN_PROMOTE_AFTER", "100ms")
            .env(
                "MERLIN_ELECTION_TIMEOUT",
                format!("{}ms", self.timers.election.as_millis()),
            );
        Ok(command)
    }

    #[must_use]
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.nodes[node].daemon.as_ref().map(Daemon::id)
    }

    pub async fn client(&self, node: usize) -> Result<MerlinClient<Channel>> {
        Ok(MerlinClient::new(connect(self.nodes[node].api).await?))
    }

    /// Somebody who asks a node for what it answers by itself.
    pub async fn caller(&self, node: usize) -> Result<Caller> {
        let channel = connect(self.nodes[node].api).await?;
        Ok(Caller(HealthClient::new(channel)))
    }

    /// A node's view of itself.
    pub async fn status(&self, node: usize) -> Result<NodeStatus> {
        let mut client = NodeClient::new(connect(self.nodes[node].api).await?);
        let answer = client.status(StatusRequest { local: true }).await?;
        let status = answer.into_inner().nodes.pop();
        status.context("a status without a node")
    }

    /// Waits until a node has a vote, and has programmed this revision of the catalog.
    pub async fn await_programmed(&self, node: usize, revision: u64) -> Result<()> {
        eventually(async || {
            let status = self.status(node).await?;
            let store = status.store.clone().unwrap_or_default();
            let votes = matches!(store.role.as_str(), "leader" | "follower");
            ensure!(
                votes && store.available && status.programmed_revision >= revision,
                "{status:?}"
            );
            Ok(())
        })
        .await
        .with_context(|| self.last_words(node))
    }

    fn last_words(&self, node: usize) -> String {
        let node = &self.nodes[node];
        let log = std::fs::read_to_string(node.directory.join("log")).unwrap_or_default();
        let tail: Vec<_> = log.lines().rev().take(3).collect();
        format!("the last words of {}: {tail:?}", node.name)
    }

    /// Waits until a node serves with its first comparison done.
    pub async fn await_ready(&self, node: usize) -> Result<()> {
        let http = self.nodes[node].http;
        let ready = async || {
            let timeout = std::time::Duration::from_secs(2);
            let ask = move || crate::peer::client::get(http, "/ready", timeout);
            let (status, body) = tokio::task::spawn_blocking(ask).await??;
            ensure!(status == 200, "/ready answers {status}: {body}");
            Ok(())
        };
        eventually(ready)
            .await
            .with_context(|| self.last_words(node))
    }
}

impl Store for Merlin {
    type Writer = Change;

    const NAME: &str = "merlin";

    async fn start(nodes: usize, timers: Timers) -> Result<Self> {
        let mut cluster = Self {
            nodes: Vec::new(),
            timers,
            home: directory()?,
        };
        let first = cluster.add(Ok)?;
        cluster.launch(first)?;
        cluster.await_ready(first).await?;
        for _ in 1..nodes {
            let node = cluster.add(Ok)?;
            cluster.join(node)?;
            cluster.await_programmed(node, 0).await?;
        }
        Ok(cluster)
    }

    fn nodes(&self) -> usize {
        self.nodes.len()
    }

    async fn prepare(&self, slots: u16) -> Result<()> {
        let mut client = self.client(0).await?;
        for slot in 0..slots {
            client.create_service(workload::declared(slot)).await?;
            client.create_server(workload::server(slot, 0, 0)).await?;
        }
        Ok(())
    }

    async fn writer(&self, node: usize, slot: u16) -> Result<Change> {
        let client = self.client(node).await?;
        Ok(Change { client, slot })
    }

    async fn leader(&self) -> Result<usize> {
        eventually(async || {
            for (index, node) in self.nodes.iter().enumerate() {
                if node.daemon.is_some()
                    && let Ok(status) = self.status(index).await
                    && status.store.is_some_and(|store| store.role == "leader")
                {
                    return Ok(index);
                }
            }
            anyhow::bail!("nobody leads")
        })
        .await
    }

    fn kill(&mut self, node: usize) -> Result<()> {
        let daemon = self.nodes[node].daemon.take();
        daemon.context("it does not run")?.kill()
    }

    async fn restart(&mut self, node: usize) -> Result<()> {
        self.launch(node)?;
        self.await_ready(node).await
    }
}

/// Changes the weight of one real server.
#[derive(Debug, Clone)]
pub struct Change {
    client: MerlinClient<Channel>,
    slot: u16,
}

impl Writer for Change {
    async fn write(&mut self, serial: u16) -> Result<()> {
        let server = workload::server(self.slot, 0, serial.into());
        match self.client.update_server(server).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::Aborted => Err(status).context("a conflict"),
            Err(status) => Err(status.into()),
        }
    }
}

/// Asks for the health of the node.
#[derive(Debug, Clone)]
pub struct Caller(HealthClient<Channel>);

impl Writer for Caller {
    async fn write(&mut self, _: u16) -> Result<()> {
        self.0.check(HealthCheckRequest::default()).await?;
        Ok(())
    }
}
