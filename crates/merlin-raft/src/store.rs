//! The store of one node, as the daemon uses it.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use merlin_model::store::{Consistency, ProposeError, ReadError};
use merlin_model::{Actor, AuditTrail, Catalog, Command, EventRing, Reply, Revision, Timestamp};
use openraft::error::Fatal;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::consensus::{Consensus, Leadership};
use crate::datadir::{DataDir, DataDirError};
use crate::handover::Handover;
use crate::identity::{
    ClientAnswer, ClientCommand, ClientName, ClientRecord, Clients, ClusterId, EnrollmentAnswer,
    EnrollmentCommand, EnrollmentState, NoClient, PeerTls, Token,
};
use crate::keeper::Troubles;
use crate::log::LogStore;
use crate::members::{Asked, Change, ChangeError, Changed, Members};
use crate::mutants::{self, Mutant};
use crate::peers::route::Me;
use crate::peers::service::{Answerer, PeerService};
use crate::peers::{Peers, Target};
use crate::proposer::{Origin, Proposer, now, unavailable};
use crate::reads::ReadIndex;
use crate::registry::{CreateClientError, IssuedClient, NewClient, NewToken, Registry};
use crate::renewal::{RenewError, Renewal};
use crate::standing::{Dismissal, Standing};
use crate::state::Views;
use crate::status::Status;
use crate::typ::NodeId;

/// The embedded store of one node. Cheap to clone; every clone is the same store.
#[derive(Clone, Debug)]
pub struct RaftStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) me: Me,
    pub(crate) consensus: Consensus,
    pub(crate) views: Views,
    pub(crate) proposer: Proposer,
    pub(crate) reads: ReadIndex,
    pub(crate) peers: Peers,
    pub(crate) dismissal: Dismissal,
    pub(crate) handover: Handover,
    pub(crate) troubles: Troubles,
    pub(crate) answerer: Arc<OnceLock<Answerer>>,
    pub(crate) renewal: OnceLock<Renewal>,
    /// Of the authority's rotation, as far as this node has followed it.
    pub(crate) authority_step: Arc<AtomicU64>,
    pub(crate) log: LogStore,
    /// What runs until the store is shut down.
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    // Dropped, and with that unlocked, last.
    pub(crate) dir: Arc<DataDir>,
}

/// The store has stopped for good. Restarting the daemon is the way out; the kernel keeps its
/// rules meanwhile.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store has failed: {0}")]
pub struct StoreFailed(String);

/// Why this node has not left, or not wholly.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("this node has left the cluster before")]
    Before,
    #[error("this node is no member any more, but its data directory is as it was")]
    DataDir(#[from] DataDirError),
    #[error("leaving was cut off; run it again")]
    Interrupted,
}

/// A question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("node {0} is not a member of the cluster")]
    UnknownNode(NodeId),
    #[error("{0}")]
    NoAnswer(String),
}

/// How long the tasks of a store that shuts down may take.
const DRAIN: Duration = Duration::from_secs(2);

impl RaftStore {
    pub fn cluster_id(&self) -> ClusterId {
        self.inner.me.cluster
    }

    /// Raised when a cluster is restored from a copy: revisions of different incarnations are not
    /// comparable.
    pub fn incarnation(&self) -> u64 {
        self.inner.me.incarnation
    }

    pub fn node_id(&self) -> NodeId {
        self.inner.me.node
    }

    /// The catalog as this node has applied it.
    pub fn catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        self.inner.views.catalog.clone()
    }

    /// The catalog's recent changes as this node has applied them.
    pub fn events(&self) -> watch::Receiver<EventRing> {
        self.inner.views.events.clone()
    }

    /// Has the cluster decide a command. Its time stamp is the leader's.
    pub async fn propose(
        &self,
        command: Command,
        timeout: Duration,
    ) -> Result<Reply, ProposeError> {
        // Before it waits in a queue that an isolated leader cannot empty.
        if let Leadership::None { reason } = self.inner.consensus.leadership()
            && !self.inner.consensus.hands_over()
        {
            return Err(unavailable(reason));
        }
        let deadline = Instant::now() + timeout;
        let proposer = &self.inner.proposer;
        proposer
            .propose((&command).into(), Origin::Here, deadline)
            .await
    }

    /// Has the cluster decide about join tokens and nodes.
    pub async fn enroll(
        &self,
        command: EnrollmentCommand,
        by: Actor,
        timeout: Duration,
    ) -> Result<EnrollmentAnswer, ProposeError> {
        let deadline = Instant::now() + timeout;
        self.registry().decide(command, by, deadline).await
    }

    /// Makes a join token. It is shown here once; the cluster keeps only what recognises it.
    pub async fn create_token(
        &self,
        token: NewToken,
        by: Actor,
        timeout: Duration,
    ) -> Result<Token, ProposeError> {
        let deadline = Instant::now() + timeout;
        self.registry().create_token(token, by, deadline).await
    }

    /// The newest changes of catalog and cluster, and who made them, as this node has applied them.
    pub fn audit(&self) -> AuditTrail {
        self.inner.views.audit.borrow().clone()
    }

    /// Issues a certificate to a client, for a key that only the client has.
    pub async fn create_client(
        &self,
        client: NewClient,
        by: Actor,
        timeout: Duration,
    ) -> Result<IssuedClient, CreateClientError> {
        let deadline = Instant::now() + timeout;
        self.registry().create_client(client, by, deadline).await
    }

    /// Has the cluster revoke a client, by its id or its name.
    pub async fn revoke_client(
        &self,
        who: String,
        by: Actor,
        timeout: Duration,
    ) -> Result<ClientAnswer, ProposeError> {
        let deadline = Instant::now() + timeout;
        let command = ClientCommand::Revoke(who);
        self.registry().decide_client(command, by, deadline).await
    }

    /// The clients as this node has applied them.
    pub fn clients(&self) -> Clients {
        self.inner.views.cluster.borrow().clients.clone()
    }

    /// Who the holder of a client's certificate is at this time, as far as this node has heard.
    pub fn client(&self, client: ClientName, now: Timestamp) -> Result<ClientRecord, NoClient> {
        if client.cluster != self.cluster_id() {
            return Err(NoClient::Unknown);
        }
        let cluster = self.inner.views.cluster.borrow();
        cluster.clients.standing(client.client, now).cloned()
    }

    /// Ready when the client is revoked.
    pub async fn client_revoked(&self, client: ClientName) {
        let mut cluster = self.inner.views.cluster.clone();
        let gone = cluster.wait_for(|cluster| {
            let known = cluster.clients.records.get(&client.client);
            known.is_none_or(|known| known.revoked)
        });
        // An error says that the store is gone, and then nobody may go on.
        let _ = gone.await;
    }

    /// What the API of this node takes connections with: the certificate the other nodes see, and
    /// whatever it is renewed to. None before it has one.
    pub fn tls(&self) -> Option<PeerTls> {
        let renewal = self.inner.renewal.get();
        renewal.map(|renewal| renewal.tls.clone())
    }

    /// Takes the certificate from the disk again, where somebody may have put another one.
    pub fn reload_certificate(&self) -> Result<Timestamp, RenewError> {
        let renewal = self.inner.renewal.get();
        renewal.ok_or(RenewError::NoAuthority)?.reload()
    }

    /// Join tokens and enrolled nodes as this node has applied them.
    pub fn enrollment(&self) -> EnrollmentState {
        self.inner.views.cluster.borrow().enrollment.clone()
    }

    /// Has the cluster change who is in it, or who leads it.
    pub async fn change(
        &self,
        change: Change,
        by: Actor,
        timeout: Duration,
    ) -> Result<Changed, ChangeError> {
        let asked = Asked {
            change,
            by,
            deadline: Instant::now() + timeout,
        };
        self.members().change(asked, Origin::Here).await
    }

    /// Whether this node is a member still.
    pub fn standing(&self) -> Standing {
        self.inner.dismissal.standing()
    }

    /// Leaves the cluster. What the node had is moved to the directory that is returned; the
    /// catalog it last had stays published.
    pub async fn leave(&self, by: Actor, timeout: Duration) -> Result<PathBuf, LeaveError> {
        if self.standing() == Standing::Member {
            let me = Change::Remove {
                node: self.node_id().to_string(),
                force: false,
            };
            self.change(me, by, timeout).await?;
        }
        self.inner.dismissal.dismiss(Standing::Left);
        self.inner.consensus.stop().await;
        let (log, dir) = (self.inner.log.clone(), Arc::clone(&self.inner.dir));
        let archived = tokio::task::spawn_blocking(move || {
            log.close();
            dir.set_aside(&format!("left-{}", now().0))
        });
        match archived.await.map_err(|_| LeaveError::Interrupted)?? {
            Some(archive) => Ok(archive),
            None => Err(LeaveError::Before),
        }
    }

    /// Publishes a catalog without services, for a data plane that is to be cleared. Only a node
    /// that has left does that.
    pub fn forget_catalog(&self) -> Option<Revision> {
        (self.standing() == Standing::Left).then(|| self.inner.views.publish_empty())
    }

    /// The catalog, as fresh as asked for.
    pub async fn read(
        &self,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<Arc<Catalog>, ReadError> {
        if consistency == Consistency::Linearizable && !mutants::active(Mutant::StaleRead) {
            let deadline = Instant::now() + timeout;
            let caught_up = self.inner.reads.catch_up(&self.inner.views.applied);
            let caught_up = timeout_at(deadline, caught_up);
            caught_up.await.map_err(|_| ReadError::Timeout(timeout))??;
        }
        Ok(Arc::clone(&self.inner.views.catalog.borrow()))
    }

    /// Asks the daemon of another node something. The encoding is the daemons' own.
    pub async fn ask(
        &self,
        node: NodeId,
        question: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, AskError> {
        if node == self.node_id() {
            return match self.inner.answerer.get() {
                Some(answerer) => Ok(answerer(question).await),
                None => Err(AskError::NoAnswer("the daemon is starting".into())),
            };
        }
        let metrics = self.inner.consensus.raft.metrics();
        let target = {
            let metrics = metrics.borrow();
            let membership = metrics.membership_config.membership();
            membership.get_node(&node).map(|n| Target::new(node, n))
        };
        let target = target.ok_or(AskError::UnknownNode(node))?;
        let answer = self.inner.peers.ask(&target, &question, timeout).await;
        answer.map_err(|error| AskError::NoAnswer(error.to_string()))
    }

    /// Sets who answers what other daemons ask, once.
    pub fn set_answerer<F, A>(&self, answerer: F)
    where
        F: Fn(Bytes) -> A + Send + Sync + 'static,
        A: Future<Output = Bytes> + Send + 'static,
    {
        let answerer: Answerer = Arc::new(move |question| Box::pin(answerer(question)));
        if self.inner.answerer.set(answerer).is_err() {
            tracing::error!("the answerer was set before");
        }
    }

    /// How the store is doing, as this node sees it.
    pub fn status(&self) -> Status {
        let Inner {
            me,
            consensus,
            peers,
            views,
            troubles,
            ..
        } = &*self.inner;
        Status::read(*me, consensus, peers, &views.cluster.borrow(), troubles)
    }

    /// Ready when the store can go on no longer.
    pub async fn failed(&self) -> StoreFailed {
        let raft = &self.inner.consensus.raft;
        // Those that are silent while all is well; they end with consensus, which has said by then
        // how it ended.
        let mut metrics = raft.server_metrics();
        while metrics.changed().await.is_ok() {}
        let fatal = raft.metrics().borrow().running_state.clone().err();
        match fatal {
            Some(fatal) if fatal != Fatal::Stopped => StoreFailed(fatal.to_string()),
            // Shut down in order.
            _ => std::future::pending().await,
        }
    }

    /// Stops taking part in the cluster and closes the files. Harmless when repeated.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.consensus.stop().await;
        if timeout(DRAIN, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!("calls of other nodes are cut off");
        }
        let log = self.inner.log.clone();
        // Fails only with the runtime, and then the process ends anyway.
        let _ = tokio::task::spawn_blocking(move || log.close()).await;
        self.inner.dir.release();
    }

    /// When the certificate ends that this node shows the others; none before it has one.
    pub fn certificate_expires(&self) -> Option<Timestamp> {
        self.inner.renewal.get().map(Renewal::expires)
    }

    /// Gives this node a new certificate ahead of time. It does so by itself when the time comes.
    pub fn renew_certificate(&self) -> Result<Timestamp, RenewError> {
        let renewal = self.inner.renewal.get();
        renewal.ok_or(RenewError::NoAuthority)?.renew()
    }

    pub(crate) fn registry(&self) -> Registry {
        Registry {
            me: self.inner.me,
            consensus: self.inner.consensus.clone(),
            peers: self.inner.peers.clone(),
            reads: self.inner.reads.clone(),
            views: self.inner.views.clone(),
        }
    }

    pub(crate) fn members(&self) -> Members {
        Members {
            consensus: self.inner.consensus.clone(),
            peers: self.inner.peers.clone(),
            registry: self.registry(),
            handover: self.inner.handover.clone(),
            cluster: self.inner.views.cluster.clone(),
        }
    }

    pub(crate) fn peer_service(&self) -> PeerService {
        PeerService {
            me: self.inner.me,
            consensus: self.inner.consensus.clone(),
            members: self.members(),
            troubles: self.inner.troubles.clone(),
            proposer: self.inner.proposer.clone(),
            reads: self.inner.reads.clone(),
            cluster: self.inner.views.cluster.clone(),
            answerer: Arc::clone(&self.inner.answerer),
            authority_step: Arc::clone(&self.inner.authority_step),
        }
    }
}

impl Drop for Inner {
    /// A store that is forgotten instead of shut down does not go on by itself.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftStore")
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod members_tests;
#[cfg(test)]
mod tests;
