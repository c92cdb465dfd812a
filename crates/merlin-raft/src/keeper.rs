//! Brings the membership of consensus in line with what the cluster has decided about its nodes.
//!
//! Runs on every node and acts on the leader. Level-triggered: each pass looks at everything and
//! takes one step, so a leader that dies in the middle is succeeded by one that goes on.
//!
//! ```text
//! enrolled --answers at its address--> learner --has caught up, is to vote--> voter
//! ```
//!
//! Nobody is removed here: that a node is away says nothing about whether it comes back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::cluster::ClusterState;
use crate::consensus::{Consensus, Leadership, Metrics};
use crate::identity::Role;
use crate::peers::{Peers, Target};
use crate::typ::{Membership, MerlinNode, NodeId};

/// Entries a learner may lack and still count as caught up. It gets those before it has to vote.
const CAUGHT_UP: u64 = 64;

/// How long one change of the membership may take before the next pass looks again.
const STEP: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) consensus: Consensus,
    pub(crate) peers: Peers,
    pub(crate) cluster: watch::Receiver<Arc<ClusterState>>,
    /// Between two looks when nothing else gives cause for one.
    pub(crate) pause: Duration,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// A change was begun and not finished.
    Finish(BTreeSet<NodeId>),
    Introduce(NodeId, MerlinNode),
    Promote(NodeId, MerlinNode),
}

impl Keeper {
    /// Ends when the store does.
    pub(crate) async fn run(mut self) {
        let mut server = self.consensus.raft.server_metrics();
        loop {
            while self.consensus.leadership() == Leadership::Leading && self.pass().await {}
            tokio::select! {
                // All cancel safe: each only says that it is time to look.
                changed = server.changed() => if changed.is_err() { return },
                changed = self.cluster.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(self.pause) => {}
            }
        }
    }

    /// Takes the first of the possible steps that works. False when there is nothing to do, or
    /// nothing that works at the moment.
    async fn pass(&self) -> bool {
        let steps = {
            let metrics = self.consensus.raft.metrics();
            let metrics = metrics.borrow();
            plan(&metrics, &self.cluster.borrow())
        };
        for step in steps {
            match timeout(STEP, self.take(&step)).await {
                Ok(Ok(())) => return true,
                Ok(Err(reason)) => tracing::debug!(?step, reason, "membership step postponed"),
                Err(_) => tracing::warn!(?step, "membership step takes long"),
            }
        }
        false
    }

    async fn take(&self, step: &Step) -> Result<(), String> {
        match step {
            Step::Finish(voters) => {
                tracing::info!(?voters, "finishing a change of the voters");
                self.change(ChangeMembers::ReplaceAllVoters(voters.clone()))
                    .await
            }
            Step::Introduce(id, node) => {
                self.greet(*id, node).await?;
                tracing::info!(node = id, %node, "adding a node as a learner");
                let added = self.consensus.raft.add_learner(*id, node.clone(), false);
                added.await.map(drop).map_err(|error| error.to_string())
            }
            Step::Promote(id, node) => {
                // A voter that is away counts against the quorum from the moment it is one.
                self.greet(*id, node).await?;
                tracing::info!(node = id, %node, "promoting a learner to a voter");
                self.change(ChangeMembers::AddVoterIds(BTreeSet::from([*id])))
                    .await
            }
        }
    }

    async fn change(&self, change: ChangeMembers<NodeId, MerlinNode>) -> Result<(), String> {
        // Voters that lose their vote stay as learners.
        let changed = self.consensus.raft.change_membership(change, true).await;
        changed.map(drop).map_err(|error| error.to_string())
    }

    async fn greet(&self, id: NodeId, node: &MerlinNode) -> Result<(), String> {
        let target = Target::new(id, node);
        let answer = self.peers.hello(&target, self.pause).await;
        answer.map_err(|error| error.to_string())
    }
}

/// What there is to do, most urgent first.
fn plan(metrics: &Metrics, cluster: &ClusterState) -> Vec<Step> {
    let membership = metrics.membership_config.membership();
    if let [_, .., target] = &membership.get_joint_config()[..] {
        return vec![Step::Finish(target.clone())];
    }
    let steps =
        cluster
            .enrollment
            .nodes
            .iter()
            .filter_map(|(&id, node)| match membership.get_node(&id) {
                None => Some(Step::Introduce(
                    id,
                    MerlinNode {
                        name: node.name.clone(),
                        addr: node.addr.clone(),
                    },
                )),
                Some(known) => {
                    let wanted = node.role == Role::Voter && !is_voter(membership, id);
                    (wanted && caught_up(metrics, id)).then(|| Step::Promote(id, known.clone()))
                }
            });
    steps.collect()
}

fn is_voter(membership: &Membership, id: NodeId) -> bool {
    membership.voter_ids().any(|voter| voter == id)
}

fn caught_up(metrics: &Metrics, id: NodeId) -> bool {
    let matching = || {
        let replication = metrics.replication.as_ref()?;
        replication.get(&id)?.map(|at| at.index)
    };
    match (matching(), metrics.last_log_index) {
        (Some(matching), Some(last)) => matching + CAUGHT_UP >= last,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use openraft::StoredMembership;

    use super::*;
    use crate::identity::{EnrolledNode, KeyFingerprint, TokenId};
    use crate::state::tests::at;

    fn node(id: NodeId) -> MerlinNode {
        MerlinNode {
            name: format!("n{id}"),
            addr: format!("192.0.2.{id}:4284"),
        }
    }

    /// What a leader sees, whose log ends at entry 100.
    fn metrics(configs: &[&[NodeId]], nodes: &[NodeId], matching: &[(NodeId, u64)]) -> Metrics {
        let configs = configs.iter().map(|ids| ids.iter().copied().collect());
        let nodes: BTreeMap<_, _> = nodes.iter().map(|id| (*id, node(*id))).collect();
        let membership = Membership::new(configs.collect(), nodes);
        let replication = matching.iter().map(|(id, upto)| (*id, Some(at(*upto))));
        Metrics {
            last_log_index: Some(100),
            membership_config: Arc::new(StoredMembership::new(Some(at(1)), membership)),
            replication: Some(replication.collect()),
            ..Metrics::new_initial(1)
        }
    }

    fn enrolled(roles: &[(NodeId, Role)]) -> ClusterState {
        let mut cluster = ClusterState::default();
        for (id, role) in roles {
            let MerlinNode { name, addr } = node(*id);
            let enrolled = EnrolledNode {
                name,
                addr,
                role: *role,
                key: KeyFingerprint([0; 32]),
                token: TokenId([0; 8]),
            };
            cluster.enrollment.nodes.insert(*id, enrolled);
        }
        cluster
    }

    #[test]
    fn an_enrolled_node_is_introduced() {
        let steps = plan(&metrics(&[&[1]], &[1], &[]), &enrolled(&[(2, Role::Voter)]));
        assert_eq!(steps, [Step::Introduce(2, node(2))]);
    }

    #[test]
    fn a_learner_that_is_to_vote_is_promoted_once_it_has_caught_up() {
        let cluster = enrolled(&[(2, Role::Voter), (3, Role::Learner)]);
        let at_entry = |upto| metrics(&[&[1]], &[1, 2, 3], &[(2, upto), (3, 100)]);
        assert_eq!(plan(&at_entry(100 - CAUGHT_UP - 1), &cluster), []);
        let promote = [Step::Promote(2, node(2))];
        assert_eq!(plan(&at_entry(100 - CAUGHT_UP), &cluster), promote);
        let unheard = metrics(&[&[1]], &[1, 2, 3], &[]);
        assert_eq!(plan(&unheard, &cluster), []);
    }

    #[test]
    fn a_change_that_a_crash_left_unfinished_comes_first() {
        let cluster = enrolled(&[(2, Role::Voter), (3, Role::Voter)]);
        let joint = metrics(&[&[1], &[1, 2]], &[1, 2], &[]);
        let finish = Step::Finish(BTreeSet::from([1, 2]));
        assert_eq!(plan(&joint, &cluster), [finish]);
    }

    #[test]
    fn a_cluster_that_is_as_it_should_be_is_left_alone() {
        // The founder was never enrolled, and a node that was forgotten is not removed here.
        let cluster = enrolled(&[(2, Role::Voter), (3, Role::Learner)]);
        let settled = metrics(&[&[1, 2]], &[1, 2, 3, 4], &[(2, 100), (3, 100)]);
        assert_eq!(plan(&settled, &cluster), []);
    }
}
