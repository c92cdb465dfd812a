//! Changes of the members that an operator asks for.
//!
//! ```text
//! any node ──forward once──▶ leader: rules (pure) ─▶ decision in the log ─▶ keeper ─▶ consensus
//!                                       who answers?                          │
//!                            answer ◀── the membership is as decided ◀────────┘
//! ```
//! A decision is in the log before anything is done about it, so a leader that dies in between is
//! succeeded by one that goes on. The leader itself loses its vote only after it has handed over.

mod address;
mod rules;
mod wire;

use futures::future::join_all;
use merlin_model::Actor;
use merlin_model::store::ProposeError;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::cluster::ClusterState;
use crate::consensus::{Consensus, Leadership};
use crate::handover::Handover;
use crate::identity::{EnrollmentCommand, Role};
use crate::peers::{CallError, Peers, Target};
use crate::proposer::Origin;
use crate::registry::Registry;
use crate::typ::{Membership, NodeId};

pub(crate) use self::rules::{CAUGHT_UP, Roll};
use self::rules::{Force, Refusal};
pub(crate) use self::wire::{answer_to_proto, request_from_proto};

/// What an operator wants changed. Nodes are named by id or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Remove {
        node: String,
        /// Even when the rest may be unable to decide anything.
        force: bool,
    },
    Promote(String),
    Demote(String),
    /// To whichever voter follows best, if none is named.
    TransferLeader(Option<String>),
}

/// A change, who wants it, and until when.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) change: Change,
    pub(crate) by: Actor,
    pub(crate) deadline: Instant,
}

/// A change that has been made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub node: NodeId,
    pub name: String,
    pub before: BTreeSet<NodeId>,
    pub after: BTreeSet<NodeId>,
    /// There was nothing to do.
    pub already: bool,
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It would not be right, and nothing was begun.
    #[error("{0}")]
    Refused(String),
    /// It cannot be decided now, and nothing was begun.
    #[error("{0}")]
    Unavailable(String),
    /// It may or may not happen yet.
    #[error("{0}")]
    Unknown(String),
}

/// The members, as this node has them changed.
#[derive(Clone, Debug)]
pub(crate) struct Members {
    pub(crate) consensus: Consensus,
    pub(crate) peers: Peers,
    pub(crate) registry: Registry,
    pub(crate) handover: Handover,
    pub(crate) cluster: watch::Receiver<Arc<ClusterState>>,
}

impl Members {
    pub(crate) async fn change(
        &self,
        asked: Asked,
        origin: Origin,
    ) -> Result<Changed, ChangeError> {
        match self.consensus.leadership() {
            Leadership::Leading => self.lead(asked).await,
            Leadership::Following(leader) if origin == Origin::Here => {
                self.forward(&leader, asked).await
            }
            Leadership::Following(_) => Err(ChangeError::Unavailable(
                "this node is not the leader".into(),
            )),
            Leadership::None { reason } => Err(ChangeError::Unavailable(reason)),
        }
    }

    async fn lead(&self, asked: Asked) -> Result<Changed, ChangeError> {
        let Asked {
            change,
            by,
            deadline,
        } = asked;
        let roll = self.roll();
        let me = self.consensus.me();
        let node = match &change {
            Change::Remove { node, .. } | Change::Promote(node) | Change::Demote(node) => {
                Some(roll.find(node)?)
            }
            Change::TransferLeader(to) => to.as_ref().map(|to| roll.find(to)).transpose()?,
        };
        let alive = self.alive(&roll, node, deadline).await;
        let (node, decision, after) = match (&change, node) {
            (Change::TransferLeader(_), wanted) => {
                let to = roll.successor(me, wanted, &alive)?;
                if to != me {
                    let leader = self.hand_over(to, deadline).await?;
                    if leader != to {
                        return Err(ChangeError::Unavailable(format!(
                            "node {leader} was elected instead of node {to}"
                        )));
                    }
                }
                return Ok(roll.changed(to, roll.voters.clone(), to == me));
            }
            (Change::Remove { force, .. }, Some(node)) => {
                let force = if *force { Force::Yes } else { Force::No };
                let after = roll.without(node, &alive, force)?;
                (node, EnrollmentCommand::RemoveNode(node), after)
            }
            (Change::Demote(_), Some(node)) => {
                let after = roll.without(node, &alive, Force::Never)?;
                (node, EnrollmentCommand::SetRole(node, Role::Learner), after)
            }
            (Change::Promote(_), Some(node)) => {
                let after = roll.with(node, &alive)?;
                (node, EnrollmentCommand::SetRole(node, Role::Voter), after)
            }
            (_, None) => unreachable!("every other change names a node"),
        };
        if node == me && !after.contains(&me) {
            let successor = roll.successor(me, None, &alive)?;
            let leader = self.target(self.hand_over(successor, deadline).await?)?;
            let asked = Asked {
                change,
                by,
                deadline,
            };
            return self.forward(&leader, asked).await;
        }
        let wanted = match &decision {
            EnrollmentCommand::SetRole(_, role) => Some(*role),
            _ => None,
        };
        let decided = self.cluster.borrow().enrollment.wanted(node);
        let already = wanted.is_some() && roll.role(node) == wanted && decided == wanted;
        if !already {
            self.registry.decide(decision, by, deadline).await?;
            self.done(node, wanted, deadline).await?;
        }
        Ok(roll.changed(node, after, already))
    }

    /// Waits until the membership is as it was decided, and that is final.
    async fn done(
        &self,
        node: NodeId,
        wanted: Option<Role>,
        deadline: Instant,
    ) -> Result<(), ChangeError> {
        let mut metrics = self.consensus.raft.metrics();
        let done = metrics.wait_for(|metrics| {
            let config = &metrics.membership_config;
            let is_final = metrics.last_applied.as_ref() >= config.log_id().as_ref();
            is_final && is_as_wanted(config.membership(), node, wanted)
        });
        match timeout_at(deadline, done).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(ChangeError::Unknown(format!(
                "the cluster has decided about node {node} and does it as soon as it can; \
                 `merlin cluster status` shows what it waits for"
            ))),
        }
    }

    /// Gives who leads then.
    async fn hand_over(&self, to: NodeId, deadline: Instant) -> Result<NodeId, ChangeError> {
        let target = self.target(to)?;
        match timeout_at(deadline, self.handover.to(&target)).await {
            Ok(Ok(leader)) => Ok(leader),
            Ok(Err(reason)) => Err(ChangeError::Unavailable(format!(
                "the leadership stays with node {}: {reason}",
                self.consensus.me()
            ))),
            Err(_) => Err(ChangeError::Unknown(
                "the leadership did not change in time, and may yet".into(),
            )),
        }
    }

    async fn forward(&self, leader: &Target, asked: Asked) -> Result<Changed, ChangeError> {
        let left = asked.deadline.saturating_duration_since(Instant::now());
        let request = wire::request(asked, left);
        match self.peers.change(leader, &request, left).await {
            Ok(answer) => wire::answer(answer),
            Err(error @ CallError::NotSent { .. }) => {
                Err(ChangeError::Unavailable(error.to_string()))
            }
            Err(error @ CallError::NoAnswer { .. }) => Err(ChangeError::Unknown(error.to_string())),
        }
    }

    pub(crate) fn standing(&self) -> crate::Standing {
        self.consensus.standing()
    }

    pub(crate) fn roll(&self) -> Roll {
        let metrics = self.consensus.raft.metrics();
        Roll::read(&metrics.borrow(), &self.cluster.borrow())
    }

    /// Which of the voters, and of those meant, answer now.
    async fn alive(
        &self,
        roll: &Roll,
        meant: Option<NodeId>,
        deadline: Instant,
    ) -> BTreeSet<NodeId> {
        let me = self.consensus.me();
        let others = roll.voters.iter().copied().chain(meant);
        let others: BTreeSet<_> = others.filter(|id| *id != me).collect();
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = self.consensus.isolation().min(left / 2);
        let asked = others.into_iter().map(async |id| {
            let target = self.target(id).ok()?;
            let answer = timeout(patience, self.peers.hello(&target, patience)).await;
            answer.ok()?.ok().map(|_| id)
        });
        let answered = join_all(asked).await.into_iter().flatten();
        answered.chain([me]).collect()
    }

    fn target(&self, id: NodeId) -> Result<Target, Refusal> {
        let member = self.member(id);
        member
            .map(|node| Target::new(id, &node))
            .ok_or(Refusal::NotYet(id))
    }
}

impl Roll {
    fn changed(&self, node: NodeId, after: BTreeSet<NodeId>, already: bool) -> Changed {
        Changed {
            node,
            name: self.name(node).to_owned(),
            before: self.voters.clone(),
            after,
            already,
        }
    }
}

/// Whether a change of a node's role, or of its being a member, has been carried out.
fn is_as_wanted(membership: &Membership, node: NodeId, wanted: Option<Role>) -> bool {
    let votes = membership.voter_ids().any(|voter| voter == node);
    let as_wanted = match wanted {
        Some(Role::Voter) => votes,
        Some(Role::Learner) => !votes,
        None => membership.get_node(&node).is_none(),
    };
    as_wanted && membership.get_joint_config().len() == 1
}

impl From<Refusal> for ChangeError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.to_string())
    }
}

impl From<ProposeError> for ChangeError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Unavailable { reason } => Self::Unavailable(reason),
            ProposeError::Unknown { reason } => Self::Unknown(reason),
            error @ (ProposeError::Rejected(_)
            | ProposeError::TooLarge { .. }
            | ProposeError::Outdated { .. }) => Self::Refused(error.to_string()),
        }
    }
}
