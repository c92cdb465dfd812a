//! The replicated side of joining: which tokens exist, and which nodes they became.
//!
//! Pure and deterministic: [`EnrollmentState::apply`] is part of the state machine of the
//! replicated log, so its only clock is the time stamped on the command.
//!
//! Invariants
//! - A node id is handed out once, ever. Counting a token's use and handing out the id are one
//!   command, so two members asked at once cannot both spend the last use.
//! - The same key with the same token is the same node, however often it asks.
//! - No secret is stored, only its hash.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use merlin_model::Timestamp;

use super::digest::{KeyFingerprint, SecretHash};
use super::token::TokenId;
use crate::typ::NodeId;

/// How long an ended token is remembered: to answer an interrupted join that is run again, and to
/// tell its holder what became of it.
const MEMORY: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a new node becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Counts for the quorum, once it has caught up.
    #[default]
    Voter,
    /// Has the catalog but no vote.
    Learner,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Voter => "voter",
            Self::Learner => "learner",
        })
    }
}

/// What the cluster knows of a join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    pub secret: SecretHash,
    /// What a node becomes with it.
    pub role: Role,
    /// Whom the operator made it for.
    pub name: String,
    pub expires: Timestamp,
    /// How many more nodes may join with it.
    pub uses_left: u32,
    pub revoked: bool,
}

/// A node that was given an id for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolledNode {
    /// What operators call it.
    pub name: String,
    /// Where the other nodes reach it, `IP:PORT`.
    pub addr: String,
    /// What it is to be; whether it is yet, consensus knows.
    pub role: Role,
    pub key: KeyFingerprint,
    /// The token it joined with.
    pub token: TokenId,
}

/// A node asks in: the token's secret is right if its hash is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redemption {
    pub token: TokenId,
    pub secret: SecretHash,
    pub key: KeyFingerprint,
    pub name: String,
    pub addr: String,
}

/// What changes tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnrollmentCommand {
    CreateToken(TokenId, TokenRecord),
    RevokeToken(TokenId),
    Redeem(Redemption),
    /// The node is to be a member no more. Its id stays used, and it is never let in again.
    RemoveNode(NodeId),
    /// What an operator wants a node to be from now on.
    SetRole(NodeId, Role),
    /// A node that is not a member yet is called, and reached, otherwise than it said.
    Move {
        node: NodeId,
        name: String,
        addr: String,
    },
}

/// What a command led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnrollmentAnswer {
    /// It is as it was asked to be.
    Done,
    Admitted(Admission),
    /// It changed nothing.
    Refused(RedeemError),
}

/// The node id that a token has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    pub node: NodeId,
    pub role: Role,
}

/// Why a token does not let a node in, or cannot be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedeemError {
    #[error("this cluster has no such token: it is another cluster's, or ended long ago")]
    Unknown,
    #[error("the token's secret is wrong")]
    WrongSecret,
    #[error("the token has been revoked; ask for a new one")]
    Revoked,
    #[error("the token has expired; ask for a new one")]
    Expired,
    #[error("the token has been used already, by another node; ask for a new one")]
    UsedUp,
}

impl TokenRecord {
    /// Whether the token lets one more node in.
    ///
    /// The secret is checked first: only who has it is told what became of the token.
    pub fn redeem(&self, secret: &SecretHash, now: Timestamp) -> Result<Role, RedeemError> {
        self.check_holder(secret)?;
        if self.uses_left == 0 {
            Err(RedeemError::UsedUp)
        } else if now >= self.expires {
            Err(RedeemError::Expired)
        } else {
            Ok(self.role)
        }
    }

    /// Whether the token stands and its secret is known to the caller.
    fn check_holder(&self, secret: &SecretHash) -> Result<(), RedeemError> {
        if !self.secret.matches(secret) {
            Err(RedeemError::WrongSecret)
        } else if self.revoked {
            Err(RedeemError::Revoked)
        } else {
            Ok(())
        }
    }

    fn forgotten(&self, now: Timestamp) -> bool {
        let memory = u64::try_from(MEMORY.as_millis()).unwrap_or(u64::MAX);
        now.0 >= self.expires.0.saturating_add(memory)
    }
}

/// A node that is a member no more, or is to be none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedNode {
    /// What operators called it; empty for the cluster's founder.
    pub name: String,
    pub at: Timestamp,
}

/// The tokens and nodes of a cluster, and the counter that node ids come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrollmentState {
    pub tokens: BTreeMap<TokenId, TokenRecord>,
    /// Every node that joined and has not been removed. The founder never joined.
    pub nodes: BTreeMap<NodeId, EnrolledNode>,
    /// What operators decided about nodes after they joined.
    pub roles: BTreeMap<NodeId, Role>,
    /// Whom no member listens to any more. Kept for ever: ids are few, and never used again.
    pub removed: BTreeMap<NodeId, RemovedNode>,
    /// The next node gets this id.
    pub next_node: NodeId,
}

impl Default for EnrollmentState {
    /// Of a new cluster, whose founder is node 1.
    fn default() -> Self {
        Self {
            tokens: BTreeMap::new(),
            nodes: BTreeMap::new(),
            roles: BTreeMap::new(),
            removed: BTreeMap::new(),
            next_node: 2,
        }
    }
}

impl EnrollmentState {
    /// Applies a command stamped with the time `at`.
    pub fn apply(&mut self, at: Timestamp, command: EnrollmentCommand) -> EnrollmentAnswer {
        self.tokens.retain(|_, token| !token.forgotten(at));
        let applied = match command {
            // Ids are random: a second command with the same id is a retry of the first.
            EnrollmentCommand::CreateToken(id, token) => {
                self.tokens.entry(id).or_insert(token);
                Ok(EnrollmentAnswer::Done)
            }
            EnrollmentCommand::RevokeToken(id) => match self.tokens.get_mut(&id) {
                Some(token) => {
                    token.revoked = true;
                    Ok(EnrollmentAnswer::Done)
                }
                None => Err(RedeemError::Unknown),
            },
            EnrollmentCommand::Redeem(redemption) => {
                self.redeem(at, redemption).map(EnrollmentAnswer::Admitted)
            }
            EnrollmentCommand::RemoveNode(node) => {
                self.remove(at, node);
                Ok(EnrollmentAnswer::Done)
            }
            EnrollmentCommand::SetRole(node, role) => {
                if !self.removed.contains_key(&node) {
                    self.roles.insert(node, role);
                }
                Ok(EnrollmentAnswer::Done)
            }
            EnrollmentCommand::Move { node, name, addr } => {
                if let Some(node) = self.nodes.get_mut(&node) {
                    (node.name, node.addr) = (name, addr);
                }
                Ok(EnrollmentAnswer::Done)
            }
        };
        applied.unwrap_or_else(EnrollmentAnswer::Refused)
    }

    /// What [`EnrollmentCommand::Redeem`] would answer, where it is known without changing
    /// anything: lets the leader refuse a bad token, and repeat an answer, without the log.
    pub fn check(
        &self,
        at: Timestamp,
        redemption: &Redemption,
    ) -> Result<Option<Admission>, RedeemError> {
        let token = self
            .tokens
            .get(&redemption.token)
            .filter(|token| !token.forgotten(at))
            .ok_or(RedeemError::Unknown)?;
        token.check_holder(&redemption.secret)?;
        // A node that is in stays in after the token's end: it only asks for its answer again.
        let known = self
            .nodes
            .iter()
            .find(|(_, node)| node.token == redemption.token && node.key == redemption.key);
        match known {
            Some((&node, EnrolledNode { role, .. })) => Ok(Some(Admission { node, role: *role })),
            None => token.redeem(&redemption.secret, at).map(|_| None),
        }
    }

    /// What a node is to be, as far as that was ever decided: the founder has its vote without.
    pub fn wanted(&self, node: NodeId) -> Option<Role> {
        let joined = || self.nodes.get(&node).map(|node| node.role);
        self.roles.get(&node).copied().or_else(joined)
    }

    fn remove(&mut self, at: Timestamp, node: NodeId) {
        if node >= self.next_node {
            return;
        }
        self.roles.remove(&node);
        let name = self.nodes.remove(&node).map(|node| node.name);
        self.removed.entry(node).or_insert(RemovedNode {
            name: name.unwrap_or_default(),
            at,
        });
    }

    fn redeem(&mut self, at: Timestamp, redemption: Redemption) -> Result<Admission, RedeemError> {
        if let Some(admission) = self.check(at, &redemption)? {
            return Ok(admission);
        }
        let token = self
            .tokens
            .get_mut(&redemption.token)
            .ok_or(RedeemError::Unknown)?;
        token.uses_left = token.uses_left.saturating_sub(1);
        let admission = Admission {
            node: self.next_node,
            role: token.role,
        };
        self.next_node += 1;
        let node = EnrolledNode {
            name: redemption.name,
            addr: redemption.addr,
            role: admission.role,
            key: redemption.key,
            token: redemption.token,
        };
        self.nodes.insert(admission.node, node);
        Ok(admission)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Secret;

    const SECRET: Secret = Secret([7; 16]);
    const TOKEN: TokenId = TokenId([1; 8]);
    const CREATED: Timestamp = Timestamp(1_000);
    const EXPIRES: Timestamp = Timestamp(2_000);

    fn record(uses_left: u32) -> TokenRecord {
        TokenRecord {
            secret: SECRET.hash(),
            role: Role::Learner,
            name: "n2".into(),
            expires: EXPIRES,
            uses_left,
            revoked: false,
        }
    }

    fn with_token(uses: u32) -> EnrollmentState {
        let mut state = EnrollmentState::default();
        let command = EnrollmentCommand::CreateToken(TOKEN, record(uses));
        assert_eq!(state.apply(CREATED, command), EnrollmentAnswer::Done);
        state
    }

    fn redemption(key: u8) -> Redemption {
        Redemption {
            token: TOKEN,
            secret: SECRET.hash(),
            key: KeyFingerprint([key; 32]),
            name: "n2".into(),
            addr: "192.0.2.2:4284".into(),
        }
    }

    fn redeem(
        state: &mut EnrollmentState,
        at: u64,
        redemption: Redemption,
    ) -> Result<Admission, RedeemError> {
        let at = Timestamp(at);
        let before = state.clone();
        let foretold = state.check(at, &redemption);
        let answer = match state.apply(at, EnrollmentCommand::Redeem(redemption)) {
            EnrollmentAnswer::Admitted(admission) => Ok(admission),
            EnrollmentAnswer::Refused(refusal) => Err(refusal),
            EnrollmentAnswer::Done => panic!("a redemption is answered with a node"),
        };
        match foretold {
            Ok(None) => assert_eq!(state.next_node, before.next_node + 1),
            Ok(Some(admission)) => assert_eq!(answer, Ok(admission)),
            Err(refusal) => assert_eq!(answer, Err(refusal)),
        }
        answer
    }

    fn revoke(state: &mut EnrollmentState, id: TokenId) -> EnrollmentAnswer {
        state.apply(Timestamp(1_600), EnrollmentCommand::RevokeToken(id))
    }

    #[test]
    fn a_token_becomes_a_node_of_its_role() {
        let mut state = with_token(1);
        let role = Role::Learner;
        assert_eq!(
            redeem(&mut state, 1_500, redemption(1)),
            Ok(Admission { node: 2, role })
        );
        assert_eq!(state.nodes[&2].addr, "192.0.2.2:4284");
        assert_eq!(state.nodes[&2].role, role);
    }

    #[test]
    fn another_key_cannot_use_a_spent_token_and_changes_nothing() {
        let mut state = with_token(1);
        redeem(&mut state, 1_500, redemption(1)).unwrap();
        let spent = state.clone();
        assert_eq!(
            redeem(&mut state, 1_500, redemption(2)),
            Err(RedeemError::UsedUp)
        );
        assert_eq!(state, spent);
    }

    #[test]
    fn the_same_key_is_the_same_node_even_after_the_token_ended() {
        let mut state = with_token(1);
        let first = redeem(&mut state, 1_500, redemption(1));
        assert_eq!(redeem(&mut state, 1_600, redemption(1)), first);
        assert_eq!(redeem(&mut state, EXPIRES.0 + 1, redemption(1)), first);
        assert_eq!(state.next_node, 3);
    }

    #[test]
    fn a_removed_node_does_not_come_back_with_its_old_token() {
        let mut state = with_token(1);
        redeem(&mut state, 1_500, redemption(1)).unwrap();
        let remove = EnrollmentCommand::RemoveNode(2);
        assert_eq!(
            state.apply(Timestamp(1_550), remove),
            EnrollmentAnswer::Done
        );
        assert_eq!(state.removed[&2].name, "n2");
        assert_eq!(
            redeem(&mut state, 1_600, redemption(1)),
            Err(RedeemError::UsedUp)
        );
    }

    #[test]
    fn what_an_operator_decided_outlasts_the_token_and_ends_with_the_node() {
        let mut state = with_token(1);
        redeem(&mut state, 1_500, redemption(1)).unwrap();
        assert_eq!(state.wanted(1), None);
        assert_eq!(state.wanted(2), Some(Role::Learner));
        let mut apply = |command| state.apply(Timestamp(1_600), command);
        apply(EnrollmentCommand::SetRole(2, Role::Voter));
        apply(EnrollmentCommand::SetRole(1, Role::Learner));
        // Redeeming again changes nothing about it.
        apply(EnrollmentCommand::Redeem(redemption(1)));
        assert_eq!(state.wanted(2), Some(Role::Voter));
        assert_eq!(state.wanted(1), Some(Role::Learner));
        for command in [
            EnrollmentCommand::RemoveNode(2),
            EnrollmentCommand::SetRole(2, Role::Voter),
            // Never handed out, so there is nobody to remove.
            EnrollmentCommand::RemoveNode(9),
        ] {
            state.apply(Timestamp(1_700), command);
        }
        assert_eq!(state.wanted(2), None);
        assert_eq!(state.removed.keys().copied().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn a_node_that_was_let_in_can_correct_its_address() {
        let mut state = with_token(1);
        redeem(&mut state, 1_500, redemption(1)).unwrap();
        let moved = |node| EnrollmentCommand::Move {
            node,
            name: "renamed".into(),
            addr: "192.0.2.9:4284".into(),
        };
        state.apply(Timestamp(1_600), moved(2));
        assert_eq!(state.nodes[&2].addr, "192.0.2.9:4284");
        assert_eq!(state.nodes[&2].name, "renamed");
        let before = state.clone();
        state.apply(Timestamp(1_600), moved(7));
        assert_eq!(state, before);
    }

    #[test]
    fn a_token_for_several_nodes_gives_each_its_own_id() {
        let mut state = with_token(2);
        assert_eq!(redeem(&mut state, 1_500, redemption(1)).unwrap().node, 2);
        assert_eq!(redeem(&mut state, 1_500, redemption(2)).unwrap().node, 3);
        assert_eq!(
            redeem(&mut state, 1_500, redemption(3)),
            Err(RedeemError::UsedUp)
        );
    }

    #[test]
    fn a_token_ends_at_its_expiry() {
        let mut state = with_token(1);
        assert_eq!(
            redeem(&mut state, EXPIRES.0, redemption(1)),
            Err(RedeemError::Expired)
        );
        assert!(redeem(&mut state, EXPIRES.0 - 1, redemption(1)).is_ok());
    }

    #[test]
    fn a_wrong_secret_learns_nothing_about_the_token() {
        let mut state = with_token(1);
        revoke(&mut state, TOKEN);
        let wrong = Redemption {
            secret: Secret([8; 16]).hash(),
            ..redemption(1)
        };
        assert_eq!(
            redeem(&mut state, 1_700, wrong),
            Err(RedeemError::WrongSecret)
        );
    }

    #[test]
    fn a_revoked_token_lets_no_one_in() {
        let mut state = with_token(2);
        redeem(&mut state, 1_500, redemption(1)).unwrap();
        assert_eq!(revoke(&mut state, TOKEN), EnrollmentAnswer::Done);
        for key in [1, 2] {
            assert_eq!(
                redeem(&mut state, 1_700, redemption(key)),
                Err(RedeemError::Revoked)
            );
        }
    }

    #[test]
    fn an_unknown_token_is_said_to_be_unknown() {
        let mut state = with_token(1);
        let other = TokenId([9; 8]);
        let asked = Redemption {
            token: other,
            ..redemption(1)
        };
        assert_eq!(redeem(&mut state, 1_500, asked), Err(RedeemError::Unknown));
        assert_eq!(
            revoke(&mut state, other),
            EnrollmentAnswer::Refused(RedeemError::Unknown)
        );
    }

    #[test]
    fn creating_a_token_again_does_not_renew_it() {
        let mut state = with_token(1);
        redeem(&mut state, 1_500, redemption(1)).unwrap();
        let spent = state.clone();
        let again = EnrollmentCommand::CreateToken(TOKEN, record(5));
        assert_eq!(state.apply(Timestamp(1_600), again), EnrollmentAnswer::Done);
        assert_eq!(state, spent);
    }

    #[test]
    fn ended_tokens_are_forgotten_but_their_node_ids_are_not_used_again() {
        let mut state = with_token(1);
        redeem(&mut state, 1_500, redemption(1)).unwrap();
        let later = EXPIRES.0 + u64::try_from(MEMORY.as_millis()).unwrap();
        assert_eq!(
            redeem(&mut state, later, redemption(1)),
            Err(RedeemError::Unknown)
        );
        assert!(state.tokens.is_empty());
        assert_eq!(state.next_node, 3);
    }

    #[test]
    fn each_refusal_reads_differently() {
        let all = [
            RedeemError::Unknown,
            RedeemError::WrongSecret,
            RedeemError::Revoked,
            RedeemError::Expired,
            RedeemError::UsedUp,
        ];
        let texts: std::collections::BTreeSet<_> = all.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), all.len());
    }
}
