//! `grpc.health.v1.Health`: what `/health` says, for those who ask by gRPC.
//!
//! The server as a whole and `types.Merlin` serve as long as nothing is wrong with the node as a
//! whole. `merlin.v1.Node` always does: it is there to say what is wrong.

use std::time::Duration;

use merlin_proto::types::merlin_server::MerlinServer;
use merlin_proto::v1::node_server::NodeServer;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::{catalog, node};
use crate::node::Node;

/// How late the answer may be. Nothing announces that something is wrong, so it is looked for.
const PERIOD: Duration = Duration::from_millis(500);

/// Keeps the answers true until shut down.
pub(crate) async fn run(reporter: HealthReporter, node: Node, shutdown: CancellationToken) {
    reporter.set_serving::<NodeServer<node::NodeApi>>().await;
    let mut told = None;
    loop {
        let status = match node.problems().is_empty() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        if told.replace(status) != Some(status) {
            // Those who watch are told of changes only.
            for service in ["", MerlinServer::<catalog::CatalogApi>::NAME] {
                reporter.set_service_status(service, status).await;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}
