//! Clients on other hosts, as a test has them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use merlin_client::{Context, Place};
use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::v1::cluster_client::ClusterClient;
use merlin_proto::v1::node_client::NodeClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::namespace::address;
use crate::node::{Hosts, Node};
use crate::support::SOON;

/// A node whose API other hosts can reach.
pub(crate) fn open_host(hosts: &Hosts, name: &str, host: u8) -> Node {
    let mut node = hosts.host(name);
    let api = address(host).to_string();
    node.env.push(("MERLIN_API_ADDR".to_owned(), api));
    node
}

/// Makes a client on a node, and gives what it logs in with.
pub(crate) fn client(hosts: &Hosts, node: &Node, name: &str, role: &str) -> Context {
    let file = hosts.file(&format!("{name}.toml"));
    let out = file.to_str().unwrap();
    node.succeeds(&["client", "create", name, "--role", role, "--out", out]);
    Context::read(&file).unwrap()
}

/// A connection to a node, by TLS.
pub(crate) async fn dial(context: &Context, addr: SocketAddr) -> Channel {
    let place = Place::Tls {
        addr: addr.to_string(),
        name: context.client.clone(),
        context: Arc::new(context.clone()),
    };
    place.connect(SOON).await.unwrap()
}

pub(crate) async fn plaintext(addr: SocketAddr) -> Channel {
    let place = Place::Plaintext {
        host: addr.ip().to_string(),
        port: addr.port(),
    };
    place.connect(SOON).await.unwrap()
}

/// A connection to a node, by its unix socket.
pub(crate) async fn local(node: &Node) -> Channel {
    Place::Socket(run_dir(node).join("merlin.sock"))
        .connect(SOON)
        .await
        .unwrap()
}

pub(crate) fn run_dir(node: &Node) -> PathBuf {
    node.data().parent().unwrap().join("run")
}

pub(crate) fn merlin(channel: &Channel) -> MerlinClient<Channel> {
    MerlinClient::new(channel.clone())
}

pub(crate) fn nodes(channel: &Channel) -> NodeClient<Channel> {
    NodeClient::new(channel.clone())
}

pub(crate) fn cluster(channel: &Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel.clone())
}

/// The words of a refusal.
pub(crate) fn refused<T>(answer: Result<T, Status>, code: Code) -> String {
    let status = answer.map(drop).unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    status.message().to_owned()
}
