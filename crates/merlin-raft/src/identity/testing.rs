//! What the tests of this module share: clusters that exist only as certificates.

use std::time::{SystemTime, UNIX_EPOCH};

use merlin_model::Timestamp;

use super::{Ca, ClusterId, NodeIdentity, PeerName};
use crate::typ::NodeId;

/// Certificates are checked against the real time in a handshake.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(since.as_millis()).unwrap())
}

pub(super) fn days_ago(days: u64) -> Timestamp {
    Timestamp(now().0 - days * 24 * 3600 * 1000)
}

pub(super) struct Cluster {
    pub(super) id: ClusterId,
    pub(super) ca: Ca,
}

impl Cluster {
    pub(super) fn new() -> Self {
        Self::named(ClusterId::random())
    }

    /// An id is easily copied; the authority's key is not.
    pub(super) fn named(id: ClusterId) -> Self {
        let ca = Ca::create(id, days_ago(365)).unwrap();
        Self { id, ca }
    }

    pub(super) fn name(&self, node: NodeId) -> PeerName {
        let cluster = self.id;
        PeerName { cluster, node }
    }

    pub(super) fn node(&self, node: NodeId) -> NodeIdentity {
        self.node_signed_at(node, now())
    }

    pub(super) fn node_signed_at(&self, node: NodeId, at: Timestamp) -> NodeIdentity {
        NodeIdentity::found(&self.ca, self.name(node), at).unwrap()
    }
}
