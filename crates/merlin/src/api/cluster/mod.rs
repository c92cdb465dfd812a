//! `merlin.v1.Cluster`: who is in the cluster, letting nodes and clients in, and who did what.

mod audit;
mod authority;
mod clients;
mod condition;
mod describe;
mod members;
mod snapshots;
mod tokens;

use merlin_proto::v1::cluster_server::Cluster;
use merlin_proto::v1::{
    AuditRequest, AuditResponse, CreateClientRequest, CreateClientResponse, CreateTokenRequest,
    CreateTokenResponse, DemoteNodeRequest, DescribeRequest, DescribeResponse, JoinRequest,
    JoinResponse, LeaveRequest, LeaveResponse, ListClientsRequest, ListClientsResponse,
    ListTokensRequest, ListTokensResponse, MembersResponse, PromoteNodeRequest, RemoveNodeRequest,
    RenewCertificateRequest, RenewCertificateResponse, RevokeClientRequest, RevokeClientResponse,
    RevokeTokenRequest, RevokeTokenResponse, RotateAuthorityRequest, RotateAuthorityResponse,
    SaveSnapshotRequest, TransferLeaderRequest,
};
use merlin_raft::{Change, RaftStore};
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
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let raft = self.raft()?;
        let described = if request.get_ref().local {
            describe::local(raft)
        } else {
            describe::cluster(&self.node, raft).await
        };
        Ok(Response::new(described))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let joined = members::join(&self.node, self.raft()?, request).await?;
        Ok(Response::new(joined))
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

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<MembersResponse>, Status> {
        let remove = |RemoveNodeRequest { node, force }| Change::Remove { node, force };
        let changed = members::change(self.raft()?, request, remove).await?;
        Ok(Response::new(changed))
    }

    async fn promote_node(
        &self,
        request: Request<PromoteNodeRequest>,
    ) -> Result<Response<MembersResponse>, Status> {
        let promote = |PromoteNodeRequest { node }| Change::Promote(node);
        let changed = members::change(self.raft()?, request, promote).await?;
        Ok(Response::new(changed))
    }

    async fn demote_node(
        &self,
        request: Request<DemoteNodeRequest>,
    ) -> Result<Response<MembersResponse>, Status> {
        let demote = |DemoteNodeRequest { node }| Change::Demote(node);
        let changed = members::change(self.raft()?, request, demote).await?;
        Ok(Response::new(changed))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<MembersResponse>, Status> {
        let transfer = |TransferLeaderRequest { node }| {
            Change::TransferLeader(Some(node).filter(|node| !node.is_empty()))
        };
        let changed = members::change(self.raft()?, request, transfer).await?;
        Ok(Response::new(changed))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        let left = members::leave(&self.node, self.raft()?, request).await?;
        Ok(Response::new(left))
    }

    async fn renew_certificate(
        &self,
        _: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        Ok(Response::new(members::renew(self.raft()?)?))
    }

    async fn rotate_authority(
        &self,
        request: Request<RotateAuthorityRequest>,
    ) -> Result<Response<RotateAuthorityResponse>, Status> {
        let rotated = authority::rotate(self.raft()?, request).await?;
        Ok(Response::new(rotated))
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
