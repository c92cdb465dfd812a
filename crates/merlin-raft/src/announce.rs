//! Tells the log who leads, once for each change.

use tracing::{info, warn};

use crate::consensus::Consensus;
use crate::typ::NodeId;

/// Runs as long as consensus does.
pub(crate) async fn run(consensus: Consensus) {
    let mut metrics = consensus.raft.server_metrics();
    let mut announced: Option<Option<NodeId>> = None;
    loop {
        let (me, term, leader) = {
            let metrics = metrics.borrow_and_update();
            (
                metrics.id,
                metrics.vote.leader_id().term,
                metrics.current_leader,
            )
        };
        if announced != Some(leader) {
            match leader {
                Some(leader) if leader == me => info!(term, "this node leads the cluster"),
                Some(leader) => info!(term, leader, "following the leader"),
                // Nothing was known before: that is no loss.
                None if announced.is_none() => {}
                None => warn!(term, "there is no leader; the kernel keeps its rules"),
            }
            announced = Some(leader);
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}
