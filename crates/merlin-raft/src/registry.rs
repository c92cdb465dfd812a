//! Join tokens and new nodes, as this node has the cluster decide about them.

use std::net::SocketAddr;
use std::time::Duration;

use merlin_model::store::ProposeError;
use merlin_model::{Actor, Role as AccessRole, Timestamp};
use tokio::time::{Instant, timeout, timeout_at};

use crate::cluster::{ClusterAnswer, ClusterChange};
use crate::consensus::{Consensus, Leadership};
use crate::identity::{
    Admission, Ca, CaError, ClientAnswer, ClientCommand, ClientError, ClientId, ClientName,
    ClientRecord, EnrollmentAnswer, EnrollmentCommand, Member, Redemption, Registrar,
    RegistrarError, Role, Secret, SigningRequest, Token, TokenId, TokenRecord, Welcome,
};
use crate::level::Level;
use crate::peers::Peers;
use crate::peers::route::Me;
use crate::proposer::{now, unavailable, unknown};
use crate::reads::ReadIndex;
use crate::state::Views;

/// For a new node's request; a little less than the node waits for the answer.
const REDEEM: Duration = Duration::from_secs(12);

/// A token is one line to paste, and a new node needs to reach only one member.
const ADDRESSES: usize = 5;

/// A token to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// What a node becomes with it.
    pub role: Role,
    /// Whom it is for.
    pub name: String,
    pub lifetime: Duration,
    /// How many nodes may join with it.
    pub uses: u32,
}

impl Default for NewToken {
    fn default() -> Self {
        Self {
            role: Role::Voter,
            name: String::new(),
            lifetime: Duration::from_secs(3600),
            uses: 1,
        }
    }
}

/// A client to be made.
#[derive(Clone, Debug)]
pub struct NewClient {
    pub name: String,
    pub role: AccessRole,
    pub lifetime: Duration,
    /// For the key that only the client has.
    pub request: SigningRequest,
}

/// What a client needs to be one, beside its key. Certificates are in DER.
#[derive(Clone, Debug)]
pub struct IssuedClient {
    pub id: ClientId,
    pub expires: Timestamp,
    pub certificate: Vec<u8>,
    pub ca_certificate: Vec<u8>,
    /// The other authorities that nodes have certificates of, or soon will.
    pub also_trusted: Vec<Vec<u8>>,
}

/// Why a client is not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateClientError {
    #[error(transparent)]
    Store(#[from] ProposeError),
    #[error(transparent)]
    Refused(#[from] ClientError),
    #[error(transparent)]
    Sign(#[from] CaError),
}

/// Asks the cluster from one node.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    pub(crate) me: Me,
    pub(crate) consensus: Consensus,
    pub(crate) peers: Peers,
    pub(crate) reads: ReadIndex,
    pub(crate) views: Views,
}

impl Registry {
    /// Has the leader decide, which may be this node.
    pub(crate) async fn decide(
        &self,
        command: EnrollmentCommand,
        by: Actor,
        deadline: Instant,
    ) -> Result<EnrollmentAnswer, ProposeError> {
        let change = ClusterChange::Enrollment(command);
        match self.decide_change(change, by, deadline).await? {
            ClusterAnswer::Enrollment(answer) => Ok(answer),
            _ => Err(mismatch()),
        }
    }

    /// The same for a change of the clients.
    pub(crate) async fn decide_client(
        &self,
        command: ClientCommand,
        by: Actor,
        deadline: Instant,
    ) -> Result<ClientAnswer, ProposeError> {
        let change = ClusterChange::Client(command);
        match self.decide_change(change, by, deadline).await? {
            ClusterAnswer::Client(answer) => Ok(answer),
            _ => Err(mismatch()),
        }
    }

    pub(crate) async fn decide_change(
        &self,
        change: ClusterChange,
        by: Actor,
        deadline: Instant,
    ) -> Result<ClusterAnswer, ProposeError> {
        // The leader looks again; but one of an earlier version would not understand the question.
        let allowed = timeout_at(deadline, self.consensus.allow(change.level())).await;
        allowed.map_err(|_| unavailable("the members did not answer in time"))??;
        let late = |_| unavailable("the leadership is being handed over");
        drop(
            timeout_at(deadline, self.consensus.pass())
                .await
                .map_err(late)?,
        );
        match self.consensus.leadership() {
            Leadership::Leading => {
                let written = self.consensus.write_cluster(change, by);
                let late = |_| unknown("no quorum confirmed the command in time");
                timeout_at(deadline, written).await.map_err(late)?
            }
            Leadership::Following(leader) => {
                self.peers
                    .forward_cluster(&leader, change, by, deadline)
                    .await
            }
            Leadership::None { reason } => Err(unavailable(reason)),
        }
    }

    /// Makes a client known to the cluster, then signs its certificate.
    pub(crate) async fn create_client(
        &self,
        new: NewClient,
        by: Actor,
        deadline: Instant,
    ) -> Result<IssuedClient, CreateClientError> {
        let ca = self.authority().map_err(unavailable)?;
        let lifetime = u64::try_from(new.lifetime.as_millis()).unwrap_or(u64::MAX);
        let client = ClientRecord {
            name: new.name.clone(),
            role: new.role,
            key: new.request.fingerprint(),
            expires: Timestamp(now().0.saturating_add(lifetime)),
            revoked: false,
        };
        let command = ClientCommand::Create(ClientId::random(), client);
        let (id, expires) = match self.decide_client(command, by, deadline).await? {
            ClientAnswer::Issued { id, expires } => (id, expires),
            ClientAnswer::Refused(error) => return Err(error.into()),
            ClientAnswer::Revoked => return Err(mismatch().into()),
        };
        let name = ClientName {
            cluster: self.me.cluster,
            client: id,
        };
        let certificate = ca.sign_client(&new.request, name, &new.name, now(), expires)?;
        let also_trusted = {
            let cluster = self.views.cluster.borrow();
            let other = cluster.rotation.also_trusted();
            other.into_iter().map(<[u8]>::to_vec).collect()
        };
        Ok(IssuedClient {
            id,
            expires,
            certificate: certificate.to_vec(),
            ca_certificate: ca.certificate().to_vec(),
            also_trusted,
        })
    }

    /// Makes a token known to the cluster. What is returned is kept nowhere.
    pub(crate) async fn create_token(
        &self,
        new: NewToken,
        by: Actor,
        deadline: Instant,
    ) -> Result<Token, ProposeError> {
        let token = Token {
            cluster: self.me.cluster,
            ca: self.authority().map_err(unavailable)?.fingerprint(),
            id: TokenId::random(),
            secret: Secret::random(),
            addresses: self.addresses(),
        };
        let lifetime = u64::try_from(new.lifetime.as_millis()).unwrap_or(u64::MAX);
        let record = TokenRecord {
            secret: token.secret.hash(),
            role: new.role,
            name: new.name,
            expires: Timestamp(now().0.saturating_add(lifetime)),
            uses_left: new.uses,
            revoked: false,
        };
        let command = EnrollmentCommand::CreateToken(token.id, record);
        match self.decide(command, by, deadline).await? {
            EnrollmentAnswer::Done => Ok(token),
            EnrollmentAnswer::Admitted(_) | EnrollmentAnswer::Refused(_) => Err(mismatch()),
        }
    }

    /// The cluster's authority, once this node has applied the founding.
    pub(crate) fn authority(&self) -> Result<Ca, String> {
        let cluster = self.views.cluster.borrow();
        let founding = cluster.founding.as_ref();
        let founding = founding.ok_or("this node does not know the cluster's authority yet")?;
        founding
            .authority()
            .map_err(|error: CaError| error.to_string())
    }

    fn members(&self) -> Vec<Member> {
        let metrics = self.consensus.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let members = membership.nodes().map(|(&id, node)| Member {
            id,
            name: node.name.clone(),
            addr: node.addr.clone(),
            voter: membership.voter_ids().any(|voter| voter == id),
        });
        members.collect()
    }

    /// Where a new node can ask: the leader first, as it answers fastest.
    fn addresses(&self) -> Vec<SocketAddr> {
        let leader = self.consensus.raft.metrics().borrow().current_leader;
        let mut members = self.members();
        members.sort_by_key(|member| (Some(member.id) != leader, !member.voter, member.id));
        let addresses = members.iter().filter_map(|member| member.addr.parse().ok());
        addresses.take(ADDRESSES).collect()
    }

    async fn redeem(&self, redemption: Redemption) -> Result<Admission, RegistrarError> {
        // Anybody can call this, so that only a token that holds is worth an entry in the log.
        self.reads
            .catch_up(&self.views.applied)
            .await
            .map_err(not_now)?;
        let known = {
            let cluster = self.views.cluster.borrow();
            cluster.enrollment.check(now(), &redemption)?
        };
        if let Some(admission) = known {
            return Ok(admission);
        }
        let command = EnrollmentCommand::Redeem(redemption);
        let by = Actor::Node(self.me.node);
        match self.decide(command, by, Instant::now() + REDEEM).await {
            Ok(EnrollmentAnswer::Admitted(admission)) => Ok(admission),
            Ok(EnrollmentAnswer::Refused(refusal)) => Err(refusal.into()),
            Ok(EnrollmentAnswer::Done) => Err(RegistrarError::Unavailable {
                reason: "the answer does not match the request".into(),
            }),
            Err(error) => Err(not_now(error)),
        }
    }
}

impl Registrar for Registry {
    fn level(&self) -> Level {
        self.consensus.levels.agreed()
    }

    async fn redeem(&self, redemption: Redemption) -> Result<Welcome, RegistrarError> {
        let redeemed = timeout(REDEEM, Self::redeem(self, redemption)).await;
        let late = |_| RegistrarError::Unavailable {
            reason: "the cluster did not decide in time".into(),
        };
        let admission = redeemed.map_err(late)??;
        Ok(Welcome {
            cluster: self.me.cluster,
            incarnation: self.me.incarnation,
            admission,
            ca: self
                .authority()
                .map_err(|reason| RegistrarError::Unavailable { reason })?,
            members: self.members(),
        })
    }
}

fn mismatch() -> ProposeError {
    unknown("the answer does not match the command")
}

fn not_now(error: impl std::error::Error) -> RegistrarError {
    RegistrarError::Unavailable {
        reason: error.to_string(),
    }
}
