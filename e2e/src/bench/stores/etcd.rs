//! etcd as Debian ships it. Its nodes talk to each other in plaintext, merlin's never do.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use merlin_proto::types::RealServer;
use prost::Message;
use tempfile::TempDir;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::{Daemon, Store, Timers, Writer, connect, directory, eventually, free_addresses};
use crate::bench::workload;

/// A cluster of etcd servers.
#[derive(Debug)]
pub struct Etcd {
    nodes: Vec<Node>,
    timers: Timers,
    _home: TempDir,
}

#[derive(Debug)]
struct Node {
    name: String,
    directory: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    daemon: Option<Daemon>,
}

/// As much of etcd's API as is needed: a handful of fields, by their numbers.
#[derive(Clone, PartialEq, Message)]
pub(in crate::bench) struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(in crate::bench) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(in crate::bench) value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutResponse {}

/// A transaction without conditions.
#[derive(Clone, PartialEq, Message)]
struct TxnRequest {
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, Message)]
struct RequestOp {
    #[prost(message, optional, tag = "2")]
    put: Option<PutRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct TxnResponse {}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

const PUT: &str = "/etcdserverpb.KV/Put";
const TXN: &str = "/etcdserverpb.KV/Txn";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";

impl Etcd {
    fn launch(&mut self, node: usize) -> Result<()> {
        let cluster: Vec<_> = self
            .nodes
            .iter()
            .map(|node| format!("{}=http://{}", node.name, node.peer))
            .collect();
        let node = &mut self.nodes[node];
        let (client, peer) = (
            format!("http://{}", node.client),
            format!("http://{}", node.peer),
        );
        let mut command = Command::new("etcd");
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"ETCD_") {
                command.env_remove(name);
            }
        }
        command
            .args(["--name", &node.name])
            .arg("--data-dir")
            .arg(node.directory.join("data"))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(",")])
            .args([
                "--heartbeat-interval",
                &self.timers.heartbeat.as_millis().to_string(),
            ])
            .args([
                "--election-timeout",
                &self.timers.election.as_millis().to_string(),
            ])
            .args([
                "--logger",
                "zap",
                "--log-level",
                "error",
                "--log-outputs",
                "stderr",
            ]);
        let log = node.directory.join("log");
        node.daemon = Some(Daemon::spawn(&mut command, &log)?);
        Ok(())
    }

    async fn status(&self, node: usize) -> Result<(u64, u64)> {
        let channel = connect(self.nodes[node].client).await?;
        let status: StatusResponse = call(channel, STATUS, StatusRequest {}).await?;
        let header = status.header.context("a status without a header")?;
        Ok((header.member_id, status.leader))
    }

    async fn await_leader(&self, node: usize) -> Result<()> {
        eventually(async || {
            let (_, leader) = self.status(node).await?;
            ensure!(leader != 0, "there is no leader");
            Ok(())
        })
        .await
    }
}

impl Store for Etcd {
    type Writer = Put;

    const NAME: &str = "etcd";

    async fn start(nodes: usize, timers: Timers) -> Result<Self> {
        let home = directory()?;
        let mut cluster = Self {
            nodes: Vec::new(),
            timers,
            _home: home,
        };
        for number in 1..=nodes {
            let [client, peer] = free_addresses()?;
            let name = format!("e{number}");
            let directory = cluster._home.path().join(&name);
            std::fs::create_dir(&directory)?;
            cluster.nodes.push(Node {
                name,
                directory,
                client,
                peer,
                daemon: None,
            });
        }
        for node in 0..nodes {
            cluster.launch(node)?;
        }
        for node in 0..nodes {
            cluster.await_leader(node).await?;
        }
        Ok(cluster)
    }

    fn nodes(&self) -> usize {
        self.nodes.len()
    }

    async fn prepare(&self, slots: u16) -> Result<()> {
        for slot in 0..slots {
            self.writer(0, slot).await?.write(0).await?;
        }
        Ok(())
    }

    async fn writer(&self, node: usize, slot: u16) -> Result<Put> {
        let channel = connect(self.nodes[node].client).await?;
        Ok(Put { channel, slot })
    }

    async fn leader(&self) -> Result<usize> {
        eventually(async || {
            for (index, node) in self.nodes.iter().enumerate() {
                if node.daemon.is_some()
                    && let Ok((id, leader)) = self.status(index).await
                    && id == leader
                {
                    return Ok(index);
                }
            }
            bail!("nobody leads")
        })
        .await
    }

    fn kill(&mut self, node: usize) -> Result<()> {
        let daemon = self.nodes[node].daemon.take();
        daemon.context("it does not run")?.kill()
    }

    async fn restart(&mut self, node: usize) -> Result<()> {
        self.launch(node)?;
        self.await_leader(node).await
    }
}

/// Puts the encoding of one real server.
#[derive(Debug, Clone)]
pub struct Put {
    channel: Channel,
    slot: u16,
}

impl Writer for Put {
    async fn write(&mut self, serial: u16) -> Result<()> {
        let server = workload::server(self.slot, 0, serial.into());
        put(&self.channel, PutRequest::of(&server)).await
    }
}

impl PutRequest {
    /// A real server, where the earlier system keeps it.
    pub(in crate::bench) fn of(server: &RealServer) -> Self {
        let (service, key) = (&server.service_id, server.key.clone().unwrap_or_default());
        Self {
            key: format!("/merlin/servers/{service}/{}:{}", key.ip, key.port).into(),
            value: server.encode_to_vec(),
        }
    }
}

pub(in crate::bench) async fn put(channel: &Channel, record: PutRequest) -> Result<()> {
    let PutResponse {} = call(channel.clone(), PUT, record).await?;
    Ok(())
}

/// In one transaction.
pub(in crate::bench) async fn put_together(
    channel: &Channel,
    records: Vec<PutRequest>,
) -> Result<()> {
    let puts = records.into_iter().map(|put| RequestOp { put: Some(put) });
    let success = puts.collect();
    let TxnResponse {} = call(channel.clone(), TXN, TxnRequest { success }).await?;
    Ok(())
}

async fn call<Q, A>(channel: Channel, path: &'static str, request: Q) -> Result<A>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut grpc = Grpc::new(channel);
    grpc.ready().await?;
    let codec = ProstCodec::<Q, A>::default();
    let path = PathAndQuery::from_static(path);
    let answer = grpc
        .unary(tonic::Request::new(request), path, codec)
        .await?;
    Ok(answer.into_inner())
}
