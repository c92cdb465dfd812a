//! The peer listener's side of the calls between nodes.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use merlin_model::Command;
use merlin_model::store::ProposeError;
use merlin_proto::{log, peer};
use openraft::Snapshot;
use openraft::raft::VoteRequest;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use crate::cluster::{ClusterAnswer, ClusterCommand, ClusterState};
use crate::codec::vote_from_proto;
use crate::consensus::{Consensus, Leadership};
use crate::handover;
use crate::identity::{PeerName, verify_peer};
use crate::keeper::Troubles;
use crate::level::VERSION;
use crate::members::{self, Members};
use crate::peers::route::Me;
use crate::peers::wire::{AppendRequest, Wire};
use crate::peers::{MAX_MESSAGE, REMOVED_HEADER};
use crate::proposer::{Decision, Origin, Proposer, unavailable};
use crate::reads::ReadIndex;
use crate::snapshot;
use crate::standing::is_removed;
use crate::typ::{MerlinNode, NodeId, SnapshotData};

/// A snapshot beyond this is a mistake, not a catalog.
const MAX_SNAPSHOT: u64 = 1 << 30;

/// Who answers the questions of other daemons.
pub(crate) type Answerer =
    Arc<dyn Fn(Bytes) -> Pin<Box<dyn Future<Output = Bytes> + Send>> + Send + Sync>;

/// Answers other nodes.
#[derive(Clone)]
pub(crate) struct PeerService {
    pub(crate) me: Me,
    pub(crate) consensus: Consensus,
    pub(crate) proposer: Proposer,
    pub(crate) reads: ReadIndex,
    pub(crate) cluster: watch::Receiver<Arc<ClusterState>>,
    pub(crate) members: Members,
    pub(crate) troubles: Troubles,
    pub(crate) answerer: Arc<OnceLock<Answerer>>,
    /// Of the authority's rotation, as far as this node has followed it.
    pub(crate) authority_step: Arc<AtomicU64>,
}

type Reply = Result<Response<peer::Envelope>, Status>;

impl PeerService {
    pub(crate) fn server(self) -> peer::peer_server::PeerServer<Self> {
        peer::peer_server::PeerServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Lets a call pass that is meant for this node and comes from whom it says.
    fn accept<T>(
        &self,
        request: &Request<T>,
        route: Option<&peer::Route>,
    ) -> Result<NodeId, Status> {
        let from = self.me.accept(route)?;
        let claimed = PeerName {
            cluster: self.me.cluster,
            node: from,
        };
        verify_peer(request, claimed)?;
        // Its certificate is still good, but it has no say any more.
        if is_removed(&self.consensus, &self.cluster.borrow(), from) {
            let why = format!("node {from} was removed from the cluster");
            let mut refusal = Status::permission_denied(why);
            refusal
                .metadata_mut()
                .insert(REMOVED_HEADER, MetadataValue::from_static("true"));
            return Err(refusal);
        }
        // And so is this node's, to whoever does not know yet.
        if let Some(why) = self.members.standing().words() {
            return Err(Status::unavailable(why));
        }
        Ok(from)
    }

    /// What keeps a node waiting that is to become a member.
    async fn let_in(&self, from: NodeId, knock: peer::KnockRequest) -> peer::KnockAnswer {
        let peer::KnockRequest { name, addr } = knock;
        let at = MerlinNode { name, addr };
        let found = self.members.find(from, &at).await;
        match self.consensus.leadership() {
            Leadership::Leading => {
                let moved = match found {
                    Ok(()) => self.members.moved(from, at).await,
                    Err(trouble) => Err(trouble),
                };
                let trouble = moved.err().or_else(|| self.troubles.of(from));
                peer::KnockAnswer {
                    leader: None,
                    trouble: trouble.unwrap_or_default(),
                }
            }
            Leadership::Following(leader) => peer::KnockAnswer {
                leader: Some(peer::Member {
                    id: leader.id,
                    advertise_addr: leader.addr,
                    ..Default::default()
                }),
                trouble: String::new(),
            },
            Leadership::None { reason } => peer::KnockAnswer {
                leader: None,
                trouble: reason,
            },
        }
    }

    fn open<Q: Wire>(&self, request: Request<peer::Envelope>) -> Result<(NodeId, Q), Status> {
        let from = self.accept(&request, request.get_ref().route.as_ref())?;
        let question = Q::decode(request.into_inner().payload);
        Ok((from, question.map_err(|error| undecodable(&error))?))
    }

    #[expect(clippy::unnecessary_wraps, reason = "what a gRPC handler answers")]
    fn reply(&self, to: NodeId, answer: &impl Wire) -> Reply {
        Ok(Response::new(peer::Envelope {
            route: Some(self.me.to(to)),
            payload: answer.encode(),
        }))
    }

    async fn decide(&self, request: peer::ProposeRequest) -> Result<Vec<peer::Decision>, Status> {
        let deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
        let body = request.proposal.and_then(|proposal| proposal.body);
        match body.ok_or_else(|| Status::invalid_argument("nothing was proposed"))? {
            log::proposal::Body::Commands(batch) => {
                let decisions = batch.commands.into_iter().map(|command| async {
                    let decision = self.decide_one(command, deadline).await;
                    peer::Decision {
                        decision: Some(decision_to_proto(decision)),
                    }
                });
                Ok(futures::future::join_all(decisions).await)
            }
            log::proposal::Body::Cluster(command) => {
                let command =
                    ClusterCommand::try_from(command).map_err(|error| undecodable(&error))?;
                let ClusterCommand { by, change, .. } = command;
                let decided = match self.consensus.leadership() {
                    Leadership::Leading => self.consensus.write_cluster(change, by).await,
                    _ => Err(unavailable("this node is not the leader")),
                };
                Ok(vec![peer::Decision {
                    decision: Some(cluster_decision_to_proto(decided)),
                }])
            }
        }
    }

    async fn decide_one(&self, command: log::Command, deadline: Instant) -> Decision {
        // Nothing enters the log that this version could not take out of it again.
        if let Err(error) = Command::try_from(&command) {
            let reason = format!("the leader does not understand the command: {error}");
            return Err(unavailable(reason));
        }
        self.proposer.propose(command, Origin::Peer, deadline).await
    }
}

fn undecodable(error: &dyn std::error::Error) -> Status {
    Status::invalid_argument(format!("the message is not understood: {error}"))
}

fn stopped(error: &dyn std::error::Error) -> Status {
    Status::internal(format!("the node's store has failed: {error}"))
}

#[tonic::async_trait]
impl peer::peer_server::Peer for PeerService {
    async fn hello(&self, request: Request<peer::Envelope>) -> Reply {
        let (from, asked) = self.open::<peer::HelloRequest>(request)?;
        let called_back = match asked.call_back_at.as_str() {
            "" => None,
            addr => Some(self.members.call_back(from, addr).await),
        };
        let greeting = peer::Greeting {
            level: self.consensus.levels.own.number(),
            version: VERSION.to_owned(),
            authority_step: self.authority_step.load(Ordering::Relaxed),
            called_back,
            process: self.members.peers.process(),
        };
        self.reply(from, &greeting)
    }

    async fn append_entries(&self, request: Request<peer::Envelope>) -> Reply {
        let (from, question) = self.open::<AppendRequest>(request)?;
        self.consensus.hear();
        let answer = self.consensus.raft.append_entries(question).await;
        self.reply(from, &answer.map_err(|error| stopped(&error))?)
    }

    async fn vote(&self, request: Request<peer::Envelope>) -> Reply {
        let (from, question) = self.open::<VoteRequest<NodeId>>(request)?;
        let answer = self.consensus.raft.vote(question).await;
        self.reply(from, &answer.map_err(|error| stopped(&error))?)
    }

    async fn install_snapshot(&self, request: Request<Streaming<peer::SnapshotChunk>>) -> Reply {
        // Of whom the chunks come is known once the first is here; that anyone known sends them,
        // before.
        let (metadata, extensions, mut chunks) = request.into_parts();
        let first = chunks.message().await?.unwrap_or_default();
        let request = Request::from_parts(metadata, extensions, ());
        let from = self.accept(&request, first.route.as_ref())?;
        self.consensus.hear();
        let header = peer::SnapshotHeader::decode(first.header.clone());
        let header = header.map_err(|error| undecodable(&error))?;
        let vote = header.vote.as_ref().map(vote_from_proto);
        let vote = vote.ok_or_else(|| Status::invalid_argument("a snapshot without a vote"))?;
        let bytes = collect(first.data, chunks, header.length).await?;

        let received = bytes.clone();
        let checked = tokio::task::spawn_blocking(move || snapshot::decode(&received)).await;
        let state = checked.map_err(|error| stopped(&error))?;
        let state = state.map_err(|error| Status::data_loss(format!("the snapshot: {error}")))?;
        let snapshot = Snapshot {
            meta: snapshot::meta(&state),
            snapshot: Box::new(SnapshotData(bytes)),
        };
        let answer = self.consensus.raft.install_full_snapshot(vote, snapshot);
        let answer = answer.await.map_err(|error| stopped(&error))?;
        self.reply(from, &answer)
    }

    async fn propose(&self, request: Request<peer::Envelope>) -> Reply {
        let (from, question) = self.open::<peer::ProposeRequest>(request)?;
        let decisions = self.decide(question).await?;
        self.reply(from, &peer::Decisions { decisions })
    }

    async fn read_index(&self, request: Request<peer::Envelope>) -> Reply {
        let (from, ()) = self.open(request)?;
        // The caller's deadline ends this call.
        let index = self.reads.confirm(Origin::Peer).await;
        let index = index.map_err(|error| Status::unavailable(error.to_string()))?;
        self.reply(from, &peer::ReadPosition { index })
    }

    async fn ask(&self, request: Request<peer::Envelope>) -> Reply {
        let (from, question) = self.open::<Bytes>(request)?;
        let answerer = self.answerer.get();
        let answerer = answerer.ok_or_else(|| Status::unavailable("the daemon is starting"))?;
        let answer = answerer(question).await;
        self.reply(from, &answer)
    }

    async fn change(&self, request: Request<peer::Envelope>) -> Reply {
        let (from, question) = self.open::<peer::ChangeRequest>(request)?;
        let asked = members::request_from_proto(question).ok_or_else(|| {
            Status::unimplemented("the leader's version of merlin does not know this change")
        })?;
        // Goes on when the caller does not wait for it: what was begun is better finished.
        let members = self.members.clone();
        let changed = tokio::spawn(async move { members.change(asked, Origin::Peer).await });
        let changed = changed.await.map_err(|error| stopped(&error))?;
        self.reply(from, &members::answer_to_proto(changed))
    }

    async fn take_over(&self, request: Request<peer::Envelope>) -> Reply {
        let (from, question) = self.open::<peer::TakeOverRequest>(request)?;
        self.reply(from, &handover::take_over(&self.consensus, question).await)
    }

    async fn knock(&self, request: Request<peer::Envelope>) -> Reply {
        let (from, question) = self.open::<peer::KnockRequest>(request)?;
        self.reply(from, &self.let_in(from, question).await)
    }
}

async fn collect(
    first: Bytes,
    mut chunks: Streaming<peer::SnapshotChunk>,
    length: u64,
) -> Result<Bytes, Status> {
    let wrong = || Status::invalid_argument("the snapshot is not as long as it was announced");
    let length = usize::try_from(length.min(MAX_SNAPSHOT)).unwrap_or(usize::MAX);
    let mut bytes = BytesMut::from(&first[..]);
    while let Some(chunk) = chunks.message().await? {
        bytes.extend_from_slice(&chunk.data);
        if bytes.len() > length {
            return Err(wrong());
        }
    }
    if bytes.len() == length {
        Ok(bytes.freeze())
    } else {
        Err(wrong())
    }
}

// === decisions on the wire ===

use peer::decision::Decision as Message;

fn decision_to_proto(decision: Decision) -> Message {
    match decision {
        Ok(reply) => Message::Answer((&Ok(reply)).into()),
        Err(ProposeError::Rejected(rejection)) => Message::Answer((&Err(rejection)).into()),
        Err(error) => error_to_proto(error),
    }
}

fn cluster_decision_to_proto(decision: Result<ClusterAnswer, ProposeError>) -> Message {
    match decision {
        Ok(answer) => Message::Cluster((&answer).into()),
        Err(error) => error_to_proto(error),
    }
}

fn error_to_proto(error: ProposeError) -> Message {
    match error {
        ProposeError::Unavailable { reason } => Message::Unavailable(reason),
        ProposeError::Unknown { reason } => Message::Unknown(reason),
        ProposeError::Outdated { reason } => Message::Outdated(reason),
        // Checked where the command was accepted first.
        error @ (ProposeError::TooLarge { .. } | ProposeError::Rejected(_)) => {
            Message::Unavailable(error.to_string())
        }
    }
}
