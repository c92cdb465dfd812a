//! The replicated side of remote administration: which clients have a certificate, and what each
//! may do.
//!
//! Pure and deterministic like admission. A certificate says only which client it is; what that
//! client may do, and whether it still may, is looked up here for every request, so a revocation
//! reaches a node with the log and needs no list of its own.
//!
//! Invariants
//! - A client's id is the serial number of its certificate: random, and never used twice.
//! - No two clients that stand have the same name, so a name says who did something.
//! - The same key asking for the same name again is the same client.

mod codec;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use merlin_model::{Invalid, Role, Timestamp};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use super::digest::KeyFingerprint;
use super::key::random_bytes;
use super::name::ClusterId;

/// How long a client that has ended is remembered, to tell what became of it.
const MEMORY: Duration = Duration::from_secs(30 * 24 * 3600);

/// Administrators and scripts, not end users: more is a mistake that would grow every snapshot.
const MAX_CLIENTS: usize = 1000;

/// Names a client's certificate, in lists and in the certificate; not secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub [u8; 8]);

impl ClientId {
    pub fn random() -> Self {
        let mut id: [u8; 8] = random_bytes();
        // As a serial number it is positive and of one length.
        id[0] = id[0] & 0x7f | 0x40;
        Self(id)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientId({self})")
    }
}

impl FromStr for ClientId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digits = text.len() == 16 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok().filter(|_| digits);
        number
            .map(|id| Self(id.to_be_bytes()))
            .ok_or_else(|| Invalid::new("id", "must have 16 hexadecimal digits"))
    }
}

/// One client of one cluster, as its certificate names it: `client-<id>.<cluster-id>.merlin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientName {
    pub cluster: ClusterId,
    pub client: ClientId,
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client-{}.{}.merlin", self.client, self.cluster)
    }
}

impl ClientName {
    /// The client a certificate speaks for. Says nothing about who issued it.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = parse_x509_certificate(certificate).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let [GeneralName::DNSName(name)] = names.value.general_names.as_slice() else {
            return None;
        };
        let (client, cluster) = name
            .strip_prefix("client-")?
            .strip_suffix(".merlin")?
            .split_once('.')?;
        Some(Self {
            cluster: cluster.parse().ok()?,
            client: client.parse().ok()?,
        })
    }
}

/// What the cluster knows of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRecord {
    /// What operators call it.
    pub name: String,
    pub role: Role,
    pub key: KeyFingerprint,
    pub expires: Timestamp,
    pub revoked: bool,
}

impl ClientRecord {
    /// What the client may do now.
    pub fn standing(&self, now: Timestamp) -> Result<Role, NoClient> {
        let name = || self.name.clone();
        if self.revoked {
            Err(NoClient::Revoked(name()))
        } else if now >= self.expires {
            Err(NoClient::Expired(name()))
        } else {
            Ok(self.role)
        }
    }
}

/// Why a certificate is not, or not any more, a client's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoClient {
    #[error("this cluster does not know the client of this certificate")]
    Unknown,
    #[error("client {0} has been revoked")]
    Revoked(String),
    #[error("the certificate of client {0} has expired")]
    Expired(String),
}

/// What changes clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCommand {
    Create(ClientId, ClientRecord),
    /// By its id, or by its name.
    Revoke(String),
}

/// What a command led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAnswer {
    /// There is such a client, and its certificate is good until then.
    Issued {
        id: ClientId,
        expires: Timestamp,
    },
    Revoked,
    /// It changed nothing.
    Refused(ClientError),
}

/// Why a client is not made or revoked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("client {name} exists already, with id {id}: revoke it first, or choose another name")]
    Exists { name: String, id: ClientId },
    #[error("there is no client {0:?}: see client list")]
    Unknown(String),
    #[error("there are {MAX_CLIENTS} clients already: revoke those that are not needed")]
    TooMany,
}

/// The clients of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    pub records: BTreeMap<ClientId, ClientRecord>,
}

/// Longest name of a client in bytes.
const MAX_NAME: usize = 64;

/// Checks what an operator wants to call a client.
pub fn check_client_name(name: &str) -> Result<(), Invalid> {
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"._-@+".contains(&b);
    if !(1..=MAX_NAME).contains(&name.len()) || !name.bytes().all(letter) {
        let reason = "must be 1 to 64 letters, digits or any of . _ - @ +";
        Err(Invalid::new("name", reason))
    } else if name.parse::<ClientId>().is_ok() {
        Err(Invalid::new("name", "must not look like a client's id"))
    } else {
        Ok(())
    }
}

impl Clients {
    /// Applies a command stamped with the time `at`.
    pub fn apply(&mut self, at: Timestamp, command: ClientCommand) -> ClientAnswer {
        let memory = u64::try_from(MEMORY.as_millis()).unwrap_or(u64::MAX);
        self.records
            .retain(|_, client| at.0 < client.expires.0.saturating_add(memory));
        let applied = match command {
            ClientCommand::Create(id, client) => self.create(at, id, client),
            ClientCommand::Revoke(who) => self.revoke(&who),
        };
        applied.unwrap_or_else(ClientAnswer::Refused)
    }

    /// What the client with this id may do now, and what it is called.
    pub fn standing(&self, id: ClientId, now: Timestamp) -> Result<&ClientRecord, NoClient> {
        let client = self.records.get(&id).ok_or(NoClient::Unknown)?;
        client.standing(now).map(|_| client)
    }

    fn create(
        &mut self,
        at: Timestamp,
        id: ClientId,
        client: ClientRecord,
    ) -> Result<ClientAnswer, ClientError> {
        let same_name = self
            .records
            .iter()
            .find(|(_, known)| known.name == client.name && known.standing(at).is_ok());
        if let Some((&id, known)) = same_name {
            if (known.key, known.role) == (client.key, client.role) {
                let expires = known.expires;
                return Ok(ClientAnswer::Issued { id, expires });
            }
            let name = client.name;
            return Err(ClientError::Exists { name, id });
        }
        if self.records.len() >= MAX_CLIENTS {
            return Err(ClientError::TooMany);
        }
        let expires = client.expires;
        self.records.insert(id, client);
        Ok(ClientAnswer::Issued { id, expires })
    }

    fn revoke(&mut self, who: &str) -> Result<ClientAnswer, ClientError> {
        let id = who.parse().ok();
        let named = |(known, client): &(&ClientId, &mut ClientRecord)| match id {
            Some(id) => **known == id,
            None => client.name == who,
        };
        let mut found = self.records.iter_mut().filter(named).peekable();
        if found.peek().is_none() {
            return Err(ClientError::Unknown(who.to_owned()));
        }
        found.for_each(|(_, client)| client.revoked = true);
        Ok(ClientAnswer::Revoked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000);
    const EXPIRES: Timestamp = Timestamp(2_000);

    fn id(n: u8) -> ClientId {
        ClientId([n; 8])
    }

    fn record(name: &str, key: u8) -> ClientRecord {
        ClientRecord {
            name: name.to_owned(),
            role: Role::Operator,
            key: KeyFingerprint([key; 32]),
            expires: EXPIRES,
            revoked: false,
        }
    }

    fn create(clients: &mut Clients, n: u8, name: &str) -> ClientAnswer {
        clients.apply(NOW, ClientCommand::Create(id(n), record(name, n)))
    }

    fn revoke(clients: &mut Clients, who: &str) -> ClientAnswer {
        clients.apply(NOW, ClientCommand::Revoke(who.to_owned()))
    }

    fn issued(n: u8) -> ClientAnswer {
        ClientAnswer::Issued {
            id: id(n),
            expires: EXPIRES,
        }
    }

    #[test]
    fn a_client_stands_until_it_expires_or_is_revoked() {
        let mut clients = Clients::default();
        assert_eq!(create(&mut clients, 1, "ana"), issued(1));
        assert_eq!(clients.standing(id(1), NOW).unwrap().role, Role::Operator);
        let expired = NoClient::Expired("ana".to_owned());
        assert_eq!(clients.standing(id(1), EXPIRES), Err(expired));
        assert_eq!(clients.standing(id(2), NOW), Err(NoClient::Unknown));
        assert_eq!(revoke(&mut clients, "ana"), ClientAnswer::Revoked);
        let revoked = NoClient::Revoked("ana".to_owned());
        assert_eq!(clients.standing(id(1), NOW), Err(revoked));
    }

    #[test]
    fn a_name_is_one_clients_as_long_as_that_stands() {
        let mut clients = Clients::default();
        create(&mut clients, 1, "ana");
        let refused = ClientAnswer::Refused(ClientError::Exists {
            name: "ana".to_owned(),
            id: id(1),
        });
        assert_eq!(create(&mut clients, 2, "ana"), refused);
        revoke(&mut clients, "ana");
        assert_eq!(create(&mut clients, 2, "ana"), issued(2));
        // By its name, all of that name; by its id, that one.
        assert_eq!(
            revoke(&mut clients, &id(2).to_string()),
            ClientAnswer::Revoked
        );
        assert!(clients.standing(id(2), NOW).is_err());
    }

    #[test]
    fn the_same_key_asking_again_is_the_same_client() {
        let mut clients = Clients::default();
        create(&mut clients, 1, "ana");
        let again = ClientCommand::Create(id(9), record("ana", 1));
        assert_eq!(clients.apply(NOW, again), issued(1));
        assert_eq!(clients.records.len(), 1);
    }

    #[test]
    fn revoking_can_be_repeated_and_knows_what_it_does_not_know() {
        let mut clients = Clients::default();
        create(&mut clients, 1, "ana");
        revoke(&mut clients, "ana");
        assert_eq!(revoke(&mut clients, "ana"), ClientAnswer::Revoked);
        let unknown = ClientAnswer::Refused(ClientError::Unknown("bob".to_owned()));
        assert_eq!(revoke(&mut clients, "bob"), unknown);
    }

    #[test]
    fn clients_that_ended_long_ago_are_forgotten_and_there_is_a_limit() {
        let mut clients = Clients::default();
        for n in 0..MAX_CLIENTS {
            let id = ClientId((n as u64).to_be_bytes());
            let command = ClientCommand::Create(id, record(&format!("c{n}"), 1));
            assert!(matches!(
                clients.apply(NOW, command),
                ClientAnswer::Issued { .. }
            ));
        }
        let too_many = ClientAnswer::Refused(ClientError::TooMany);
        assert_eq!(create(&mut clients, 200, "more"), too_many);
        let later = Timestamp(EXPIRES.0 + 31 * 24 * 3600 * 1000);
        let command = ClientCommand::Create(id(200), record("more", 1));
        clients.apply(later, command);
        assert_eq!(clients.records.len(), 1);
    }

    #[test]
    fn names_are_words_and_ids_are_not_names() {
        for name in ["ana", "ci-runner_2", "ana@example.org", "0123456789abcde"] {
            assert!(check_client_name(name).is_ok(), "{name}");
        }
        let long = "a".repeat(65);
        for name in ["", "two words", "ä", "0123456789abcdef", &long] {
            assert!(check_client_name(name).is_err(), "{name}");
        }
    }
}
