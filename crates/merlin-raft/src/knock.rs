//! A node that no leader calls asks around why, and one that has moved says so.
//!
//! A new node waits for the leader to call it, and would wait for ever and know nothing where the
//! leader cannot reach it. A learner that was removed would not even notice. Both ask: the members
//! they know, or those that let them in. Whoever asks says where it is.

use std::collections::VecDeque;
use std::time::Duration;

use merlin_proto::peer;
use tokio::time::{sleep, timeout};

use crate::consensus::Leadership;
use crate::members::Members;
use crate::peers::Target;
use crate::typ::{MerlinNode, NodeId};

/// Followers that lost their leader may name each other.
const MAX_ATTEMPTS: usize = 16;

const NOT_MOVED: &str = "the members do not take this node's new address";

pub(crate) struct Knocker {
    pub(crate) members: Members,
    /// Who was a member when this node was let in.
    pub(crate) introducers: Vec<Target>,
    pub(crate) this: MerlinNode,
    pub(crate) pause: Duration,
}

impl Knocker {
    /// Runs until the store is shut down.
    pub(crate) async fn run(self) {
        let mut said = String::new();
        loop {
            let consensus = &self.members.consensus;
            let (what, trouble) = match consensus.leadership() {
                Leadership::None { .. } => ("no leader calls this node", self.ask_around().await),
                Leadership::Leading if self.has_moved() => {
                    (NOT_MOVED, self.move_itself().await.err())
                }
                Leadership::Following(_) if self.has_moved() => {
                    (NOT_MOVED, self.ask_around().await)
                }
                Leadership::Leading | Leadership::Following(_) => ("", None),
            };
            let reason = trouble.as_deref().unwrap_or_default();
            let gist = gist(what, reason);
            if trouble.is_some() && gist != said {
                tracing::warn!(reason, "{what}");
            }
            said = gist;
            consensus.wait_because(trouble);
            sleep(self.pause).await;
        }
    }

    async fn move_itself(&self) -> Result<(), String> {
        let found = self.members.find_this(&self.this).await;
        found.map_err(|trouble| self.hint(trouble))?;
        let me = self.members.consensus.me();
        self.members.moved(me, self.this.clone()).await
    }

    /// Whether members look for this node elsewhere.
    fn has_moved(&self) -> bool {
        let metrics = self.members.consensus.raft.metrics();
        let metrics = metrics.borrow();
        let known = metrics.membership_config.membership().get_node(&metrics.id);
        known.is_some_and(|known| *known != self.this)
    }

    /// Why this node is not called: the leader's words, or why nobody has any.
    async fn ask_around(&self) -> Option<String> {
        let mut ahead: VecDeque<_> = self.known().into();
        let mut asked = Vec::new();
        let mut trouble = None;
        while let Some(target) = ahead.pop_front() {
            if asked.contains(&target) || asked.len() == MAX_ATTEMPTS {
                continue;
            }
            asked.push(target.clone());
            match self.knock(&target).await {
                Ok(peer::KnockAnswer {
                    leader: Some(leader),
                    ..
                }) => ahead.push_front(Target {
                    id: leader.id,
                    addr: leader.advertise_addr,
                }),
                Ok(answer) if answer.trouble.is_empty() => return None,
                Ok(answer) => {
                    trouble = Some(self.hint(format!("{target} says: {}", answer.trouble)));
                }
                Err(reason) => trouble = trouble.or(Some(reason)),
            }
        }
        trouble
    }

    /// Adds to what is wrong what is wrong most often.
    fn hint(&self, trouble: String) -> String {
        if trouble.contains(&self.this.addr) {
            trouble
                + "; is that address right (--advertise-addr), and no NAT or firewall in between?"
        } else {
            trouble
        }
    }

    async fn knock(&self, target: &Target) -> Result<peer::KnockAnswer, String> {
        let MerlinNode { name, addr } = self.this.clone();
        let request = peer::KnockRequest { name, addr };
        let knocked = self.members.peers.knock(target, &request, self.pause);
        match timeout(self.pause, knocked).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("{target} does not answer")),
        }
    }

    fn known(&self) -> Vec<Target> {
        let consensus = &self.members.consensus;
        let me = consensus.me();
        let metrics = consensus.raft.metrics();
        let metrics = metrics.borrow();
        let members = metrics.membership_config.membership().nodes();
        let members = members.map(|(&id, node): (&NodeId, _)| Target::new(id, node));
        let members: Vec<_> = members.filter(|target| target.id != me).collect();
        if members.is_empty() {
            self.introducers.clone()
        } else {
            members
        }
    }
}

/// What is the same when only some seconds more have passed, or another node says it.
fn gist(what: &str, reason: &str) -> String {
    let words = what.chars().chain(reason.chars());
    words.filter(|char| !char.is_ascii_digit()).collect()
}
