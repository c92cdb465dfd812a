//! Tells the log who leads, once for each change.

use tracing::{info, warn};

use crate::consensus::Consensus;
use crate::typ::{NodeId, Vote};

/// Runs as long as consensus does.
pub(crate) async fn run(consensus: Consensus) {
    let mut metrics = consensus.raft.server_metrics();
    let mut announced: Option<Option<NodeId>> = None;
    loop {
        let (me, (term, leader)) = {
            let metrics = metrics.borrow_and_update();
            (metrics.id, leadership(&metrics.vote))
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

/// The term and who leads it, as this node has it on its disk. `current_leader` is ahead of that while the
/// disk is slow: a leader of another term.
fn leadership(vote: &Vote) -> (u64, Option<NodeId>) {
    let id = vote.leader_id();
    let leader = id.voted_for().filter(|_| vote.is_committed());
    (id.term, leader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_told_with_its_own_term_and_a_candidate_is_none() {
        assert_eq!(leadership(&Vote::new_committed(7, 3)), (7, Some(3)));
        assert_eq!(leadership(&Vote::new(8, 5)), (8, None));
        assert_eq!(leadership(&Vote::default()), (0, None));
    }
}
