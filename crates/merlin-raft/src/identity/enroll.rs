//! How a new node asks in.
//!
//! The token's addresses are tried in order, then whatever leader they name. Somebody else at one
//! of them is passed over and told nothing; a refusal by the cluster is final.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use merlin_proto::peer::enrollment_client::EnrollmentClient;
use merlin_proto::peer::{EnrollRequest, EnrollResponse};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::admission::Role;
use super::enrollment::{LEADER_HEADER, Member, PROTOCOL};
use super::key::{KeyError, NodeKey};
use super::name::PeerName;
use super::node::{IdentityError, NodeIdentity};
use super::pin::{self, PinError};
use super::tls::{connect, endpoint};
use super::token::Token;
use crate::level::{Level, VERSION};

/// For one member's answer, which includes a commit by the cluster.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Followers that lost their leader may name each other.
const MAX_ATTEMPTS: usize = 16;

/// The node that asks in.
#[derive(Clone, Debug)]
pub struct Applicant {
    /// Kept from one attempt to the next, so that the cluster recognises the node.
    pub key: NodeKey,
    /// What operators call the node.
    pub name: String,
    /// Where the other nodes reach it.
    pub advertise: SocketAddr,
    /// The commands that it can apply.
    pub level: Level,
}

/// The cluster let the node in.
#[derive(Debug)]
pub struct Enrolled {
    pub identity: NodeIdentity,
    pub incarnation: u64,
    /// What the node becomes once it has caught up.
    pub role: Role,
    /// Who was in the cluster before.
    pub members: Vec<Member>,
}

/// Why the node is not let in.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error("the token names no member to ask")]
    NoAddress,
    #[error("no request could be made for the node's key")]
    Request(#[source] KeyError),
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    /// Asking again, or another member, would not help.
    #[error("the cluster refused at {addr}: {reason}")]
    Refused { addr: SocketAddr, reason: String },
    #[error("no member of the cluster could let this node in:{}", Listed(.0))]
    NoAnswer(Vec<Attempt>),
}

/// One address that was tried in vain.
#[derive(Debug)]
pub struct Attempt {
    pub addr: SocketAddr,
    pub error: AttemptError,
}

/// Why; written out in full, as several are listed together.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    #[error("cannot be reached: {0}")]
    Unreachable(io::Error),
    #[error("fails the TLS handshake: {0}")]
    Handshake(rustls::Error),
    #[error("somebody else answers there: {0}")]
    Stranger(PinError),
    #[error("does not answer as a merlin node: {0}")]
    Transport(tonic::transport::Error),
    #[error("could not answer: {0}")]
    Unavailable(String),
    #[error("gave an answer that makes no identity: {0}")]
    Answer(AnswerError),
}

/// What is wrong with an answer that let the node in.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("it is {found}'s, node {expected} of the token's cluster was expected")]
    OtherNode { found: PeerName, expected: u64 },
    #[error("it is from another CA than the token's")]
    OtherAuthority,
}

impl AttemptError {
    fn connecting(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|error| error.downcast_ref());
        match tls {
            None => Self::Unreachable(error),
            Some(tls) => match PinError::of(tls) {
                Some(reason) => Self::Stranger(reason),
                None => Self::Handshake(tls.clone()),
            },
        }
    }
}

struct Listed<'a>(&'a [Attempt]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|Attempt { addr, error }| write!(f, "\n  {addr} {error}"))
    }
}

/// What one member led to, when not to an answer.
enum Outcome {
    Enrolled(Box<Enrolled>),
    Refused(String),
    Failed(AttemptError),
    /// The member cannot, but knows who can.
    Elsewhere(SocketAddr, AttemptError),
}

/// Asks the cluster of `token` to let a node in.
///
/// A repeated call with the same token and key gives the same node.
pub async fn enroll(token: &Token, applicant: &Applicant) -> Result<Enrolled, EnrollError> {
    if token.addresses.is_empty() {
        return Err(EnrollError::NoAddress);
    }
    let config = pin::client_config(token.cluster, token.ca).map_err(EnrollError::Tls)?;
    let request = request(token, applicant)?;
    let mut ahead: VecDeque<SocketAddr> = token.addresses.iter().copied().collect();
    let mut attempts = Vec::new();
    while let Some(addr) = ahead.pop_front() {
        let asked = ask(&config, token, addr, &request, applicant);
        let error = match asked.await {
            Outcome::Enrolled(enrolled) => return Ok(*enrolled),
            Outcome::Refused(reason) => return Err(EnrollError::Refused { addr, reason }),
            Outcome::Elsewhere(leader, error) => {
                ahead.retain(|other| *other != leader);
                ahead.push_front(leader);
                error
            }
            Outcome::Failed(error) => error,
        };
        tracing::debug!(%addr, %error, "asked in vain");
        attempts.push(Attempt { addr, error });
        if attempts.len() == MAX_ATTEMPTS {
            break;
        }
    }
    Err(EnrollError::NoAnswer(attempts))
}

fn request(token: &Token, applicant: &Applicant) -> Result<EnrollRequest, EnrollError> {
    let csr = applicant
        .key
        .signing_request()
        .map_err(EnrollError::Request)?;
    Ok(EnrollRequest {
        token_id: token.id.0.to_vec(),
        token_secret: token.secret.0.to_vec(),
        csr: csr.to_vec(),
        node_name: applicant.name.clone(),
        advertise_addr: applicant.advertise.to_string(),
        protocol: PROTOCOL,
        level: applicant.level.number(),
        version: VERSION.to_owned(),
    })
}

async fn ask(
    config: &Arc<ClientConfig>,
    token: &Token,
    addr: SocketAddr,
    request: &EnrollRequest,
    applicant: &Applicant,
) -> Outcome {
    // Any node will do, so the name is nobody's; the verifier looks at the cluster only.
    let anyone = PeerName {
        cluster: token.cluster,
        node: 0,
    };
    // The handshake comes first and by itself: no gRPC client exists, and so nothing secret is
    // written, before the other side has proved that it is a member.
    let tls = match connect(Arc::clone(config), &addr.to_string(), anyone).await {
        Ok(tls) => tls,
        Err(error) => {
            return Outcome::Failed(AttemptError::connecting(error));
        }
    };
    let channel = match over(tls, anyone).await {
        Ok(channel) => channel,
        Err(error) => return Outcome::Failed(AttemptError::Transport(error)),
    };
    match EnrollmentClient::new(channel).enroll(request.clone()).await {
        Ok(response) => match accept(response.into_inner(), token, applicant) {
            Ok(enrolled) => Outcome::Enrolled(Box::new(enrolled)),
            Err(error) => Outcome::Failed(AttemptError::Answer(error)),
        },
        Err(status) => turned_away(status),
    }
}

/// A channel over a connection that exists already.
async fn over(
    tls: TlsStream<TcpStream>,
    name: PeerName,
) -> Result<Channel, tonic::transport::Error> {
    let only = Mutex::new(Some(TokioIo::new(tls)));
    let connector = tower::service_fn(move |_| {
        let tls = only.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A lost connection would have to prove itself anew.
        async move { tls.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    endpoint(name)
        .timeout(ANSWER_TIMEOUT)
        .connect_with_connector(connector)
        .await
}

fn turned_away(status: Status) -> Outcome {
    let reason = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::FailedPrecondition => Outcome::Refused(reason),
        _ => {
            let leader = status.metadata().get(LEADER_HEADER);
            let leader = leader.and_then(|addr| addr.to_str().ok()?.parse().ok());
            let error = AttemptError::Unavailable(reason);
            match leader {
                Some(leader) => Outcome::Elsewhere(leader, error),
                None => Outcome::Failed(error),
            }
        }
    }
}

/// Trusts an answer no further than the token.
fn accept(
    response: EnrollResponse,
    token: &Token,
    applicant: &Applicant,
) -> Result<Enrolled, AnswerError> {
    let identity = NodeIdentity::new(
        applicant.key.clone(),
        CertificateDer::from(response.certificate.to_vec()),
        CertificateDer::from(response.ca_certificate.to_vec()),
    )?;
    if identity.ca_fingerprint() != token.ca {
        return Err(AnswerError::OtherAuthority);
    }
    let found = identity.name();
    if found.cluster != token.cluster || found.node != response.node_id {
        return Err(AnswerError::OtherNode {
            found,
            expected: response.node_id,
        });
    }
    Ok(Enrolled {
        identity,
        incarnation: response.incarnation,
        role: if response.voter {
            Role::Voter
        } else {
            Role::Learner
        },
        members: response.members.into_iter().map(Into::into).collect(),
    })
}

#[cfg(test)]
mod tests;
