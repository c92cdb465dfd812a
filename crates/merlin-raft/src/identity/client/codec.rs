//! How clients are written into the log and into snapshots: the messages of
//! `merlin/log/v1/access.proto`, which are only ever extended.

use merlin_model::Timestamp;
use merlin_proto::{access, log};

use super::{ClientAnswer, ClientCommand, ClientError, ClientId, ClientRecord, Clients};
use crate::codec::DecodeError;
use crate::identity::KeyFingerprint;

fn missing(what: &'static str) -> DecodeError {
    DecodeError::Missing { what }
}

fn to_proto(id: ClientId, client: &ClientRecord) -> log::Client {
    log::Client {
        id: id.0.to_vec(),
        name: client.name.clone(),
        role: log::AccessRole::from(client.role).into(),
        key_sha256: client.key.0.to_vec(),
        expires_at: client.expires.0,
        revoked: client.revoked,
    }
}

fn client_id(bytes: &[u8]) -> Result<ClientId, DecodeError> {
    let id = bytes.try_into().map_err(|_| missing("a client's id"))?;
    Ok(ClientId(id))
}

fn from_proto(message: log::Client) -> Result<(ClientId, ClientRecord), DecodeError> {
    let key = <[u8; 32]>::try_from(message.key_sha256);
    let client = ClientRecord {
        name: message.name,
        role: access::role(message.role)?,
        key: KeyFingerprint(key.map_err(|_| missing("a client's key"))?),
        expires: Timestamp(message.expires_at),
        revoked: message.revoked,
    };
    Ok((client_id(&message.id)?, client))
}

impl Clients {
    /// Equal states have equal encodings.
    pub(crate) fn to_proto(&self) -> Vec<log::Client> {
        let records = self.records.iter();
        records.map(|(id, client)| to_proto(*id, client)).collect()
    }

    pub(crate) fn from_proto(messages: Vec<log::Client>) -> Result<Self, DecodeError> {
        let records = messages.into_iter().map(from_proto);
        Ok(Self {
            records: records.collect::<Result<_, _>>()?,
        })
    }
}

impl ClientCommand {
    pub(crate) fn to_proto(&self) -> log::ClientCommand {
        use log::client_command::Change;
        let change = match self {
            Self::Create(id, client) => Change::Create(to_proto(*id, client)),
            Self::Revoke(who) => Change::Revoke(who.clone()),
        };
        log::ClientCommand {
            change: Some(change),
        }
    }

    pub(crate) fn from_proto(message: log::ClientCommand) -> Result<Self, DecodeError> {
        use log::client_command::Change;
        let change = message.change.ok_or(missing("what becomes of a client"))?;
        Ok(match change {
            Change::Create(client) => {
                let (id, client) = from_proto(client)?;
                Self::Create(id, client)
            }
            Change::Revoke(who) => Self::Revoke(who),
        })
    }
}

impl ClientAnswer {
    pub(crate) fn to_proto(&self) -> log::ClientAnswer {
        use log::client_answer::refused::{Full, Reason};
        use log::client_answer::{Answer, Issued, Refused, Revoked};
        let answer = match self {
            Self::Issued { id, expires } => Answer::Issued(Issued {
                id: id.0.to_vec(),
                expires_at: expires.0,
            }),
            Self::Revoked => Answer::Revoked(Revoked {}),
            Self::Refused(error) => Answer::Refused(Refused {
                reason: Some(match error {
                    ClientError::Exists { name, id } => Reason::Exists(log::Client {
                        id: id.0.to_vec(),
                        name: name.clone(),
                        ..log::Client::default()
                    }),
                    ClientError::Unknown(who) => Reason::Unknown(who.clone()),
                    ClientError::TooMany => Reason::Full(Full {}),
                }),
            }),
        };
        log::ClientAnswer {
            answer: Some(answer),
        }
    }

    pub(crate) fn from_proto(message: log::ClientAnswer) -> Result<Self, DecodeError> {
        use log::client_answer::Answer;
        use log::client_answer::refused::Reason;
        let answer = message.answer.ok_or(missing("what became of a client"))?;
        Ok(match answer {
            Answer::Issued(issued) => Self::Issued {
                id: client_id(&issued.id)?,
                expires: Timestamp(issued.expires_at),
            },
            Answer::Revoked(_) => Self::Revoked,
            Answer::Refused(refused) => {
                let reason = refused.reason.ok_or(missing("why a client was refused"))?;
                Self::Refused(match reason {
                    Reason::Exists(client) => ClientError::Exists {
                        id: client_id(&client.id)?,
                        name: client.name,
                    },
                    Reason::Unknown(who) => ClientError::Unknown(who),
                    Reason::Full(_) => ClientError::TooMany,
                })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use merlin_model::Role;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn client() -> impl Strategy<Value = (ClientId, ClientRecord)> {
        let fields = any::<([u8; 8], [u8; 32], u64, bool)>();
        let role = prop::sample::select(&Role::ALL[..]);
        (fields, role, ".{0,9}").prop_map(|((id, key, expires, revoked), role, name)| {
            let record = ClientRecord {
                name,
                role,
                key: KeyFingerprint(key),
                expires: Timestamp(expires),
                revoked,
            };
            (ClientId(id), record)
        })
    }

    fn answer() -> impl Strategy<Value = ClientAnswer> {
        let refused = prop_oneof![
            (any::<[u8; 8]>(), ".{0,9}").prop_map(|(id, name)| {
                let id = ClientId(id);
                ClientError::Exists { name, id }
            }),
            ".{0,9}".prop_map(ClientError::Unknown),
            Just(ClientError::TooMany),
        ];
        prop_oneof![
            any::<([u8; 8], u64)>().prop_map(|(id, expires)| ClientAnswer::Issued {
                id: ClientId(id),
                expires: Timestamp(expires),
            }),
            Just(ClientAnswer::Revoked),
            refused.prop_map(ClientAnswer::Refused),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn commands_answers_and_clients_survive_their_encoding(
            records in prop::collection::vec(client(), 0..4),
            who in ".{0,9}",
            answer in answer(),
        ) {
            let creates = records.iter().cloned().map(|(id, r)| ClientCommand::Create(id, r));
            for command in creates.chain([ClientCommand::Revoke(who)]) {
                let bytes = command.to_proto().encode_to_vec();
                let message = log::ClientCommand::decode(&*bytes).unwrap();
                prop_assert_eq!(ClientCommand::from_proto(message).unwrap(), command);
            }
            let message = answer.to_proto();
            prop_assert_eq!(ClientAnswer::from_proto(message).unwrap(), answer);
            let clients = Clients { records: records.into_iter().collect() };
            prop_assert_eq!(Clients::from_proto(clients.to_proto()).unwrap(), clients);
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(ClientCommand::from_proto(log::ClientCommand::default()).is_err());
        assert!(ClientAnswer::from_proto(log::ClientAnswer::default()).is_err());
        assert!(Clients::from_proto(vec![log::Client::default()]).is_err());
    }
}
