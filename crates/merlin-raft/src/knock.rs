//! A node that no leader calls asks around why, and one that has moved says so.
//!
//! A new node waits for the leader to call it, and would wait for ever and know nothing where the
//! leader cannot reach it. A learner that was removed would not even notice. Both ask: the members
//! they know, or those that let them in. Whoever asks says where it is.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use merlin_proto::peer;
use tokio::time::{sleep, timeout};

use crate::consensus::{Leadership, Uncalled};
use crate::members::Members;
use crate::peers::Target;
use crate::typ::MerlinNode;

/// Followers that lost their leader may name each other.
const MAX_ATTEMPTS: usize = 16;

pub(crate) struct Knocker {
    pub(crate) members: Members,
    /// Who was a member when this node was let in.
    pub(crate) introducers: Vec<Target>,
    pub(crate) here: Here,
    pub(crate) pause: Duration,
}

/// This node as it was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Here {
    pub(crate) node: MerlinNode,
    /// Nobody gave the address: it is one of this host's.
    pub(crate) guessed: bool,
}

impl Here {
    /// What the members should know of this node, who know this. A host with several addresses may guess
    /// another one at every start, and one without a network none that is of use.
    fn over(&self, known: &MerlinNode, has: impl Fn(IpAddr) -> bool) -> MerlinNode {
        let mut node = self.node.clone();
        let addr = |node: &MerlinNode| node.addr.parse::<SocketAddr>().ok();
        if self.guessed
            && node.addr != known.addr
            && let (Some(here), Some(there)) = (addr(&node), addr(known))
            && here.port() == there.port()
            && has(there.ip())
        {
            node.addr.clone_from(&known.addr);
        }
        node
    }
}

/// Whether this host has an address now.
fn has(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

impl Knocker {
    /// Runs until the store is shut down.
    pub(crate) async fn run(self) {
        let mut said = String::new();
        loop {
            let consensus = &self.members.consensus;
            self.members.peers.settle(&self.members.others());
            let uncalled = match consensus.leadership() {
                Leadership::None { .. } => self.ask_around().await.map(Uncalled::Anywhere),
                Leadership::Leading | Leadership::Following(_) if !self.has_moved() => None,
                Leadership::Leading => self.move_itself().await.err().map(Uncalled::Here),
                Leadership::Following(_) => self.ask_around().await.map(Uncalled::Here),
            };
            let gist = uncalled.as_ref().map_or_else(String::new, gist);
            if gist != said {
                match &uncalled {
                    Some(Uncalled::Anywhere(reason)) => {
                        tracing::warn!(reason, "no leader calls this node");
                    }
                    Some(Uncalled::Here(reason)) => {
                        tracing::warn!(reason, "the members do not take this node's new address");
                    }
                    None => {}
                }
            }
            said = gist;
            consensus.set_uncalled(uncalled);
            sleep(self.pause).await;
        }
    }

    async fn move_itself(&self) -> Result<(), String> {
        let this = self.this();
        let found = self.members.find_this(&this).await;
        found.map_err(|trouble| self.hint(trouble))?;
        let me = self.members.consensus.me();
        self.members.moved(me, this).await
    }

    /// Whether members look for this node elsewhere.
    fn has_moved(&self) -> bool {
        self.known_as().is_some_and(|known| known != self.this())
    }

    /// This node as the members should know it.
    fn this(&self) -> MerlinNode {
        match self.known_as() {
            Some(known) => self.here.over(&known, has),
            None => self.here.node.clone(),
        }
    }

    fn known_as(&self) -> Option<MerlinNode> {
        self.members.member(self.members.consensus.me())
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
        if trouble.contains(&self.here.node.addr) {
            trouble
                + "; is that address right (--advertise-addr), and no NAT or firewall in between?"
        } else {
            trouble
        }
    }

    async fn knock(&self, target: &Target) -> Result<peer::KnockAnswer, String> {
        let MerlinNode { name, addr } = self.this();
        let request = peer::KnockRequest { name, addr };
        let knocked = self.members.peers.knock(target, &request, self.pause);
        match timeout(self.pause, knocked).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("{target} does not answer")),
        }
    }

    fn known(&self) -> Vec<Target> {
        let members = self.members.others();
        if members.is_empty() {
            self.introducers.clone()
        } else {
            members
        }
    }
}

/// What is the same when only some seconds more have passed, or another node says it.
fn gist(uncalled: &Uncalled) -> String {
    let mut words = format!("{uncalled:?}");
    words.retain(|char| !char.is_ascii_digit());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(addr: &str) -> MerlinNode {
        MerlinNode {
            name: "n1".into(),
            addr: addr.into(),
        }
    }

    #[test]
    fn a_guess_does_not_replace_an_address_that_is_still_good() {
        let known = node("192.0.2.1:4284");
        let over = |addr: &str, guessed, has: bool| {
            let node = node(addr);
            Here { node, guessed }.over(&known, |_| has).addr
        };
        for (addr, guessed, has, expected) in [
            ("192.0.2.9:4284", false, true, "192.0.2.9:4284"),
            ("192.0.2.9:4284", true, true, "192.0.2.1:4284"),
            ("192.0.2.9:4284", true, false, "192.0.2.9:4284"),
            // Nobody listens there any more.
            ("192.0.2.1:4999", true, true, "192.0.2.1:4999"),
        ] {
            assert_eq!(over(addr, guessed, has), expected);
        }
        assert!(has([127, 0, 0, 1].into()));
        assert!(!has([192, 0, 2, 1].into()));
    }

    #[test]
    fn what_is_wrong_is_said_again_when_more_than_its_numbers_changes() {
        let said = |seconds| {
            gist(&Uncalled::Anywhere(format!(
                "node 1 is unheard for {seconds} s"
            )))
        };
        assert_eq!(said(9), said(10));
        assert_ne!(
            said(9),
            gist(&Uncalled::Anywhere("node 1 does not answer".into()))
        );
        assert_ne!(
            said(9),
            gist(&Uncalled::Here("node 1 is unheard for 9 s".into()))
        );
    }
}
