//! Questions every member answers.

use merlin_proto::v1;

use crate::node::Node;

/// This node's status; members do not ask each other yet.
pub(crate) async fn status(node: &Node) -> Vec<v1::NodeStatus> {
    vec![node.status()]
}

/// This node's live table; members do not ask each other yet.
pub(crate) async fn live(node: &Node, request: v1::LiveRequest) -> Vec<v1::NodeTable> {
    vec![node.live(&request).await]
}
