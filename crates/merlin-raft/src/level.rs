//! What nodes of different versions can do together.
//!
//! Every command needs a level, and every node can apply those up to one. The cluster has agreed on
//! a level that all its members can apply, and its leader logs nothing that needs more; so a
//! version can be replaced node by node. Once the last member can do more, the leader raises it.
//! It never falls, and who knows less than the cluster has agreed on is not let in.
//!
//! ```text
//! 1   the catalog, founding, join tokens, members
//! 2   agreeing on a level; clients of the API
//! 3   replacing the certificate authority
//! ```
//! A level is added here when a command or what it does is added that a node of the level before
//! cannot apply exactly as one of the new level does.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use merlin_model::store::ProposeError;
use tokio::sync::watch;

use crate::cluster::{ClusterChange, ClusterState};
use crate::consensus::Metrics;
use crate::peers::{Peers, Target};
use crate::store::RaftStore;
use crate::typ::{MerlinNode, NodeId};

/// A set of commands, which includes those of all levels below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u32);

impl Level {
    /// What every version can do.
    pub const FIRST: Self = Self(1);
    /// What this version can do.
    pub const LATEST: Self = Self(3);

    /// None for a level that this version does not know.
    pub fn new(level: u32) -> Option<Self> {
        let level = Self(level);
        (Self::FIRST..=Self::LATEST)
            .contains(&level)
            .then_some(level)
    }

    pub const fn number(self) -> u32 {
        self.0
    }

    /// From a message, where earlier versions said nothing. It may be a later version's.
    pub(crate) fn of_message(level: u32) -> Self {
        Self(level).max(Self::FIRST)
    }
}

impl Default for Level {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ClusterChange {
    /// What a node has to know to apply it.
    pub(crate) fn level(&self) -> Level {
        match self {
            Self::Found(founding) => founding.level,
            Self::Enrollment(_) => Level::FIRST,
            Self::Client(_) => Level(2),
            Self::Rotate(..) => Level(3),
            Self::Raise(level) => *level,
        }
    }
}

/// The commands that the cluster uses, as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LevelStatus {
    /// What all members can apply.
    pub agreed: Level,
    /// What this node could.
    pub known: Level,
    /// The members that keep the cluster from that, in words.
    pub behind: Vec<String>,
}

impl RaftStore {
    /// What commands the cluster uses. Asks the other members only while versions differ.
    pub async fn levels(&self) -> LevelStatus {
        let consensus = &self.inner.consensus;
        let (agreed, known) = (consensus.levels.agreed(), consensus.levels.own);
        let behind = if agreed < known {
            let members = members(&consensus.raft.metrics().borrow());
            consensus.levels.behind(known, members).await
        } else {
            Vec::new()
        };
        LevelStatus {
            agreed,
            known,
            behind,
        }
    }
}

/// What a node says of itself when it is asked whether it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) level: Level,
    /// Of merlin; empty in early ones.
    pub(crate) version: String,
    /// The step of the authority's rotation that it has followed.
    pub(crate) authority_step: u64,
}

/// How long a member may take to answer that is there.
const ASK: Duration = Duration::from_secs(1);

/// The version of merlin this is built as.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The level that this node can do, and the one that the cluster has agreed on.
#[derive(Clone, Debug)]
pub(crate) struct Levels {
    pub(crate) own: Level,
    pub(crate) cluster: watch::Receiver<Arc<ClusterState>>,
    pub(crate) peers: Peers,
}

impl Levels {
    pub(crate) fn agreed(&self) -> Level {
        let cluster = self.cluster.borrow();
        match cluster.founding {
            Some(_) => cluster.level,
            // Nobody to agree with.
            None => self.own,
        }
    }

    /// Whether a command may be logged; otherwise in words what has to be done first.
    pub(crate) async fn allow(
        &self,
        needed: Level,
        metrics: &watch::Receiver<Metrics>,
    ) -> Result<(), ProposeError> {
        let agreed = self.agreed();
        if needed <= agreed {
            return Ok(());
        }
        let members = members(&metrics.borrow());
        let behind = self.behind(needed, members).await;
        let reason = match behind.as_slice() {
            [] => "the cluster is about to agree on it, try again".to_owned(),
            behind => format!("upgrade {} first", behind.join(", ")),
        };
        Err(ProposeError::Outdated {
            reason: format!(
                "this needs commands of level {needed}, the cluster has agreed on level {agreed}: \
                 {reason}"
            ),
        })
    }

    /// The members that keep the cluster from a level, in words.
    async fn behind(&self, needed: Level, members: Vec<(NodeId, MerlinNode)>) -> Vec<String> {
        let suffices = |greeting: &Greeting| greeting.level >= needed;
        behind(&self.peers, members, self.own >= needed, suffices).await
    }

    /// The highest level that all of these can do; none while one of them does not answer.
    pub(crate) async fn common(&self, members: Vec<(NodeId, MerlinNode)>) -> Option<Level> {
        let asked = members.into_iter().map(|(id, node)| async move {
            if id == self.peers.this_node() {
                return Some(self.own);
            }
            let greeting = self.peers.hello(&Target::new(id, &node), ASK).await;
            Some(greeting.ok()?.level)
        });
        let levels: Option<Vec<_>> = join_all(asked).await.into_iter().collect();
        levels?.into_iter().min()
    }
}

/// The members that do not say what suffices, in words. Of this node that is known.
pub(crate) async fn behind(
    peers: &Peers,
    members: Vec<(NodeId, MerlinNode)>,
    own_suffices: bool,
    suffices: impl Fn(&Greeting) -> bool,
) -> Vec<String> {
    let suffices = &suffices;
    let asked = members.into_iter().map(|(id, node)| async move {
        let named = format!("node {id} ({})", node.name);
        if id == peers.this_node() {
            return (!own_suffices).then_some(named);
        }
        match peers.hello(&Target::new(id, &node), ASK).await {
            Ok(greeting) if suffices(&greeting) => None,
            Ok(_) => Some(named),
            Err(_) => Some(format!("{named}, which does not answer")),
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

pub(crate) fn members(metrics: &Metrics) -> Vec<(NodeId, MerlinNode)> {
    let membership = metrics.membership_config.membership();
    membership
        .nodes()
        .map(|(id, node)| (*id, node.clone()))
        .collect()
}

#[cfg(test)]
mod tests;
