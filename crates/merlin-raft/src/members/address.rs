//! Where nodes are reached, when that changes.
//!
//! A node that is started with another name or address than is known of it tells the members. An
//! address that is wrong would cut a member off, so it counts once a member has reached it there; the
//! leader cannot call itself, and has others do it.
//!
//! ```text
//! knocks ─▶ called there, and it is that node ─▶ every call goes there ─▶ in the log: all know it
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
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
    /// Looks for a member where it says that it is. Fails if it is not there.
    pub(crate) async fn find(&self, node: NodeId, at: &MerlinNode) -> Result<(), String> {
        let Some(known) = self.member(node) else {
            // Who is no member yet is called before it becomes one.
            return Ok(());
        };
        if known.addr != at.addr {
            let target = Target::new(node, at);
            let tried = self.try_out(&target, self.consensus.isolation() / 2).await;
            tried.map_err(|reason| stays(&known, &reason))?;
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
                Ok(()) => return Ok(()),
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
        let tried = self.try_out(&target, self.consensus.isolation() / 4).await;
        peer::CalledBack {
            trouble: tried.err().unwrap_or_default(),
        }
    }

    async fn try_out(&self, target: &Target, patience: Duration) -> Result<(), String> {
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
    ) -> Result<(), String> {
        let called = timeout(patience, self.peers.call_back(other, addr, patience)).await;
        match called {
            Ok(Ok(Some(peer::CalledBack { trouble }))) if trouble.is_empty() => Ok(()),
            Ok(Ok(Some(peer::CalledBack { trouble }))) => Err(format!("{other} says: {trouble}")),
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

    fn others(&self) -> Vec<Target> {
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

fn is_loopback(addr: &str) -> bool {
    let addr: Result<SocketAddr, _> = addr.parse();
    addr.is_ok_and(|addr| addr.ip().is_loopback())
}
