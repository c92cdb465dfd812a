//! What stands against a change of the members. Pure: who answers is asked before.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::cluster::ClusterState;
use crate::consensus::Metrics;
use crate::identity::{RemovedNode, Role};
use crate::typ::NodeId;

/// Entries a learner may lack and still count as caught up. It gets those before it has to vote.
pub(crate) const CAUGHT_UP: u64 = 64;

/// Who is in the cluster and who is on the way in, as the leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roll {
    /// Members, by what operators call them.
    pub(crate) members: BTreeMap<NodeId, String>,
    pub(crate) voters: BTreeSet<NodeId>,
    /// Let in by a token, but not a member yet.
    pub(crate) waiting: BTreeMap<NodeId, String>,
    pub(crate) removed: BTreeMap<NodeId, RemovedNode>,
    /// Log entries that members have yet to acknowledge, where known.
    pub(crate) lag: BTreeMap<NodeId, u64>,
}

/// Why a change is not begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no node is called {0:?}: `merlin cluster members` lists them")]
    Unknown(String),
    #[error("several nodes are called {name:?}: say which by its id, {}", Ids(.ids))]
    Ambiguous { name: String, ids: BTreeSet<NodeId> },
    #[error("node {0} was removed already; it comes back as a new node, with a new token")]
    Removed(NodeId),
    #[error("node {0} is not a member yet; `merlin cluster status` says what it waits for")]
    NotYet(NodeId),
    #[error(
        "node {0} is the only voter: without it there is no cluster. Add a voter first, or stop \
         merlin on it"
    )]
    LastVoter(NodeId),
    #[error(
        "without node {node} the voters would be {}, of which {} answer: too few to decide \
         anything. Bring the others back or remove them first{}",
        Ids(.after), Ids(.alive), if *.forcible { "; --force does it all the same" } else { "" }
    )]
    NoMajority {
        node: NodeId,
        after: BTreeSet<NodeId>,
        alive: BTreeSet<NodeId>,
        forcible: bool,
    },
    #[error(
        "node {node} lacks {lag} log entries and may lack {CAUGHT_UP} at most: wait until it has \
         caught up, `merlin cluster status` shows it"
    )]
    Behind { node: NodeId, lag: u64 },
    #[error("node {0} does not answer: a voter that is away only makes the quorum harder to reach")]
    Away(NodeId),
    #[error("node {0} is a learner, which cannot lead: promote it first")]
    Learner(NodeId),
    #[error("there is no other voter that could lead")]
    NoSuccessor,
}

/// Numbers as people list them.
pub(crate) struct Ids<'a>(pub(crate) &'a BTreeSet<NodeId>);

impl fmt::Display for Ids<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (n, id) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { ", " };
            write!(f, "{separator}{id}")?;
        }
        Ok(())
    }
}

impl Roll {
    pub(crate) fn read(metrics: &Metrics, cluster: &ClusterState) -> Self {
        let membership = metrics.membership_config.membership();
        let members: BTreeMap<_, _> = membership
            .nodes()
            .map(|(&id, node)| (id, node.name.clone()))
            .collect();
        let enrollment = &cluster.enrollment;
        let waiting = enrollment.nodes.iter();
        let lag = metrics.replication.iter().flatten();
        let last = metrics.last_log_index.unwrap_or_default();
        Self {
            voters: membership.voter_ids().collect(),
            waiting: waiting
                .filter(|(id, _)| !members.contains_key(*id))
                .map(|(&id, node)| (id, node.name.clone()))
                .collect(),
            removed: enrollment.removed.clone(),
            lag: lag
                .map(|(&id, at)| (id, last.saturating_sub(at.map_or(0, |at| at.index))))
                .collect(),
            members,
        }
    }

    pub(crate) fn name(&self, id: NodeId) -> &str {
        let name = self.members.get(&id).or_else(|| self.waiting.get(&id));
        name.map_or("", String::as_str)
    }

    /// The node an operator means, by its id or its name.
    pub(crate) fn find(&self, node: &str) -> Result<NodeId, Refusal> {
        let known = || self.members.iter().chain(&self.waiting);
        let id = node.parse().ok();
        if let Some(id) = id.filter(|id| known().any(|(known, _)| known == id)) {
            return Ok(id);
        }
        let called = known().filter(|(_, name)| *name == node);
        let ids: BTreeSet<NodeId> = called.map(|(&id, _)| id).collect();
        match (ids.len(), ids.first()) {
            (1, Some(&id)) => Ok(id),
            (0, _) => Err(match id.filter(|id| self.removed.contains_key(id)) {
                Some(id) => Refusal::Removed(id),
                None => Refusal::Unknown(node.to_owned()),
            }),
            _ => Err(Refusal::Ambiguous {
                name: node.to_owned(),
                ids,
            }),
        }
    }

    /// The voters once a node has none or no vote any more, given who answers.
    pub(crate) fn without(
        &self,
        node: NodeId,
        alive: &BTreeSet<NodeId>,
        force: Force,
    ) -> Result<BTreeSet<NodeId>, Refusal> {
        let mut after = self.voters.clone();
        if !after.remove(&node) {
            return Ok(after);
        }
        if after.is_empty() {
            return Err(Refusal::LastVoter(node));
        }
        let alive: BTreeSet<_> = after.intersection(alive).copied().collect();
        if alive.len() * 2 <= after.len() && force != Force::Yes {
            return Err(Refusal::NoMajority {
                node,
                after,
                alive,
                forcible: force == Force::No,
            });
        }
        Ok(after)
    }

    /// The voters once a node is one of them.
    pub(crate) fn with(
        &self,
        node: NodeId,
        alive: &BTreeSet<NodeId>,
    ) -> Result<BTreeSet<NodeId>, Refusal> {
        if self.waiting.contains_key(&node) {
            return Err(Refusal::NotYet(node));
        }
        let mut after = self.voters.clone();
        if after.insert(node) {
            if !alive.contains(&node) {
                return Err(Refusal::Away(node));
            }
            match self.lag.get(&node) {
                Some(&lag) if lag <= CAUGHT_UP => {}
                Some(&lag) => return Err(Refusal::Behind { node, lag }),
                // The leader has not called it yet.
                None => return Err(Refusal::Away(node)),
            }
        }
        Ok(after)
    }

    /// Who is to lead after `leader`: whoever an operator names, or the voter that follows best.
    pub(crate) fn successor(
        &self,
        leader: NodeId,
        wanted: Option<NodeId>,
        alive: &BTreeSet<NodeId>,
    ) -> Result<NodeId, Refusal> {
        if let Some(wanted) = wanted {
            return match wanted {
                id if id == leader => Ok(id),
                id if self.waiting.contains_key(&id) => Err(Refusal::NotYet(id)),
                id if !self.voters.contains(&id) => Err(Refusal::Learner(id)),
                id if !alive.contains(&id) => Err(Refusal::Away(id)),
                id => Ok(id),
            };
        }
        let others = self.voters.iter().copied().filter(|id| *id != leader);
        let best = others
            .filter(|id| alive.contains(id))
            .min_by_key(|id| (self.lag.get(id).copied().unwrap_or(u64::MAX), *id));
        best.ok_or(Refusal::NoSuccessor)
    }

    /// What a node is now; none for one that is no member.
    pub(crate) fn role(&self, node: NodeId) -> Option<Role> {
        self.members.get(&node)?;
        Some(if self.voters.contains(&node) {
            Role::Voter
        } else {
            Role::Learner
        })
    }
}

/// Whether an operator insists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Force {
    No,
    Yes,
    /// There is no insisting.
    Never,
}

#[cfg(test)]
mod tests {
    use merlin_model::Timestamp;

    use super::*;

    fn ids(ids: &[NodeId]) -> BTreeSet<NodeId> {
        ids.iter().copied().collect()
    }

    /// Voters from 1 on, then learners, called n1, n2 and so on.
    fn roll(voters: u64, learners: u64) -> Roll {
        let all = 1..=voters + learners;
        Roll {
            members: all.clone().map(|id| (id, format!("n{id}"))).collect(),
            voters: (1..=voters).collect(),
            lag: all.map(|id| (id, 0)).collect(),
            ..Roll::default()
        }
    }

    #[test]
    fn a_node_is_found_by_its_id_or_its_name() {
        let mut roll = roll(2, 1);
        roll.waiting.insert(4, "n1".into());
        roll.members.insert(5, "7".into());
        roll.members.insert(7, "seven".into());
        let removed = RemovedNode {
            name: "old".into(),
            at: Timestamp(1),
        };
        roll.removed.insert(6, removed);
        assert_eq!(roll.find("2"), Ok(2));
        assert_eq!(roll.find("n3"), Ok(3));
        assert_eq!(roll.find("4"), Ok(4));
        // Ids are exact, so they win over names that look like one.
        assert_eq!(roll.find("7"), Ok(7));
        let words = |node| roll.find(node).unwrap_err().to_string();
        assert!(words("n1").contains("its id, 1, 4"), "{}", words("n1"));
        assert!(words("nobody").contains("merlin cluster members"));
        assert!(words("6").contains("removed already"));
    }

    #[test]
    fn the_last_voter_stays_whatever_happens() {
        let roll = roll(1, 3);
        let last = Err(Refusal::LastVoter(1));
        for force in [Force::No, Force::Yes, Force::Never] {
            assert_eq!(roll.without(1, &ids(&[1, 2, 3, 4]), force), last);
        }
    }

    #[test]
    fn who_remains_must_be_able_to_decide() {
        // (voters, who goes, who answers, whether that is enough)
        for (voters, gone, alive, enough) in [
            (2, 2, &[1][..], true),
            (2, 1, &[2], true),
            (3, 3, &[1, 2], true),
            (3, 2, &[1, 2], false),
            (3, 1, &[1, 2, 3], true),
            (4, 4, &[1, 2], true),
            (4, 4, &[1, 4], false),
            (5, 5, &[1, 2, 5], false),
            (5, 5, &[1, 2, 3], true),
        ] {
            let roll = roll(voters, 0);
            let after = roll.without(gone, &ids(alive), Force::No);
            assert_eq!(after.is_ok(), enough, "{voters} {gone} {alive:?}");
            assert!(roll.without(gone, &ids(alive), Force::Yes).is_ok());
        }
    }

    #[test]
    fn a_refusal_shows_who_would_be_left_and_what_to_do() {
        let refused = roll(3, 0).without(2, &ids(&[1, 2]), Force::No);
        assert_eq!(
            refused.unwrap_err().to_string(),
            "without node 2 the voters would be 1, 3, of which 1 answer: too few to decide \
             anything. Bring the others back or remove them first; --force does it all the same"
        );
        let never = roll(3, 0).without(2, &ids(&[1, 2]), Force::Never);
        assert!(!never.unwrap_err().to_string().contains("force"));
    }

    #[test]
    fn a_learner_goes_without_ado() {
        let roll = roll(1, 1);
        assert_eq!(roll.without(2, &ids(&[]), Force::No), Ok(ids(&[1])));
    }

    #[test]
    fn a_learner_gets_a_vote_when_it_is_there_and_has_caught_up() {
        let mut roll = roll(1, 1);
        let alive = ids(&[1, 2]);
        assert_eq!(roll.with(2, &alive), Ok(ids(&[1, 2])));
        assert_eq!(roll.with(1, &ids(&[])), Ok(ids(&[1])), "it is one already");
        assert_eq!(roll.with(2, &ids(&[1])), Err(Refusal::Away(2)));
        roll.lag.insert(2, CAUGHT_UP);
        assert!(roll.with(2, &alive).is_ok());
        roll.lag.insert(2, CAUGHT_UP + 1);
        let behind = roll.with(2, &alive).unwrap_err().to_string();
        assert!(behind.contains("lacks 65 log entries"), "{behind}");
        roll.waiting.insert(3, "n3".into());
        assert_eq!(roll.with(3, &alive), Err(Refusal::NotYet(3)));
    }

    #[test]
    fn the_voter_that_follows_best_is_to_lead_unless_another_is_wanted() {
        let mut roll = roll(4, 1);
        roll.lag.extend([(2, 5), (3, 1), (4, 0)]);
        let alive = ids(&[1, 2, 3, 5]);
        assert_eq!(roll.successor(1, None, &alive), Ok(3));
        assert_eq!(roll.successor(1, Some(2), &alive), Ok(2));
        assert_eq!(roll.successor(1, Some(1), &alive), Ok(1));
        assert_eq!(roll.successor(1, Some(4), &alive), Err(Refusal::Away(4)));
        assert_eq!(roll.successor(1, Some(5), &alive), Err(Refusal::Learner(5)));
        let alone = ids(&[1]);
        assert_eq!(roll.successor(1, None, &alone), Err(Refusal::NoSuccessor));
    }
}
