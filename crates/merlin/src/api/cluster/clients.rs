//! Clients, which administer the cluster from other hosts.

use std::time::Duration;

use merlin_model::{Invalid, Role};
use merlin_proto::status::ToStatus;
use merlin_proto::v1::{
    ApiClient, CreateClientRequest, CreateClientResponse, ListClientsResponse, RevokeClientRequest,
    RevokeClientResponse,
};
use merlin_raft::identity::{
    ClientAnswer, ClientError, ClientId, ClientRecord, SigningRequest, check_client_name,
};
use merlin_raft::{CreateClientError, NewClient, RaftStore};
use tonic::{Request, Status};

use crate::api::access::Caller;
use crate::api::metadata::timeout;
use crate::clock::wire_time;
use crate::fleet;
use crate::node::Node;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const DEFAULT_TTL: Duration = Duration::from_secs(90 * DAY.as_secs());
const MAX_TTL: Duration = Duration::from_secs(5 * 366 * DAY.as_secs());

pub(super) async fn create(
    node: &Node,
    raft: &RaftStore,
    request: Request<CreateClientRequest>,
) -> Result<CreateClientResponse, Status> {
    let timeout = timeout(request.metadata());
    let by = Caller::of(&request)?.actor;
    let wanted = parse(request.into_inner()).map_err(|invalid| invalid.to_status())?;
    let created = raft.create_client(wanted, by, timeout).await;
    let issued = created.map_err(|error| match error {
        CreateClientError::Store(error) => error.to_status(),
        CreateClientError::Refused(error) => refused(&error),
        CreateClientError::Sign(error) => Status::internal(error.to_string()),
    })?;
    let nodes = fleet::status(node).await.into_iter();
    Ok(CreateClientResponse {
        id: issued.id.to_string(),
        cluster_id: raft.cluster_id().to_string(),
        certificate: issued.certificate,
        ca_certificate: issued.ca_certificate,
        also_trusted: issued.also_trusted,
        expires: Some(wire_time(issued.expires)),
        nodes: nodes
            .map(|node| node.api_addr)
            .filter(|addr| !addr.is_empty())
            .collect(),
    })
}

pub(super) fn list(raft: &RaftStore) -> ListClientsResponse {
    let client = |(id, record): (ClientId, ClientRecord)| ApiClient {
        id: id.to_string(),
        name: record.name,
        role: record.role.to_string(),
        expires: Some(wire_time(record.expires)),
        revoked: record.revoked,
    };
    let clients = raft.clients().records.into_iter().map(client);
    ListClientsResponse {
        clients: clients.collect(),
    }
}

pub(super) async fn revoke(
    raft: &RaftStore,
    request: Request<RevokeClientRequest>,
) -> Result<RevokeClientResponse, Status> {
    let timeout = timeout(request.metadata());
    let by = Caller::of(&request)?.actor;
    let who = request.into_inner().client;
    let answer = raft.revoke_client(who, by, timeout).await;
    match answer.map_err(|error| error.to_status())? {
        ClientAnswer::Refused(error) => Err(refused(&error)),
        ClientAnswer::Revoked | ClientAnswer::Issued { .. } => Ok(RevokeClientResponse {}),
    }
}

fn refused(error: &ClientError) -> Status {
    let words = error.to_string();
    match error {
        ClientError::Exists { .. } => Status::already_exists(words),
        ClientError::Unknown(_) => Status::not_found(words),
        ClientError::TooMany => Status::resource_exhausted(words),
    }
}

fn parse(request: CreateClientRequest) -> Result<NewClient, Invalid> {
    check_client_name(&request.name)?;
    let role: Role = request.role.parse()?;
    let lifetime = match request.ttl {
        None => DEFAULT_TTL,
        Some(ttl) => Duration::try_from(ttl).unwrap_or_default(),
    };
    if lifetime.is_zero() || lifetime > MAX_TTL {
        let reason = "must be longer than 0s and at most 5 years";
        return Err(Invalid::new("ttl", reason));
    }
    let request_for_key = SigningRequest::from_der(&request.csr)
        .map_err(|error| Invalid::new("csr", error.to_string()))?;
    Ok(NewClient {
        name: request.name,
        role,
        lifetime,
        request: request_for_key,
    })
}
