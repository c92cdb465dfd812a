//! `merlin.v1.Cluster`: who is in the cluster, letting nodes and clients in, and who did what.

mod audit;
mod clients;
mod describe;
mod snapshots;
mod tokens;

use merlin_proto::v1::cluster_server::Cluster;
use merlin_proto::v1::{
    AuditRequest, AuditResponse, CreateClientRequest, CreateClientResponse, CreateTokenRequest,
    CreateTokenResponse, DescribeRequest, DescribeResponse, ListClientsRequest,
    ListClientsResponse, ListTokensRequest, ListTokensResponse, RevokeClientRequest,
    RevokeClientResponse, RevokeTokenRequest, RevokeTokenResponse, SaveSnapshotRequest,
};
use merlin_raft::RaftStore;
use tonic::{Request, Response, Status};

use crate::node::Node;

#[derive(Debug)]
pub(super) struct ClusterApi {
    node: Node,
}

impl ClusterApi {
    pub(super) fn new(node: Node) -> Self {
        Self { node }
    }

    /// The one store that has what this service is about.
    fn raft(&self) -> Result<&RaftStore, Status> {
        let store = self.node.store();
        store.raft().ok_or_else(|| {
            Status::failed_precondition(format!(
                "cluster commands are for the raft store: this node keeps its catalog in {}",
                store.status().backend
            ))
        })
    }
}

#[tonic::async_trait]
impl Cluster for ClusterApi {
    type SaveSnapshotStream = snapshots::Parts;

    async fn describe(
        &self,
        _: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(describe::describe(self.raft()?)))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        Ok(Response::new(tokens::create(self.raft()?, request).await?))
    }

    async fn list_tokens(
        &self,
        _: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        Ok(Response::new(tokens::list(self.raft()?)))
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        Ok(Response::new(tokens::revoke(self.raft()?, request).await?))
    }

    async fn save_snapshot(
        &self,
        request: Request<SaveSnapshotRequest>,
    ) -> Result<Response<snapshots::Parts>, Status> {
        Ok(Response::new(snapshots::save(self.raft()?, request).await?))
    }

    async fn create_client(
        &self,
        request: Request<CreateClientRequest>,
    ) -> Result<Response<CreateClientResponse>, Status> {
        let created = clients::create(&self.node, self.raft()?, request).await?;
        Ok(Response::new(created))
    }

    async fn list_clients(
        &self,
        _: Request<ListClientsRequest>,
    ) -> Result<Response<ListClientsResponse>, Status> {
        Ok(Response::new(clients::list(self.raft()?)))
    }

    async fn revoke_client(
        &self,
        request: Request<RevokeClientRequest>,
    ) -> Result<Response<RevokeClientResponse>, Status> {
        Ok(Response::new(clients::revoke(self.raft()?, request).await?))
    }

    async fn audit(
        &self,
        request: Request<AuditRequest>,
    ) -> Result<Response<AuditResponse>, Status> {
        Ok(Response::new(audit::read(self.raft()?, request).await?))
    }
}
