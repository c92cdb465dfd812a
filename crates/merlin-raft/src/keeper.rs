//! Brings the membership of consensus in line with what the cluster has decided about its nodes.
//!
//! Runs on every node and acts on the leader. Level-triggered: each pass looks at everything and
//! takes one step, so a leader that dies in the middle is succeeded by one that goes on.
//!
//! ```text
//! enrolled ──answers at its address──▶ learner ──keeps up for a while, is to vote──▶ voter
//!                                        │  ◀──────────── is to vote no more ──────────┤
//!                                        └────────── removed, never heard again ◀──────┘
//! ```
//!
//! Nobody is removed because it is away: that says nothing about whether it comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::ChangeMembers;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::cluster::ClusterState;
use crate::consensus::{Consensus, Leadership, Metrics};
use crate::handover::Handover;
use crate::identity::Role;
use crate::level::{self, Greeting};
use crate::members::CAUGHT_UP;
use crate::peers::{Peers, Target};
use crate::typ::{Membership, MerlinNode, NodeId};

/// How long one change of the membership may take before the next pass looks again.
const STEP: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) consensus: Consensus,
    pub(crate) peers: Peers,
    pub(crate) cluster: watch::Receiver<Arc<ClusterState>>,
    pub(crate) handover: Handover,
    /// Between two looks when nothing else gives cause for one.
    pub(crate) pause: Duration,
    /// How long a new node has to keep up before it gets a vote.
    pub(crate) promote_after: Duration,
    pub(crate) troubles: Troubles,
}

/// Why nodes that are to become members, or voters, are none yet, as the leader sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Troubles(Arc<Mutex<BTreeMap<NodeId, String>>>);

impl Troubles {
    pub(crate) fn of(&self, node: NodeId) -> Option<String> {
        let troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.get(&node).cloned()
    }

    fn set(&self, node: NodeId, trouble: Option<String>) {
        let mut troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match trouble {
            Some(trouble) => troubles.insert(node, trouble),
            None => troubles.remove(&node),
        };
    }

    fn clear(&self) {
        let mut troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.clear();
    }
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// A change was begun and not finished.
    Finish(BTreeSet<NodeId>),
    /// This node is to lose its vote, so another has to lead first.
    HandOver,
    Remove(NodeId),
    Demote(NodeId),
    Introduce(NodeId, MerlinNode),
    Promote(NodeId, MerlinNode),
}

impl Step {
    /// The node that the step is about.
    fn node(&self) -> Option<NodeId> {
        match self {
            Self::Finish(_) | Self::HandOver => None,
            Self::Remove(id) | Self::Demote(id) | Self::Introduce(id, _) | Self::Promote(id, _) => {
                Some(*id)
            }
        }
    }
}

/// Since when learners have kept up without a break.
#[derive(Debug, Default)]
struct Steady(BTreeMap<NodeId, Instant>);

impl Steady {
    /// Those that keep up now go on counting, the others begin again.
    fn observe(&mut self, keeping_up: &BTreeSet<NodeId>, now: Instant) {
        self.0.retain(|id, _| keeping_up.contains(id));
        for id in keeping_up {
            self.0.entry(*id).or_insert(now);
        }
    }

    fn for_long(&self, within: Duration, now: Instant) -> BTreeSet<NodeId> {
        let long = self.0.iter().filter(|(_, since)| **since + within <= now);
        long.map(|(&id, _)| id).collect()
    }
}

impl Keeper {
    /// Ends when the store does.
    pub(crate) async fn run(mut self) {
        let mut server = self.consensus.raft.server_metrics();
        let mut steady = Steady::default();
        loop {
            if self.consensus.leadership() == Leadership::Leading {
                while self.pass(&mut steady).await {}
                self.agree().await;
            } else {
                // Another leader may see it otherwise.
                self.troubles.clear();
                steady = Steady::default();
            }
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
    async fn pass(&self, steady: &mut Steady) -> bool {
        let steps = {
            let metrics = self.consensus.raft.metrics();
            let metrics = metrics.borrow();
            let now = Instant::now();
            steady.observe(&self.keeping_up(&metrics), now);
            let cluster = self.cluster.borrow();
            plan(
                &metrics,
                &cluster,
                &steady.for_long(self.promote_after, now),
            )
        };
        for step in steps {
            let taken = timeout(STEP, self.take(&step)).await;
            let trouble = match taken {
                Ok(Ok(())) => None,
                Ok(Err(reason)) => {
                    tracing::debug!(?step, reason, "membership step postponed");
                    Some(reason)
                }
                Err(_) => {
                    tracing::warn!(?step, "membership step takes long");
                    Some("it takes long".to_owned())
                }
            };
            let done = trouble.is_none();
            if let Some(node) = step.node() {
                self.troubles.set(node, trouble);
            }
            if done {
                return true;
            }
        }
        false
    }

    /// The learners that answer and lack little.
    fn keeping_up(&self, metrics: &Metrics) -> BTreeSet<NodeId> {
        let membership = metrics.membership_config.membership();
        let learners = membership.learner_ids();
        let answers = |id| {
            let silence = self.peers.contacts().silence(id);
            silence.is_some_and(|silence| silence < self.consensus.isolation())
        };
        learners
            .filter(|id| answers(*id) && caught_up(metrics, *id))
            .collect()
    }

    /// Raises the level of commands once every member can do more. One task does this and lets
    /// members in, so who knows too little is not let in at the same time.
    async fn agree(&self) {
        let levels = &self.consensus.levels;
        let agreed = levels.agreed();
        if agreed >= levels.own {
            return;
        }
        let members = level::members(&self.consensus.raft.metrics().borrow());
        let Some(common) = levels.common(members).await else {
            return;
        };
        if common > agreed {
            match timeout(STEP, self.consensus.raise(common)).await {
                Ok(Ok(())) => tracing::info!(level = %common, "raised the level of commands"),
                Ok(Err(error)) => tracing::debug!(%error, "the level of commands stays"),
                Err(_) => tracing::warn!("raising the level of commands takes long"),
            }
        }
    }

    async fn take(&self, step: &Step) -> Result<(), String> {
        match step {
            Step::Finish(voters) => {
                tracing::info!(?voters, "finishing a change of the voters");
                self.change(ChangeMembers::ReplaceAllVoters(voters.clone()), true)
                    .await
            }
            Step::HandOver => {
                let successor = self.successor();
                let successor = successor.ok_or("no other voter could lead")?;
                self.handover.to(&successor).await.map(drop)
            }
            Step::Remove(id) => {
                tracing::info!(node = id, "removing a node");
                let only = BTreeSet::from([*id]);
                let change = if self.votes(*id) {
                    ChangeMembers::RemoveVoters(only)
                } else {
                    ChangeMembers::RemoveNodes(only)
                };
                self.change(change, false).await
            }
            Step::Demote(id) => {
                tracing::info!(node = id, "making a voter a learner");
                let only = BTreeSet::from([*id]);
                self.change(ChangeMembers::RemoveVoters(only), true).await
            }
            Step::Introduce(id, node) => {
                self.greet(*id, node).await?;
                tracing::info!(node = id, %node, "adding a node as a learner");
                let _passage = self.consensus.pass().await;
                let added = self.consensus.raft.add_learner(*id, node.clone(), false);
                added.await.map(drop).map_err(|error| error.to_string())
            }
            Step::Promote(id, node) => {
                // A voter that is away counts against the quorum from the moment it is one.
                self.greet(*id, node).await?;
                tracing::info!(node = id, %node, "promoting a learner to a voter");
                let only = BTreeSet::from([*id]);
                self.change(ChangeMembers::AddVoterIds(only), true).await
            }
        }
    }

    /// Voters that lose their vote stay as learners, or do not.
    async fn change(
        &self,
        change: ChangeMembers<NodeId, MerlinNode>,
        retain: bool,
    ) -> Result<(), String> {
        let _passage = self.consensus.pass().await;
        let changed = self.consensus.raft.change_membership(change, retain).await;
        changed.map(drop).map_err(|error| error.to_string())
    }

    async fn greet(&self, id: NodeId, node: &MerlinNode) -> Result<(), String> {
        let target = Target::new(id, node);
        let answer = timeout(self.pause, self.peers.hello(&target, self.pause)).await;
        let Greeting { level, version, .. } = match answer {
            Ok(Ok(greeting)) => greeting,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("{target} does not answer")),
        };
        let agreed = self.consensus.levels.agreed();
        if level < agreed {
            return Err(format!(
                "{target} runs merlin {version}, which knows commands of level {level}: the \
                 cluster uses level {agreed}, upgrade it"
            ));
        }
        Ok(())
    }

    fn votes(&self, id: NodeId) -> bool {
        let metrics = self.consensus.raft.metrics();
        is_voter(metrics.borrow().membership_config.membership(), id)
    }

    /// Any other voter that answers; the one that follows best.
    fn successor(&self) -> Option<Target> {
        let metrics = self.consensus.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let others = membership.voter_ids().filter(|id| *id != metrics.id);
        let silence = |id: &NodeId| self.peers.contacts().silence(*id);
        let best = others.min_by_key(|id| silence(id).unwrap_or(Duration::MAX))?;
        Some(Target::new(best, membership.get_node(&best)?))
    }
}

/// What there is to do, most urgent first.
fn plan(metrics: &Metrics, cluster: &ClusterState, steady: &BTreeSet<NodeId>) -> Vec<Step> {
    let membership = metrics.membership_config.membership();
    if let [_, .., target] = &membership.get_joint_config()[..] {
        return vec![Step::Finish(target.clone())];
    }
    let enrollment = &cluster.enrollment;
    let voters: BTreeSet<_> = membership.voter_ids().collect();
    // Somebody has to vote: the rules see to that, but rules can change.
    let spare = |id: &NodeId| !voters.contains(id) || voters.len() > 1;
    let leave = |id: NodeId, step: Step| {
        if id == metrics.id {
            Step::HandOver
        } else {
            step
        }
    };

    let removed = enrollment.removed.keys().copied();
    let removed = removed.filter(|id| membership.get_node(id).is_some() && spare(id));
    let mut steps: Vec<_> = removed.map(|id| leave(id, Step::Remove(id))).collect();

    let demoted = voters
        .iter()
        .copied()
        .filter(|id| enrollment.wanted(*id) == Some(Role::Learner) && spare(id));
    steps.extend(demoted.map(|id| leave(id, Step::Demote(id))));

    for (&id, node) in &enrollment.nodes {
        if membership.get_node(&id).is_none() {
            let this = MerlinNode {
                name: node.name.clone(),
                addr: node.addr.clone(),
            };
            steps.push(Step::Introduce(id, this));
        }
    }

    for (&id, node) in membership.nodes() {
        // What an operator says is done at once; what a token says, when the node has proved itself.
        let asked = enrollment.roles.get(&id) == Some(&Role::Voter) && caught_up(metrics, id);
        let proved = enrollment.wanted(id) == Some(Role::Voter) && steady.contains(&id);
        if !voters.contains(&id) && (asked || proved) {
            steps.push(Step::Promote(id, node.clone()));
        }
    }
    steps
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
    use merlin_model::Timestamp;
    use openraft::StoredMembership;

    use super::*;
    use crate::identity::{EnrolledNode, EnrollmentCommand, KeyFingerprint, TokenId};
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

    fn ids(ids: &[NodeId]) -> BTreeSet<NodeId> {
        ids.iter().copied().collect()
    }

    /// The steps when nobody has proved itself yet.
    fn steps(metrics: &Metrics, cluster: &ClusterState) -> Vec<Step> {
        plan(metrics, cluster, &ids(&[]))
    }

    fn apply(cluster: &mut ClusterState, command: EnrollmentCommand) {
        cluster.enrollment.next_node = 10;
        cluster.enrollment.apply(Timestamp(1), command);
    }

    #[test]
    fn an_enrolled_node_is_introduced() {
        let steps = steps(&metrics(&[&[1]], &[1], &[]), &enrolled(&[(2, Role::Voter)]));
        assert_eq!(steps, [Step::Introduce(2, node(2))]);
    }

    #[test]
    fn a_learner_that_is_to_vote_is_promoted_once_it_has_kept_up_for_a_while() {
        let cluster = enrolled(&[(2, Role::Voter), (3, Role::Learner)]);
        let metrics = metrics(&[&[1]], &[1, 2, 3], &[(2, 100), (3, 100)]);
        assert_eq!(steps(&metrics, &cluster), []);
        let promote = [Step::Promote(2, node(2))];
        assert_eq!(plan(&metrics, &cluster, &ids(&[2, 3])), promote);
    }

    #[test]
    fn an_operator_who_promotes_is_not_kept_waiting() {
        let mut cluster = enrolled(&[(2, Role::Learner), (3, Role::Voter)]);
        apply(&mut cluster, EnrollmentCommand::SetRole(2, Role::Voter));
        let at_entry = |upto| metrics(&[&[1]], &[1, 2, 3], &[(2, upto), (3, 100)]);
        let promote = [Step::Promote(2, node(2))];
        assert_eq!(steps(&at_entry(100 - CAUGHT_UP), &cluster), promote);
        assert_eq!(steps(&at_entry(100 - CAUGHT_UP - 1), &cluster), []);
        let unheard = metrics(&[&[1]], &[1, 2, 3], &[]);
        assert_eq!(steps(&unheard, &cluster), []);
    }

    #[test]
    fn keeping_up_is_counted_from_the_last_break() {
        let mut steady = Steady::default();
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        steady.observe(&ids(&[2, 3]), start);
        steady.observe(&ids(&[2]), start + second);
        steady.observe(&ids(&[2, 3]), start + second * 2);
        let long = |within, at| steady.for_long(within, start + at);
        assert_eq!(long(second * 3, second * 2), ids(&[]));
        assert_eq!(long(second * 3, second * 3), ids(&[2]));
        assert_eq!(long(second * 3, second * 5), ids(&[2, 3]));
    }

    #[test]
    fn a_demoted_voter_becomes_a_learner_and_stays_one() {
        let mut cluster = enrolled(&[(2, Role::Voter), (3, Role::Voter)]);
        apply(&mut cluster, EnrollmentCommand::SetRole(2, Role::Learner));
        let voting = metrics(&[&[1, 2, 3]], &[1, 2, 3], &[(2, 100)]);
        assert_eq!(steps(&voting, &cluster), [Step::Demote(2)]);
        let learning = metrics(&[&[1, 3]], &[1, 2, 3], &[(2, 100)]);
        assert_eq!(plan(&learning, &cluster, &ids(&[2])), []);
    }

    #[test]
    fn whoever_was_removed_goes_first_whatever_part_it_had() {
        let mut cluster = enrolled(&[(2, Role::Voter), (3, Role::Learner), (4, Role::Voter)]);
        apply(&mut cluster, EnrollmentCommand::RemoveNode(2));
        apply(&mut cluster, EnrollmentCommand::RemoveNode(3));
        let before = metrics(&[&[1, 2]], &[1, 2, 3], &[]);
        let expected = [
            Step::Remove(2),
            Step::Remove(3),
            Step::Introduce(4, node(4)),
        ];
        assert_eq!(steps(&before, &cluster), expected);
        // A crash in the middle may have left it as a learner.
        let between = metrics(&[&[1]], &[1, 2, 4], &[]);
        assert_eq!(steps(&between, &cluster), [Step::Remove(2)]);
        let after = metrics(&[&[1]], &[1, 4], &[]);
        assert_eq!(steps(&after, &cluster), []);
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_first() {
        for command in [
            EnrollmentCommand::RemoveNode(1),
            EnrollmentCommand::SetRole(1, Role::Learner),
        ] {
            let mut cluster = enrolled(&[(2, Role::Voter)]);
            apply(&mut cluster, command);
            let leading = metrics(&[&[1, 2]], &[1, 2], &[(2, 100)]);
            assert_eq!(steps(&leading, &cluster), [Step::HandOver]);
            let alone = metrics(&[&[1]], &[1, 2], &[(2, 1)]);
            assert_eq!(steps(&alone, &cluster), [], "the last voter stays");
        }
    }

    #[test]
    fn a_change_that_a_crash_left_unfinished_comes_first() {
        let cluster = enrolled(&[(2, Role::Voter), (3, Role::Voter)]);
        let joint = metrics(&[&[1], &[1, 2]], &[1, 2], &[]);
        let finish = Step::Finish(BTreeSet::from([1, 2]));
        assert_eq!(steps(&joint, &cluster), [finish]);
    }

    #[test]
    fn a_cluster_that_is_as_it_should_be_is_left_alone() {
        // The founder was never enrolled.
        let cluster = enrolled(&[(2, Role::Voter), (3, Role::Learner)]);
        let settled = metrics(&[&[1, 2]], &[1, 2, 3], &[(2, 100), (3, 100)]);
        assert_eq!(plan(&settled, &cluster, &ids(&[1, 2, 3])), []);
    }
}
