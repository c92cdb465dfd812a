//! How the replicated side of joining is written into the log and into snapshots: the messages of
//! `merlin/log/v1/enrollment.proto`, which are only ever extended.

use merlin_model::Timestamp;
use merlin_proto::log;
use prost::Message;

use super::admission::{
    Admission, EnrolledNode, EnrollmentAnswer, EnrollmentCommand, EnrollmentState, RedeemError,
    Redemption, RemovedNode, Role, TokenRecord,
};
use super::digest::{KeyFingerprint, SecretHash};
use super::token::TokenId;

/// The bytes are not what this version knows, so applying them could make nodes differ.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeEnrollmentError {
    #[error("not an enrollment message")]
    Malformed(#[source] prost::DecodeError),
    #[error("an enrollment message's {0} is missing or unknown to this version")]
    Field(&'static str),
}

type Result<T> = std::result::Result<T, DecodeEnrollmentError>;

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M> {
    M::decode(bytes).map_err(DecodeEnrollmentError::Malformed)
}

fn exactly<const N: usize>(bytes: &[u8], field: &'static str) -> Result<[u8; N]> {
    bytes
        .try_into()
        .map_err(|_| DecodeEnrollmentError::Field(field))
}

impl EnrollmentCommand {
    pub fn encode(&self) -> Vec<u8> {
        use log::enrollment_command::Change;
        let change = match self {
            Self::CreateToken(id, record) => Change::CreateToken(token(*id, record)),
            Self::RevokeToken(id) => Change::RevokeToken(id.0.to_vec()),
            Self::Redeem(redemption) => Change::Redeem(log::Redemption {
                token_id: redemption.token.0.to_vec(),
                secret_sha256: redemption.secret.0.to_vec(),
                key_sha256: redemption.key.0.to_vec(),
                name: redemption.name.clone(),
                addr: redemption.addr.clone(),
            }),
            Self::RemoveNode(node) => Change::RemoveNode(*node),
            Self::SetRole(node, wanted) => Change::SetRole(log::NodeRole {
                node_id: *node,
                role: role(*wanted),
            }),
            Self::Move { node, name, addr } => Change::Move(log::enrollment_command::Moved {
                node_id: *node,
                name: name.clone(),
                addr: addr.clone(),
            }),
        };
        let change = Some(change);
        log::EnrollmentCommand { change }.encode_to_vec()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        use log::enrollment_command::Change;
        let message: log::EnrollmentCommand = decode(bytes)?;
        Ok(
            match message
                .change
                .ok_or(DecodeEnrollmentError::Field("command"))?
            {
                Change::CreateToken(token) => {
                    let (id, record) = token_record(token)?;
                    Self::CreateToken(id, record)
                }
                Change::RevokeToken(id) => Self::RevokeToken(TokenId(exactly(&id, "token id")?)),
                Change::Redeem(redemption) => Self::Redeem(Redemption {
                    token: TokenId(exactly(&redemption.token_id, "token id")?),
                    secret: SecretHash(exactly(&redemption.secret_sha256, "secret")?),
                    key: KeyFingerprint(exactly(&redemption.key_sha256, "key")?),
                    name: redemption.name,
                    addr: redemption.addr,
                }),
                Change::RemoveNode(node) => Self::RemoveNode(node),
                Change::SetRole(wanted) => Self::SetRole(wanted.node_id, parse_role(wanted.role)?),
                Change::Move(moved) => Self::Move {
                    node: moved.node_id,
                    name: moved.name,
                    addr: moved.addr,
                },
            },
        )
    }
}

impl EnrollmentAnswer {
    pub fn encode(&self) -> Vec<u8> {
        use log::enrollment_answer::{Answer, Done, Refusal};
        let answer = match self {
            Self::Done => Answer::Done(Done {}),
            Self::Admitted(admission) => Answer::Admitted(log::enrollment_answer::Admission {
                node_id: admission.node,
                role: role(admission.role),
            }),
            Self::Refused(refusal) => Answer::Refused(
                match refusal {
                    RedeemError::Unknown => Refusal::TokenUnknown,
                    RedeemError::WrongSecret => Refusal::WrongSecret,
                    RedeemError::Revoked => Refusal::TokenRevoked,
                    RedeemError::Expired => Refusal::TokenExpired,
                    RedeemError::UsedUp => Refusal::TokenUsedUp,
                }
                .into(),
            ),
        };
        let answer = Some(answer);
        log::EnrollmentAnswer { answer }.encode_to_vec()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        use log::enrollment_answer::{Answer, Refusal};
        let message: log::EnrollmentAnswer = decode(bytes)?;
        let unknown = DecodeEnrollmentError::Field("answer");
        Ok(match message.answer.ok_or(unknown.clone())? {
            Answer::Done(_) => Self::Done,
            Answer::Admitted(admission) => Self::Admitted(Admission {
                node: admission.node_id,
                role: parse_role(admission.role)?,
            }),
            Answer::Refused(refusal) => Self::Refused(match Refusal::try_from(refusal) {
                Ok(Refusal::TokenUnknown) => RedeemError::Unknown,
                Ok(Refusal::WrongSecret) => RedeemError::WrongSecret,
                Ok(Refusal::TokenRevoked) => RedeemError::Revoked,
                Ok(Refusal::TokenExpired) => RedeemError::Expired,
                Ok(Refusal::TokenUsedUp) => RedeemError::UsedUp,
                Ok(Refusal::Unspecified) | Err(_) => return Err(unknown),
            }),
        })
    }
}

impl EnrollmentState {
    /// Equal states have equal encodings.
    pub fn encode(&self) -> Vec<u8> {
        let nodes = self.nodes.iter().map(|(&id, node)| log::EnrolledNode {
            id,
            name: node.name.clone(),
            addr: node.addr.clone(),
            role: role(node.role),
            key_sha256: node.key.0.to_vec(),
            token_id: node.token.0.to_vec(),
        });
        log::EnrollmentState {
            next_node_id: self.next_node,
            tokens: self.tokens.iter().map(|(id, r)| token(*id, r)).collect(),
            nodes: nodes.collect(),
            roles: self
                .roles
                .iter()
                .map(|(&node_id, wanted)| log::NodeRole {
                    node_id,
                    role: role(*wanted),
                })
                .collect(),
            removed: self
                .removed
                .iter()
                .map(|(&id, node)| log::RemovedNode {
                    id,
                    name: node.name.clone(),
                    removed_at: node.at.0,
                })
                .collect(),
        }
        .encode_to_vec()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let message: log::EnrollmentState = decode(bytes)?;
        let node = |node: log::EnrolledNode| {
            let enrolled = EnrolledNode {
                name: node.name,
                addr: node.addr,
                role: parse_role(node.role)?,
                key: KeyFingerprint(exactly(&node.key_sha256, "key")?),
                token: TokenId(exactly(&node.token_id, "token id")?),
            };
            Ok((node.id, enrolled))
        };
        Ok(Self {
            next_node: message.next_node_id,
            tokens: message
                .tokens
                .into_iter()
                .map(token_record)
                .collect::<Result<_>>()?,
            nodes: message.nodes.into_iter().map(node).collect::<Result<_>>()?,
            roles: message
                .roles
                .into_iter()
                .map(|wanted| Ok((wanted.node_id, parse_role(wanted.role)?)))
                .collect::<Result<_>>()?,
            removed: message
                .removed
                .into_iter()
                .map(|node| {
                    let at = Timestamp(node.removed_at);
                    let name = node.name;
                    (node.id, RemovedNode { name, at })
                })
                .collect(),
        })
    }
}

fn token(id: TokenId, record: &TokenRecord) -> log::Token {
    log::Token {
        id: id.0.to_vec(),
        secret_sha256: record.secret.0.to_vec(),
        role: role(record.role),
        name: record.name.clone(),
        expires_at: record.expires.0,
        uses_left: record.uses_left,
        revoked: record.revoked,
    }
}

fn token_record(token: log::Token) -> Result<(TokenId, TokenRecord)> {
    let record = TokenRecord {
        secret: SecretHash(exactly(&token.secret_sha256, "secret")?),
        role: parse_role(token.role)?,
        name: token.name,
        expires: Timestamp(token.expires_at),
        uses_left: token.uses_left,
        revoked: token.revoked,
    };
    Ok((TokenId(exactly(&token.id, "token id")?), record))
}

fn role(role: Role) -> i32 {
    match role {
        Role::Voter => log::Role::Voter,
        Role::Learner => log::Role::Learner,
    }
    .into()
}

fn parse_role(role: i32) -> Result<Role> {
    match log::Role::try_from(role) {
        Ok(log::Role::Voter) => Ok(Role::Voter),
        Ok(log::Role::Learner) => Ok(Role::Learner),
        Ok(log::Role::Unspecified) | Err(_) => Err(DecodeEnrollmentError::Field("role")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    fn any_role() -> impl Strategy<Value = Role> {
        prop_oneof![Just(Role::Voter), Just(Role::Learner)]
    }

    fn any_token() -> impl Strategy<Value = (TokenId, TokenRecord)> {
        let fields = any::<([u8; 8], [u8; 32], u64, u32, bool)>();
        (fields, any_role(), ".{0,9}").prop_map(|(fields, role, name)| {
            let (id, secret, expires, uses_left, revoked) = fields;
            let record = TokenRecord {
                secret: SecretHash(secret),
                role,
                name,
                expires: Timestamp(expires),
                uses_left,
                revoked,
            };
            (TokenId(id), record)
        })
    }

    fn any_node() -> impl Strategy<Value = EnrolledNode> {
        let fields = any::<([u8; 32], [u8; 8])>();
        (fields, any_role(), ".{0,9}", ".{0,9}").prop_map(|((key, token), role, name, addr)| {
            EnrolledNode {
                name,
                addr,
                role,
                key: KeyFingerprint(key),
                token: TokenId(token),
            }
        })
    }

    fn any_command() -> impl Strategy<Value = EnrollmentCommand> {
        let redemption = (any_node(), any::<[u8; 32]>()).prop_map(|(node, secret)| {
            EnrollmentCommand::Redeem(Redemption {
                token: node.token,
                secret: SecretHash(secret),
                key: node.key,
                name: node.name,
                addr: node.addr,
            })
        });
        prop_oneof![
            any_token().prop_map(|(id, record)| EnrollmentCommand::CreateToken(id, record)),
            any::<[u8; 8]>().prop_map(|id| EnrollmentCommand::RevokeToken(TokenId(id))),
            redemption,
            any::<u64>().prop_map(EnrollmentCommand::RemoveNode),
            (any::<u64>(), any_role())
                .prop_map(|(node, role)| EnrollmentCommand::SetRole(node, role)),
            (any::<u64>(), ".{0,9}", ".{0,9}")
                .prop_map(|(node, name, addr)| EnrollmentCommand::Move { node, name, addr }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_command_survives_its_encoding(command in any_command()) {
            prop_assert_eq!(EnrollmentCommand::decode(&command.encode()), Ok(command));
        }

        #[test]
        fn a_state_survives_its_encoding(
            tokens in vec(any_token(), 0..3),
            nodes in btree_map(any::<u64>(), any_node(), 0..3),
            roles in btree_map(any::<u64>(), any_role(), 0..3),
            removed in btree_map(any::<u64>(), (".{0,9}", any::<u64>()), 0..3),
            next_node: u64,
        ) {
            let tokens = tokens.into_iter().collect();
            let removed = removed.into_iter().map(|(id, (name, at))| {
                (id, RemovedNode { name, at: Timestamp(at) })
            });
            let removed = removed.collect();
            let state = EnrollmentState { tokens, nodes, roles, removed, next_node };
            prop_assert_eq!(EnrollmentState::decode(&state.encode()), Ok(state));
        }

        #[test]
        fn arbitrary_bytes_decode_or_are_refused(bytes in vec(any::<u8>(), 0..64)) {
            let _ = EnrollmentCommand::decode(&bytes);
            let _ = EnrollmentAnswer::decode(&bytes);
            let _ = EnrollmentState::decode(&bytes);
        }
    }

    #[test]
    fn an_answer_survives_its_encoding() {
        let admitted = |role| EnrollmentAnswer::Admitted(Admission { node: 7, role });
        for answer in [
            EnrollmentAnswer::Done,
            admitted(Role::Voter),
            admitted(Role::Learner),
            EnrollmentAnswer::Refused(RedeemError::Unknown),
            EnrollmentAnswer::Refused(RedeemError::WrongSecret),
            EnrollmentAnswer::Refused(RedeemError::Revoked),
            EnrollmentAnswer::Refused(RedeemError::Expired),
            EnrollmentAnswer::Refused(RedeemError::UsedUp),
        ] {
            assert_eq!(EnrollmentAnswer::decode(&answer.encode()), Ok(answer));
        }
    }

    #[test]
    fn a_command_or_an_answer_of_an_unknown_kind_is_refused() {
        assert!(EnrollmentCommand::decode(&[]).is_err());
        assert!(EnrollmentAnswer::decode(&[]).is_err());
    }
}
