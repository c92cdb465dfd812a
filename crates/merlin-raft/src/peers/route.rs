//! Who speaks to whom. A call that is not meant for this node is refused before it is read: a
//! wrong address, or a member of a copy of the cluster, must never be taken for a peer.

use merlin_proto::peer;
use tonic::Status;

use crate::identity::ClusterId;
use crate::typ::NodeId;

/// The version of what nodes say to each other.
pub(crate) const PROTOCOL: u32 = 1;

/// This node, as it introduces itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Me {
    pub(crate) cluster: ClusterId,
    pub(crate) incarnation: u64,
    pub(crate) node: NodeId,
}

impl Me {
    pub(crate) fn to(&self, to: NodeId) -> peer::Route {
        peer::Route {
            cluster_id: self.cluster.to_string(),
            incarnation: self.incarnation,
            from: self.node,
            to,
            protocol: PROTOCOL,
        }
    }

    /// Gives the caller's id if the call is meant for this node.
    pub(crate) fn accept(&self, route: Option<&peer::Route>) -> Result<NodeId, Status> {
        let refuse = |why: String| Err(Status::failed_precondition(why));
        let Some(route) = route else {
            return refuse("the call says neither whence nor where to".into());
        };
        let Self {
            cluster,
            incarnation,
            node,
        } = self;
        if route.protocol != PROTOCOL {
            return refuse(format!(
                "node {node} speaks version {PROTOCOL} of the peer protocol, not {}",
                route.protocol
            ));
        }
        if route.cluster_id != cluster.to_string() {
            return refuse(format!(
                "this is node {node} of cluster {cluster}, not of {}",
                route.cluster_id
            ));
        }
        if route.incarnation != *incarnation {
            return refuse(format!(
                "this node belongs to incarnation {incarnation} of the cluster, the caller to {}",
                route.incarnation
            ));
        }
        if route.to != *node {
            return refuse(format!("this is node {node}, not node {}", route.to));
        }
        if route.from == *node {
            return refuse(format!("node {node} was called in its own name"));
        }
        Ok(route.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me(node: NodeId) -> Me {
        Me {
            cluster: ClusterId::from_bytes([1; 16]),
            incarnation: 1,
            node,
        }
    }

    #[test]
    fn only_a_call_meant_for_this_node_is_accepted() {
        let route = me(1).to(2);
        assert_eq!(me(2).accept(Some(&route)).unwrap(), 1);
        let refusal = |route: Option<peer::Route>| {
            let refusal = me(2).accept(route.as_ref()).unwrap_err();
            refusal.message().to_owned()
        };
        let other = ClusterId::from_bytes([2; 16]).to_string();
        for (wrong, word) in [
            (
                peer::Route {
                    cluster_id: other,
                    ..route.clone()
                },
                "cluster",
            ),
            (
                peer::Route {
                    incarnation: 2,
                    ..route.clone()
                },
                "incarnation",
            ),
            (
                peer::Route {
                    to: 3,
                    ..route.clone()
                },
                "not node 3",
            ),
            (
                peer::Route {
                    from: 2,
                    ..route.clone()
                },
                "own name",
            ),
            (
                peer::Route {
                    protocol: 9,
                    ..route
                },
                "protocol",
            ),
        ] {
            let words = refusal(Some(wrong));
            assert!(words.contains(word), "{words}");
        }
        refusal(None);
    }
}
