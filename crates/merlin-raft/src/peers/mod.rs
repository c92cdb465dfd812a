//! The other nodes, as this one calls them.
//!
//! * [`route`]: every call says who speaks to whom, and is refused when that is wrong.
//! * [`wire`]: what is said.
//! * [`service`]: the other end.
//! * [`forward`]: what has to be decided by the leader.
//! * [`contact`]: who answered when.
//! * [`detour`]: who is not where the members know it to be.
//!
//! Channels connect when they are first needed and again after they broke, so having one says
//! nothing about the node. There are two to each node: proposals, snapshots and questions, which
//! can be large, must not hold up the leader's heartbeats.

pub(crate) mod contact;
mod detour;
mod forward;
pub(crate) mod route;
pub(crate) mod service;
pub(crate) mod wire;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use merlin_proto::peer;
use merlin_proto::peer::peer_client::PeerClient;
use openraft::raft::{SnapshotResponse, VoteRequest, VoteResponse};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, ConnectError, Request, Response, Status};

use crate::identity::random_bytes;
use crate::level::{Greeting, Level};
use crate::peers::contact::Contacts;
use crate::peers::detour::Detours;
use crate::peers::route::Me;
use crate::peers::wire::{AppendAnswer, AppendRequest, Wire};
use crate::standing::{Dismissal, Standing};
use crate::typ::{MerlinNode, NodeId, SnapshotData, Vote};

/// Says, on a refusal, that the caller is no member any more.
pub(crate) const REMOVED_HEADER: &str = "merlin-removed";

/// Far more than any message holds: entries are sent some at a time, snapshots in chunks.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;

/// Bytes of a snapshot in one message.
const CHUNK: usize = 256 << 10;

/// Slowest transfer of a snapshot that is still waited for, in bytes per second.
const SLOWEST_TRANSFER: u64 = 1 << 20;

/// Makes channels to nodes.
pub(crate) trait Dial: fmt::Debug + Send + Sync + 'static {
    /// None as long as this node has no identity to show.
    fn channel(
        &self,
        node: NodeId,
        addr: &str,
        settings: &dyn Fn(Endpoint) -> Endpoint,
    ) -> Option<Channel>;
}

/// A node to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) id: NodeId,
    pub(crate) addr: String,
}

impl Target {
    pub(crate) fn new(id: NodeId, node: &MerlinNode) -> Self {
        Self {
            id,
            addr: node.addr.clone(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} at {}", self.id, self.addr)
    }
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nothing was sent, or all of it was refused.
    #[error("{target} cannot be reached: {reason}")]
    NotSent { target: Target, reason: String },
    /// The other side may have acted on it.
    #[error("{target} did not answer: {reason}")]
    NoAnswer { target: Target, reason: String },
}

/// Calls other nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    me: Me,
    /// Drawn at random: what a copy of this node's data directory does not have.
    process: u64,
    dial: Arc<dyn Dial>,
    /// How long a peer may be silent before the connection counts as broken.
    silence: Duration,
    channels: Mutex<HashMap<(NodeId, Lane), (String, Channel)>>,
    detours: Mutex<Detours>,
    contacts: Contacts,
    /// Told when a member refuses this node as one that was removed.
    dismissal: Dismissal,
}

/// Which of the channels to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    Consensus,
    Bulk,
    /// To an address that may be wrong: it says nothing about the node, and disturbs no other call.
    Trial,
}

/// A call to be made, for [`Peers::call`].
type Method =
    for<'a> fn(
        &'a mut PeerClient<Channel>,
        Request<peer::Envelope>,
    ) -> futures::future::BoxFuture<'a, Result<Response<peer::Envelope>, Status>>;

impl Peers {
    pub(crate) fn new(
        me: Me,
        dial: Arc<dyn Dial>,
        silence: Duration,
        dismissal: Dismissal,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                me,
                process: u64::from_ne_bytes(random_bytes()),
                dial,
                silence,
                channels: Mutex::default(),
                detours: Mutex::default(),
                contacts: Contacts::default(),
                dismissal,
            }),
        }
    }

    pub(crate) fn contacts(&self) -> &Contacts {
        &self.inner.contacts
    }

    /// Whether the node is there and is the one that is meant.
    pub(crate) async fn hello(
        &self,
        target: &Target,
        timeout: Duration,
    ) -> Result<Greeting, CallError> {
        let greeting = self.greet(Lane::Consensus, target, "", timeout).await?;
        Ok(Greeting {
            level: Level::of_message(greeting.level),
            version: greeting.version,
            authority_step: greeting.authority_step,
        })
    }

    /// Which process of the node would be there, if this were its address.
    pub(crate) async fn try_out(
        &self,
        target: &Target,
        timeout: Duration,
    ) -> Result<u64, CallError> {
        let greeting = self.greet(Lane::Trial, target, "", timeout).await?;
        Ok(greeting.process)
    }

    /// Whether this node would be reached at this address by the other, which tries it. Versions that do
    /// not try say nothing.
    pub(crate) async fn call_back(
        &self,
        target: &Target,
        addr: &str,
        timeout: Duration,
    ) -> Result<Option<peer::CalledBack>, CallError> {
        let greeting = self.greet(Lane::Bulk, target, addr, timeout).await?;
        Ok(greeting.called_back)
    }

    /// From now on a node is called where it was found. Until the members know it: they may be unable to
    /// agree on that without it.
    pub(crate) fn find(&self, node: NodeId, known: &str, found: &str) {
        self.detours().find(node, known, found);
    }

    /// The members, as they are known now.
    pub(crate) fn settle(&self, members: &[Target]) {
        self.detours().settle(members);
    }

    fn detours(&self) -> MutexGuard<'_, Detours> {
        let detours = self.inner.detours.lock();
        detours.unwrap_or_else(PoisonError::into_inner)
    }

    async fn greet(
        &self,
        lane: Lane,
        target: &Target,
        call_back_at: &str,
        timeout: Duration,
    ) -> Result<peer::Greeting, CallError> {
        let method: Method = |client, request| Box::pin(client.hello(request));
        let asked = peer::HelloRequest {
            call_back_at: call_back_at.to_owned(),
        };
        self.call(lane, target, method, &asked, timeout).await
    }

    pub(crate) fn process(&self) -> u64 {
        self.inner.process
    }

    pub(crate) fn this_node(&self) -> NodeId {
        self.inner.me.node
    }

    pub(crate) async fn append(
        &self,
        target: &Target,
        request: &AppendRequest,
        timeout: Duration,
    ) -> Result<AppendAnswer, CallError> {
        let method: Method = |client, request| Box::pin(client.append_entries(request));
        self.call(Lane::Consensus, target, method, request, timeout)
            .await
    }

    pub(crate) async fn vote(
        &self,
        target: &Target,
        request: &VoteRequest<NodeId>,
        timeout: Duration,
    ) -> Result<VoteResponse<NodeId>, CallError> {
        let method: Method = |client, request| Box::pin(client.vote(request));
        self.call(Lane::Consensus, target, method, request, timeout)
            .await
    }

    pub(crate) async fn propose(
        &self,
        target: &Target,
        request: &peer::ProposeRequest,
        timeout: Duration,
    ) -> Result<peer::Decisions, CallError> {
        let method: Method = |client, request| Box::pin(client.propose(request));
        self.call(Lane::Bulk, target, method, request, timeout)
            .await
    }

    pub(crate) async fn read_position(
        &self,
        target: &Target,
        timeout: Duration,
    ) -> Result<u64, CallError> {
        let method: Method = |client, request| Box::pin(client.read_index(request));
        let position = self.call(Lane::Bulk, target, method, &(), timeout).await;
        position.map(|position: peer::ReadPosition| position.index)
    }

    pub(crate) async fn ask(
        &self,
        target: &Target,
        question: &Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let method: Method = |client, request| Box::pin(client.ask(request));
        self.call(Lane::Bulk, target, method, question, timeout)
            .await
    }

    pub(crate) async fn change(
        &self,
        target: &Target,
        request: &peer::ChangeRequest,
        timeout: Duration,
    ) -> Result<peer::ChangeAnswer, CallError> {
        let method: Method = |client, request| Box::pin(client.change(request));
        self.call(Lane::Bulk, target, method, request, timeout)
            .await
    }

    pub(crate) async fn take_over(
        &self,
        target: &Target,
        request: &peer::TakeOverRequest,
        timeout: Duration,
    ) -> Result<peer::TakeOverAnswer, CallError> {
        let method: Method = |client, request| Box::pin(client.take_over(request));
        self.call(Lane::Consensus, target, method, request, timeout)
            .await
    }

    pub(crate) async fn knock(
        &self,
        target: &Target,
        request: &peer::KnockRequest,
        timeout: Duration,
    ) -> Result<peer::KnockAnswer, CallError> {
        let method: Method = |client, request| Box::pin(client.knock(request));
        self.call(Lane::Bulk, target, method, request, timeout)
            .await
    }

    /// Sends a snapshot, and waits until it is installed.
    pub(crate) async fn install_snapshot(
        &self,
        target: &Target,
        vote: &Vote,
        snapshot: SnapshotData,
        timeout: Duration,
    ) -> Result<SnapshotResponse<NodeId>, CallError> {
        let bytes = snapshot.0;
        let length = bytes.len() as u64;
        let header = peer::SnapshotHeader {
            vote: Some(crate::codec::vote_to_proto(vote)),
            length,
        };
        let first = peer::SnapshotChunk {
            route: Some(self.inner.me.to(target.id)),
            header: header.encode(),
            data: Bytes::new(),
        };
        let offsets = (0..bytes.len()).step_by(CHUNK);
        let rest = offsets.map(move |at| peer::SnapshotChunk {
            data: bytes.slice(at..(at + CHUNK).min(bytes.len())),
            ..peer::SnapshotChunk::default()
        });
        let chunks = stream::iter(std::iter::once(first).chain(rest));
        let mut request = Request::new(chunks);
        request.set_timeout(timeout + Duration::from_secs(length / SLOWEST_TRANSFER));
        let mut client = self.client(Lane::Bulk, target)?;
        let answer = client.install_snapshot(request).await;
        self.answered(target, answer)
    }

    async fn call<Q: Wire, A: Wire>(
        &self,
        lane: Lane,
        target: &Target,
        method: Method,
        question: &Q,
        timeout: Duration,
    ) -> Result<A, CallError> {
        let mut client = self.client(lane, target)?;
        let mut request = Request::new(peer::Envelope {
            route: Some(self.inner.me.to(target.id)),
            payload: question.encode(),
        });
        request.set_timeout(timeout);
        let answer = method(&mut client, request).await;
        if lane == Lane::Trial {
            return self.sort(target, answer);
        }
        self.answered(target, answer)
    }

    fn client(&self, lane: Lane, target: &Target) -> Result<PeerClient<Channel>, CallError> {
        let channel = match lane {
            // Nobody needs it again.
            Lane::Trial => self.dial(target)?,
            Lane::Consensus | Lane::Bulk => {
                let detour = self.detours().way(target);
                self.channel(lane, detour.as_ref().unwrap_or(target))?
            }
        };
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }

    fn channel(&self, lane: Lane, target: &Target) -> Result<Channel, CallError> {
        let channels = self.inner.channels.lock();
        let mut channels = channels.unwrap_or_else(PoisonError::into_inner);
        match channels.get(&(target.id, lane)) {
            Some((addr, channel)) if *addr == target.addr => Ok(channel.clone()),
            _ => {
                let channel = self.dial(target)?;
                let entry = (target.addr.clone(), channel.clone());
                channels.insert((target.id, lane), entry);
                Ok(channel)
            }
        }
    }

    fn dial(&self, target: &Target) -> Result<Channel, CallError> {
        let silence = self.inner.silence;
        // A connection that went dead in a partition is given up in time; waiting for TCP to
        // notice would delay the node's return by as long as the partition lasted.
        let settings = move |endpoint: Endpoint| {
            endpoint
                .http2_keep_alive_interval(silence)
                .keep_alive_timeout(silence)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true)
        };
        let channel = self.inner.dial.channel(target.id, &target.addr, &settings);
        channel.ok_or_else(|| CallError::NotSent {
            target: target.clone(),
            reason: "this node has no certificate yet".into(),
        })
    }

    /// Takes down what the outcome of a call says about the node.
    fn answered<A: Wire>(
        &self,
        target: &Target,
        answer: Result<Response<peer::Envelope>, Status>,
    ) -> Result<A, CallError> {
        let answer = self.sort(target, answer);
        let contacts = &self.inner.contacts;
        match &answer {
            Ok(_) => contacts.answered(target.id),
            Err(error) => contacts.failed(target.id, error.reason()),
        }
        answer
    }

    /// Sorts the outcome of a call by what can be concluded from it.
    fn sort<A: Wire>(
        &self,
        target: &Target,
        answer: Result<Response<peer::Envelope>, Status>,
    ) -> Result<A, CallError> {
        let not_sent = |status: &Status| CallError::NotSent {
            target: target.clone(),
            reason: explain(status),
        };
        let no_answer = |reason: String| CallError::NoAnswer {
            target: target.clone(),
            reason,
        };
        match answer {
            Ok(response) => {
                let payload = response.into_inner().payload;
                A::decode(payload).map_err(|error| no_answer(error.to_string()))
            }
            Err(status) if refused(&status) => {
                if status.metadata().contains_key(REMOVED_HEADER) {
                    self.inner.dismissal.dismiss(Standing::Removed);
                }
                Err(not_sent(&status))
            }
            Err(status) if unconnected(&status) => Err(not_sent(&status)),
            Err(status) => Err(no_answer(explain(&status))),
        }
    }
}

impl CallError {
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::NotSent { reason, .. } | Self::NoAnswer { reason, .. } => reason,
        }
    }
}

/// What went wrong, down to what the operating system says: "transport error" helps nobody.
fn explain(status: &Status) -> String {
    let mut words = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<std::io::Error>() {
            words = error.to_string();
        }
        source = error.source();
    }
    words
}

/// Whether a call was turned away before anything of it was looked at.
fn refused(status: &Status) -> bool {
    let codes = [
        Code::FailedPrecondition,
        Code::PermissionDenied,
        Code::Unauthenticated,
    ];
    codes.contains(&status.code())
}

/// Whether a call failed because there was no connection to begin with.
fn unconnected(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}
