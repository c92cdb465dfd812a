//! The other nodes, as this one calls them.

use merlin_proto::log;
use tokio::time::Instant;

use crate::proposer::{Decision, same, unavailable};
use crate::typ::NodeId;

#[derive(Clone, Debug)]
pub(crate) struct Peers {}

impl Peers {
    pub(crate) async fn propose(
        &self,
        leader: NodeId,
        commands: Vec<log::Command>,
        _deadline: Instant,
    ) -> Vec<Decision> {
        let error = unavailable(format!("node {leader} leads, which this node cannot reach"));
        same(&error, commands.len())
    }

    pub(crate) async fn read_index(
        &self,
        leader: NodeId,
        _deadline: Instant,
    ) -> Result<u64, String> {
        Err(format!("node {leader} leads, which this node cannot reach"))
    }
}
