//! How a member answers a node that asks in.
//!
//! The handler parses the request, has the redemption committed, and signs a certificate for the
//! node id that came of it. It keeps nothing: every member can do this, and a repeated request
//! gets the same identity with a fresh certificate.

use std::fmt;
use std::net::SocketAddr;

use merlin_model::Timestamp;
use merlin_proto::peer::enrollment_server::{self, EnrollmentServer};
use merlin_proto::peer::{self, EnrollRequest, EnrollResponse};
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use super::admission::{Admission, RedeemError, Redemption, Role};
use super::ca::Ca;
use super::digest::SecretHash;
use super::key::SigningRequest;
use super::name::{ClusterId, PeerName};
use super::token::TokenId;
use crate::level::{Level, VERSION};
use crate::typ::NodeId;

/// The version of the joining protocol, which both ends have to share.
pub(super) const PROTOCOL: u32 = 1;

/// Names the leader's address when another member had to turn a node away.
pub(super) const LEADER_HEADER: &str = "merlin-leader";

/// Longest name of a node; a host name has at most this many characters.
const MAX_NAME_LEN: usize = 64;

/// The replicated log, as enrolling needs it.
pub trait Registrar: Send + Sync + 'static {
    /// What commands a new node has to know.
    fn level(&self) -> Level {
        Level::FIRST
    }

    /// Commits a redemption and gives what the new node has to know.
    ///
    /// Counting the token's use and handing out the node id must be one command
    /// ([`super::EnrollmentState::apply`]). When this answers, the node id is the node's for good,
    /// but it need not be a member of consensus yet.
    fn redeem(
        &self,
        redemption: Redemption,
    ) -> impl Future<Output = Result<Welcome, RegistrarError>> + Send;
}

/// What the cluster tells a node that it lets in.
#[derive(Debug)]
pub struct Welcome {
    pub cluster: ClusterId,
    pub incarnation: u64,
    pub admission: Admission,
    pub ca: Ca,
    /// Who is in the cluster already.
    pub members: Vec<Member>,
}

/// A node of the cluster, as a new one is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: NodeId,
    pub name: String,
    pub addr: String,
    pub voter: bool,
}

/// Why a redemption was not committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrarError {
    #[error(transparent)]
    Refused(#[from] RedeemError),
    /// Only the leader can commit, and it could not be asked from here.
    #[error("this node does not lead the cluster")]
    NotLeader { leader: Option<String> },
    /// It may or may not have been committed. Asking again is safe.
    #[error("{reason}")]
    Unavailable { reason: String },
}

/// The gRPC service `merlin.peer.v1.Enrollment`.
pub struct Enrollment<R> {
    registrar: R,
    clock: fn() -> Timestamp,
}

impl<R: Registrar> Enrollment<R> {
    pub fn new(registrar: R, clock: fn() -> Timestamp) -> Self {
        Self { registrar, clock }
    }

    pub fn into_service(self) -> EnrollmentServer<Self> {
        EnrollmentServer::new(self)
    }

    async fn answer(&self, request: EnrollRequest) -> Result<EnrollResponse, Status> {
        check_level(&request, self.registrar.level())?;
        let (redemption, csr) = parse(request)?;
        let (name, token) = (redemption.name.clone(), redemption.token);
        let welcome = self.registrar.redeem(redemption).await.map_err(refusal)?;
        let Admission { node, role } = welcome.admission;
        let peer_name = PeerName {
            cluster: welcome.cluster,
            node,
        };
        let certificate = welcome
            .ca
            .sign(&csr, peer_name, (self.clock)())
            .map_err(|error| Status::internal(error.to_string()))?;
        tracing::info!(node, %name, %role, %token, "let a node in");
        Ok(EnrollResponse {
            cluster_id: welcome.cluster.to_string(),
            incarnation: welcome.incarnation,
            node_id: node,
            certificate: certificate.to_vec(),
            ca_certificate: welcome.ca.certificate().to_vec(),
            members: welcome.members.into_iter().map(Into::into).collect(),
            voter: role == Role::Voter,
        })
    }
}

#[tonic::async_trait]
impl<R: Registrar> enrollment_server::Enrollment for Enrollment<R> {
    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let answer = self.answer(request.into_inner()).await;
        if let Err(status) = &answer {
            tracing::warn!(reason = status.message(), "turned a node away");
        }
        answer.map(Response::new)
    }
}

impl<R> fmt::Debug for Enrollment<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrollment").finish_non_exhaustive()
    }
}

/// Before the token is looked at, so that it can be used again with another version.
fn check_level(request: &EnrollRequest, agreed: Level) -> Result<(), Status> {
    let level = Level::of_message(request.level);
    if level >= agreed {
        return Ok(());
    }
    let version = match request.version.as_str() {
        "" => "an earlier version",
        version => version,
    };
    Err(Status::failed_precondition(format!(
        "this cluster uses commands of level {agreed}, merlin on the new node ({version}) knows \
         level {level}: install merlin {VERSION} on it"
    )))
}

fn parse(request: EnrollRequest) -> Result<(Redemption, SigningRequest), Status> {
    if request.protocol != PROTOCOL {
        return Err(Status::failed_precondition(format!(
            "this cluster admits nodes by version {PROTOCOL} of the joining protocol, the new node \
             speaks version {}: install the cluster's version of merlin on it",
            request.protocol
        )));
    }
    let invalid = |what: &str| Status::invalid_argument(what.to_owned());
    let token = <[u8; 8]>::try_from(request.token_id.as_ref())
        .map_err(|_| invalid("token_id: has 8 bytes"))?;
    let csr = SigningRequest::from_der(&request.csr)
        .map_err(|error| invalid(&format!("csr: {error}")))?;
    let named = (1..=MAX_NAME_LEN).contains(&request.node_name.len())
        && !request.node_name.contains(char::is_control);
    if !named {
        return Err(invalid(&format!(
            "node_name: has 1 to {MAX_NAME_LEN} printable characters"
        )));
    }
    let reachable = request
        .advertise_addr
        .parse()
        .is_ok_and(|addr: SocketAddr| !addr.ip().is_unspecified() && addr.port() != 0);
    if !reachable {
        return Err(invalid(
            "advertise_addr: is the IP:PORT at which the other nodes reach this one",
        ));
    }
    let redemption = Redemption {
        token: TokenId(token),
        secret: SecretHash::of(&request.token_secret),
        key: csr.fingerprint(),
        name: request.node_name,
        addr: request.advertise_addr,
    };
    Ok((redemption, csr))
}

/// The one place where refusals become gRPC codes. A client goes on to another member after
/// `UNAVAILABLE` only; the other codes are the cluster's decision.
fn refusal(error: RegistrarError) -> Status {
    let text = error.to_string();
    match error {
        RegistrarError::Refused(RedeemError::Unknown | RedeemError::WrongSecret) => {
            Status::unauthenticated(text)
        }
        RegistrarError::Refused(
            RedeemError::Revoked | RedeemError::Expired | RedeemError::UsedUp,
        ) => Status::permission_denied(text),
        RegistrarError::NotLeader { leader } => {
            let mut status = Status::unavailable(text);
            let leader = leader.and_then(|addr| MetadataValue::try_from(addr).ok());
            if let Some(leader) = leader {
                status.metadata_mut().insert(LEADER_HEADER, leader);
            }
            status
        }
        RegistrarError::Unavailable { .. } => Status::unavailable(text),
    }
}

impl From<Member> for peer::Member {
    fn from(member: Member) -> Self {
        Self {
            id: member.id,
            name: member.name,
            advertise_addr: member.addr,
            voter: member.voter,
        }
    }
}

impl From<peer::Member> for Member {
    fn from(member: peer::Member) -> Self {
        Self {
            id: member.id,
            name: member.name,
            addr: member.advertise_addr,
            voter: member.voter,
        }
    }
}
