//! The gRPC services: thin. They parse at the edge, ask the store, and put answers on the wire. Who
//! may call them is decided at [`door`] and gate, before a service sees anything.

mod access;
mod catalog;
mod cluster;
pub(crate) mod door;
pub(crate) mod health;
mod metadata;
mod node;
mod watch;

use std::time::Duration;

use futures::Stream;
use merlin_proto::types::merlin_server::MerlinServer;
use merlin_proto::v1::cluster_server::ClusterServer;
use merlin_proto::v1::node_server::NodeServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

use self::access::Gate;
use self::door::Guest;
use crate::metrics::Requests;
use crate::node::Node;

/// Largest request: a real server is a few hundred bytes, an endpoint at most two thousand.
const MAX_REQUEST: usize = 64 * 1024;
/// Requests one connection may have under way; watches count too.
const MAX_REQUESTS_PER_CONNECTION: u32 = 256;
/// A request that is not answered by then has not come in whole: no answer takes as long. A watch
/// is answered with its stream, which may go on for ever.
const MAX_REQUEST_TIME: Duration = Duration::from_secs(65);
/// A client that does not answer a ping within the second of these is gone.
const PING: Duration = Duration::from_secs(20);
const PONG: Duration = Duration::from_secs(10);

/// Everything a listener serves, and what to tell its health service.
pub(crate) fn routes(
    node: &Node,
    requests: Requests,
    shutdown: CancellationToken,
) -> anyhow::Result<(Routes, HealthReporter)> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(merlin_proto::FILE_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("types.Merlin")
        .with_service_name("merlin.v1.Node")
        .with_service_name("merlin.v1.Cluster")
        .with_service_name("grpc.health.v1.Health")
        .build_v1()?;
    let catalog = MerlinServer::new(catalog::CatalogApi::new(node.clone(), requests))
        .max_decoding_message_size(MAX_REQUEST)
        // A catalog of 100,000 real servers is some 10 MiB.
        .max_encoding_message_size(usize::MAX);
    let nodes = NodeServer::new(node::NodeApi::new(node.clone(), shutdown))
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(usize::MAX);
    let cluster = ClusterServer::new(cluster::ClusterApi::new(node.clone()))
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(usize::MAX);
    let mut routes = Routes::builder();
    routes
        .add_service(catalog)
        .add_service(nodes)
        .add_service(cluster)
        .add_service(health)
        .add_service(reflection);
    Ok((routes.routes(), reporter))
}

/// Serves whoever may, until shut down.
pub(crate) async fn serve<S>(
    routes: Routes,
    node: Node,
    connections: impl Stream<Item = std::io::Result<Guest<S>>>,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Server::builder()
        .layer(Gate { node })
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PONG))
        .max_concurrent_streams(MAX_REQUESTS_PER_CONNECTION)
        .timeout(MAX_REQUEST_TIME)
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, shutdown.cancelled_owned())
        .await
}
