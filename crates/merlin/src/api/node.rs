//! `merlin.v1.Node`: watching the catalog, and seeing what nodes make of it.

use std::pin::Pin;

use futures::Stream;
use merlin_model::Revision;
use merlin_proto::v1::node_server;
use merlin_proto::v1::{
    AcceptRemovalRequest, AcceptRemovalResponse, LiveRequest, LiveResponse, StatusRequest,
    StatusResponse, WatchRequest, WatchResponse,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::access::Caller;
use super::watch;
use crate::fleet;
use crate::node::{Node, held_removal};

#[derive(Debug)]
pub(super) struct NodeApi {
    node: Node,
    shutdown: CancellationToken,
}

impl NodeApi {
    pub(super) fn new(node: Node, shutdown: CancellationToken) -> Self {
        Self { node, shutdown }
    }
}

#[tonic::async_trait]
impl node_server::Node for NodeApi {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let incarnation = self.node.incarnation();
        if !request.incarnation.is_empty() && request.incarnation != incarnation {
            return Err(Status::out_of_range(format!(
                "revisions of incarnation {} mean nothing in {incarnation}: \
                 list the catalog and watch from its revision",
                request.incarnation
            )));
        }
        let from = request.from_revision.map(Revision);
        let events = self.node.store().events();
        let node = self.node.clone();
        let ended = async move { caller.ended(&node).await };
        let stream = watch::stream(events, from, incarnation, ended, self.shutdown.clone());
        Ok(Response::new(Box::pin(stream)))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let nodes = match request.into_inner().local {
            true => vec![self.node.status()],
            false => fleet::status(&self.node).await,
        };
        Ok(Response::new(StatusResponse { nodes }))
    }

    async fn live(&self, request: Request<LiveRequest>) -> Result<Response<LiveResponse>, Status> {
        let request = request.into_inner();
        let nodes = match request.local {
            true => vec![self.node.live(&request).await],
            false => fleet::live(&self.node, request).await,
        };
        Ok(Response::new(LiveResponse { nodes }))
    }

    async fn accept_removal(
        &self,
        request: Request<AcceptRemovalRequest>,
    ) -> Result<Response<AcceptRemovalResponse>, Status> {
        let actor = Caller::of(&request)?.actor;
        let revision = request.into_inner().revision;
        let revision = (revision != 0).then_some(Revision(revision));
        let accepted = self.node.store().accept_removal(revision);
        let accepted = accepted.map_err(|error| Status::failed_precondition(error.to_string()))?;
        tracing::warn!(%actor, removal = %accepted, "removal accepted");
        Ok(Response::new(AcceptRemovalResponse {
            accepted: Some(held_removal(accepted)),
        }))
    }
}
