//! Whether this node still belongs to its cluster.
//!
//! A node that was removed learns it from whoever refuses its calls, or from the log. It then stops
//! taking part for good, remembers it on its disk, and keeps the catalog it last had, so that the
//! data plane goes on as before.

use std::sync::Arc;

use tokio::sync::watch;

use crate::cluster::ClusterState;
use crate::consensus::Consensus;
use crate::datadir::DataDir;
use crate::typ::NodeId;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    #[default]
    Member,
    /// The cluster has removed this node.
    Removed,
    /// This node has left, and its data directory is nobody's.
    Left,
}

impl Standing {
    /// Why a node that is no member takes no part, and what can be done about it.
    pub fn words(self) -> Option<&'static str> {
        match self {
            Self::Member => None,
            Self::Removed => Some(
                "this node was removed from its cluster and serves with the catalog it last had: \
                 bring it back with `merlin cluster join` and a new token from a member, or stop \
                 merlin here",
            ),
            Self::Left => Some(
                "this node has left its cluster and serves with the catalog it last had: stop \
                 merlin here, or join a cluster with `merlin cluster join` and a token",
            ),
        }
    }
}

/// Where it becomes known that this node is no member any more. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Dismissal(Arc<watch::Sender<Standing>>);

impl Dismissal {
    pub(crate) fn new(standing: Standing) -> Self {
        Self(Arc::new(watch::Sender::new(standing)))
    }

    pub(crate) fn standing(&self) -> Standing {
        *self.0.borrow()
    }

    /// There is no way back: a node comes back as a new one. One that leaves may be told first that
    /// it was removed.
    pub(crate) fn dismiss(&self, standing: Standing) {
        self.0.send_if_modified(|current| {
            let further = standing > *current;
            *current = standing.max(*current);
            further
        });
    }

    async fn dismissed(&self) -> Standing {
        let mut standing = self.0.subscribe();
        let dismissed = standing.wait_for(|now| *now != Standing::Member).await;
        let dismissed = dismissed.map(|standing| *standing);
        match dismissed {
            Ok(standing) => standing,
            // The sender is in `self`.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Stops taking part once this node is no member any more. Ends with consensus.
pub(crate) async fn run(
    consensus: Consensus,
    mut cluster: watch::Receiver<Arc<ClusterState>>,
    dismissal: Dismissal,
    dir: Arc<DataDir>,
) {
    let standing = loop {
        if is_removed(&consensus, &cluster.borrow_and_update(), consensus.me()) {
            dismissal.dismiss(Standing::Removed);
        }
        tokio::select! {
            standing = dismissal.dismissed() => break standing,
            changed = cluster.changed() => if changed.is_err() { return },
        }
    };
    if standing == Standing::Removed {
        tracing::warn!("this node was removed from its cluster; the kernel keeps its rules");
        // Without it, the next start has to be told again.
        if let Err(error) = dir.mark_removed() {
            tracing::warn!(%error, "the removal cannot be written down");
        }
    }
    consensus.stop().await;
}

/// Whether a node was a member, or on its way to be one, and is to be listened to no more. Until
/// the members agree on going without it, its vote still counts.
pub(crate) fn is_removed(consensus: &Consensus, cluster: &ClusterState, node: NodeId) -> bool {
    let metrics = consensus.raft.server_metrics();
    let metrics = metrics.borrow();
    let membership = metrics.membership_config.membership();
    cluster.enrollment.removed.contains_key(&node) && membership.get_node(&node).is_none()
}
