//! A node that no leader calls asks around why.
//!
//! A new node waits for the leader to call it, and would wait for ever and know nothing where the
//! leader cannot reach it. A learner that was removed would not even notice. Both ask: the members
//! they know, or those that let them in.

use std::collections::VecDeque;
use std::time::Duration;

use merlin_proto::peer;
use tokio::time::{sleep, timeout};

use crate::consensus::{Consensus, Leadership};
use crate::peers::{Peers, Target};
use crate::typ::{MerlinNode, NodeId};

/// Followers that lost their leader may name each other.
const MAX_ATTEMPTS: usize = 16;

pub(crate) struct Knocker {
    pub(crate) consensus: Consensus,
    pub(crate) peers: Peers,
    /// Who was a member when this node was let in.
    pub(crate) introducers: Vec<Target>,
    pub(crate) this: MerlinNode,
    pub(crate) pause: Duration,
}

impl Knocker {
    /// Runs until the store is shut down.
    pub(crate) async fn run(self) {
        let mut said = None;
        loop {
            if matches!(self.consensus.leadership(), Leadership::None { .. }) {
                let trouble = self.ask_around().await;
                if trouble.is_some() && trouble != said {
                    let reason = trouble.as_deref().unwrap_or_default();
                    tracing::warn!(reason, "no leader calls this node");
                }
                said.clone_from(&trouble);
                self.consensus.wait_because(trouble);
            }
            sleep(self.pause).await;
        }
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
                    let hint = if answer.trouble.contains(&self.this.addr) {
                        "; is that address right (--advertise-addr), and no NAT or firewall in \
                         between?"
                    } else {
                        ""
                    };
                    trouble = Some(format!("{target} says: {}{hint}", answer.trouble));
                }
                Err(reason) => trouble = trouble.or(Some(reason)),
            }
        }
        trouble
    }

    async fn knock(&self, target: &Target) -> Result<peer::KnockAnswer, String> {
        let MerlinNode { name, addr } = self.this.clone();
        let request = peer::KnockRequest { name, addr };
        let knocked = self.peers.knock(target, &request, self.pause);
        match timeout(self.pause, knocked).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("{target} does not answer")),
        }
    }

    fn known(&self) -> Vec<Target> {
        let me = self.consensus.me();
        let metrics = self.consensus.raft.metrics();
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
