//! Where nodes are reached, when that changes.
//!
//! A node that is started with another name or address than is known of it tells the members. An
//! address that is wrong would cut a member off, so it counts once a member has reached it there; the
//! leader cannot call itself, and has others do it. Nor does a node count that answers where it was as
//! well: a copy of its data directory, as of a cloned virtual machine, would vote and acknowledge in
//! its place.
//!
//! ```text
//! knocks ─▶ called there, and it is that node ─▶ every call goes there ─▶ in the log: all know it
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join;
use futures::stream::FuturesUnordered;
use merlin_model::Actor;
use merlin_proto::peer;
use openraft::ChangeMembers;
use tokio::time::{Instant, timeout};

use super::Members;
use crate::identity::EnrollmentCommand;
use crate::peers::Target;
use crate::typ::{MerlinNode, NodeId};

impl Members {
    /// Looks for a member where it says that it is. Fails if it is not there, or in both places.
    pub(crate) async fn find(&self, node: NodeId, at: &MerlinNode) -> Result<(), String> {
        let Some(known) = self.member(node) else {
            // Who is no member yet is called before it becomes one.
            return Ok(());
        };
        if known.addr != at.addr {
            let patience = self.consensus.isolation() / 2;
            let [new, old] = [at, &known].map(|place| Target::new(node, place));
            let (there, before) =
                join(self.try_out(&new, patience), self.try_out(&old, patience)).await;
            let there = there.map_err(|reason| stays(&known, &reason))?;
            if before.is_ok_and(|before| before != there) {
                return Err(stays(&known, &copied(node, &at.addr)));
            }
        }
        self.peers.find(node, &known.addr, &at.addr);
        Ok(())
    }

    /// The same for the node itself, which leads.
    pub(crate) async fn find_this(&self, at: &MerlinNode) -> Result<(), String> {
        let Some(known) = self.member(self.consensus.me()) else {
            return Ok(());
        };
        let patience = self.consensus.isolation() / 2;
        let others = self.others();
        if others.is_empty() && is_loopback(&at.addr) && !is_loopback(&known.addr) {
            // What it comes to without a network would be of no use to those who join later.
            return Err(stays(&known, "the new one is this host's alone"));
        }
        let asked = others
            .iter()
            .map(|other| self.reaches_back(other, &at.addr, patience));
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut trouble = Ok(());
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(process) if process == self.peers.process() => return Ok(()),
                Ok(_) => return Err(stays(&known, &copied(self.consensus.me(), &at.addr))),
                Err(reason) => trouble = Err(stays(&known, &reason)),
            }
        }
        trouble
    }

    /// Has the members know where a node was found.
    pub(crate) async fn moved(&self, node: NodeId, to: MerlinNode) -> Result<(), String> {
        let member = self.member(node);
        let is_member = member.is_some();
        let known = member.or_else(|| self.expected(node));
        let Some(known) = known.filter(|known| *known != to) else {
            return Ok(());
        };
        tracing::info!(node, from = %known, %to, "a node has moved");
        let MerlinNode { name, addr } = to.clone();
        let command = EnrollmentCommand::Move { node, name, addr };
        let deadline = Instant::now() + self.consensus.isolation();
        let decided = self.registry.decide(command, Actor::Node(node), deadline);
        decided.await.map_err(|error| error.to_string())?;
        if is_member {
            let moved = ChangeMembers::SetNodes([(node, to)].into());
            let _passage = self.consensus.pass().await;
            let moved = self.consensus.raft.change_membership(moved, true).await;
            moved.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Calls a node at an address that may become its own.
    pub(crate) async fn call_back(&self, node: NodeId, addr: &str) -> peer::CalledBack {
        let target = Target {
            id: node,
            addr: addr.to_owned(),
        };
        match self.try_out(&target, self.consensus.isolation() / 4).await {
            Ok(process) => peer::CalledBack {
                trouble: String::new(),
                process,
            },
            Err(trouble) => peer::CalledBack {
                trouble,
                process: 0,
            },
        }
    }

    async fn try_out(&self, target: &Target, patience: Duration) -> Result<u64, String> {
        match timeout(patience, self.peers.try_out(target, patience)).await {
            Ok(tried) => tried.map_err(|error| error.to_string()),
            Err(_) => Err(format!("{target} does not answer")),
        }
    }

    async fn reaches_back(
        &self,
        other: &Target,
        addr: &str,
        patience: Duration,
    ) -> Result<u64, String> {
        let called = timeout(patience, self.peers.call_back(other, addr, patience)).await;
        match called {
            Ok(Ok(Some(answer))) if answer.trouble.is_empty() => Ok(answer.process),
            Ok(Ok(Some(answer))) => Err(format!("{other} says: {}", answer.trouble)),
            Ok(Ok(None)) => Err(format!("{other} runs a version that does not try it")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("{other} does not answer")),
        }
    }

    pub(crate) fn member(&self, node: NodeId) -> Option<MerlinNode> {
        let metrics = self.consensus.raft.metrics();
        let metrics = metrics.borrow();
        metrics
            .membership_config
            .membership()
            .get_node(&node)
            .cloned()
    }

    pub(crate) fn others(&self) -> Vec<Target> {
        let metrics = self.consensus.raft.metrics();
        let metrics = metrics.borrow();
        let members = metrics.membership_config.membership().nodes();
        let others = members.filter(|(id, _)| **id != metrics.id);
        others.map(|(id, node)| Target::new(*id, node)).collect()
    }

    /// What a node that was let in, and is no member yet, said when it was.
    fn expected(&self, node: NodeId) -> Option<MerlinNode> {
        let cluster = self.cluster.borrow();
        let node = cluster.enrollment.nodes.get(&node)?;
        Some(MerlinNode {
            name: node.name.clone(),
            addr: node.addr.clone(),
        })
    }
}

fn stays(known: &MerlinNode, reason: &str) -> String {
    format!("{} stays its address: {reason}", known.addr)
}

fn copied(node: NodeId, addr: &str) -> String {
    format!(
        "node {node} runs there, and another process at {addr} that takes itself for it: end the \
         one whose data directory is a copy"
    )
}

fn is_loopback(addr: &str) -> bool {
    let addr: Result<SocketAddr, _> = addr.parse();
    addr.is_ok_and(|addr| addr.ip().is_loopback())
}
