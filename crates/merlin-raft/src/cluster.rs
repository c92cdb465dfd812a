//! What the cluster has agreed about itself, beside the catalog: which cluster it is, its
//! certificate authority, join tokens and the numbers of its nodes.
//!
//! Pure and deterministic like the catalog. Who is a member is not kept here: that is consensus's
//! own membership.

use merlin_model::{Actor, Timestamp};
use merlin_proto::{access, log};

use crate::codec::DecodeError;
use crate::identity::{
    Ca, CaError, ClientAnswer, ClientCommand, Clients, ClusterId, EnrollmentAnswer,
    EnrollmentCommand, EnrollmentState,
};
use crate::level::Level;
use crate::rotation::{Rotation, Stage, Turn};

/// Which cluster this is, and by which authority its nodes know each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Founding {
    pub(crate) cluster: ClusterId,
    /// Raised when a cluster is restored from a copy: its revisions may differ from those that
    /// clients and old members remember.
    pub(crate) incarnation: u64,
    pub(crate) ca: AuthorityKeys,
    /// What the cluster begins with, as there is no older member.
    pub(crate) level: Level,
}

/// The certificate authority as [`crate::identity::Ca`] reads it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct AuthorityKeys {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClusterCommand {
    pub(crate) at: Timestamp,
    /// Who asked for it.
    pub(crate) by: Actor,
    pub(crate) change: ClusterChange,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClusterChange {
    /// The first command of a cluster. Later ones change nothing.
    Found(Founding),
    Enrollment(EnrollmentCommand),
    Client(ClientCommand),
    /// The cluster agrees on this level. It never falls.
    Raise(Level),
    /// A turn of the authority's rotation, decided on at this step.
    Rotate(u64, Turn),
}

/// The answer to the command of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClusterAnswer {
    /// False when the cluster had been founded before.
    Founded(bool),
    Enrollment(EnrollmentAnswer),
    Client(ClientAnswer),
    /// The level agreed on.
    Raised(Level),
    /// The step that the rotation has reached.
    Rotated(u64),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClusterState {
    /// Absent before a cluster's first command.
    pub(crate) founding: Option<Founding>,
    pub(crate) enrollment: EnrollmentState,
    /// Who administers the cluster from elsewhere.
    pub(crate) clients: Clients,
    /// What commands are used: those that every member can apply.
    pub(crate) level: Level,
    /// Of the authority.
    pub(crate) rotation: Rotation,
}

impl ClusterState {
    pub(crate) fn apply(&mut self, command: ClusterCommand) -> ClusterAnswer {
        match command.change {
            ClusterChange::Found(founding) => {
                let first = self.founding.is_none();
                if first {
                    self.level = founding.level;
                }
                self.founding.get_or_insert(founding);
                ClusterAnswer::Founded(first)
            }
            ClusterChange::Enrollment(change) => {
                ClusterAnswer::Enrollment(self.enrollment.apply(command.at, change))
            }
            ClusterChange::Client(change) => {
                ClusterAnswer::Client(self.clients.apply(command.at, change))
            }
            ClusterChange::Raise(level) => {
                self.level = self.level.max(level);
                ClusterAnswer::Raised(self.level)
            }
            ClusterChange::Rotate(step, turn) => {
                if let Some(founding) = &mut self.founding {
                    self.rotation.turn(&mut founding.ca, step, turn);
                }
                ClusterAnswer::Rotated(self.rotation.step)
            }
        }
    }
}

impl ClusterState {
    /// Nobody can be let in with what is left.
    pub(crate) fn forget_keys(&mut self) {
        if let Some(founding) = &mut self.founding {
            founding.ca.key.clear();
        }
        self.rotation.stage = Stage::Settled;
    }

    /// Goes on with other keys where they were left out. Clients of the authority before are none
    /// of the new one's.
    pub(crate) fn replace_keys(&mut self, keys: AuthorityKeys) {
        if let Some(founding) = &mut self.founding {
            founding.ca = keys;
        }
        self.clients = Clients::default();
    }
}

impl Founding {
    pub(crate) fn authority(&self) -> Result<Ca, CaError> {
        Ca::load(&self.ca.certificate, &self.ca.key)
    }
}

impl From<&Ca> for AuthorityKeys {
    fn from(ca: &Ca) -> Self {
        Self {
            certificate: ca.certificate().to_vec(),
            key: ca.key().to_vec(),
        }
    }
}

impl std::fmt::Debug for AuthorityKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("AuthorityKeys").finish_non_exhaustive()
    }
}

// === encoding ===

impl From<&Founding> for log::Founding {
    fn from(founding: &Founding) -> Self {
        Self {
            cluster_id: founding.cluster.as_bytes().to_vec(),
            incarnation: founding.incarnation,
            ca_certificate: founding.ca.certificate.clone(),
            ca_key: founding.ca.key.clone(),
            level: founding.level.number(),
        }
    }
}

impl TryFrom<log::Founding> for Founding {
    type Error = DecodeError;

    fn try_from(message: log::Founding) -> Result<Self, DecodeError> {
        let id = <[u8; 16]>::try_from(message.cluster_id);
        let id = id.map_err(|_| DecodeError::Missing { what: "cluster id" })?;
        Ok(Self {
            cluster: ClusterId::from_bytes(id),
            incarnation: message.incarnation,
            ca: AuthorityKeys {
                certificate: message.ca_certificate,
                key: message.ca_key,
            },
            level: Level::of_message(message.level),
        })
    }
}

impl From<&ClusterCommand> for log::ClusterCommand {
    fn from(command: &ClusterCommand) -> Self {
        use log::cluster_command::Change;
        Self {
            at: command.at.0,
            actor: access::actor_to_log(&command.by),
            change: Some(match &command.change {
                ClusterChange::Found(founding) => Change::Found(founding.into()),
                ClusterChange::Enrollment(change) => Change::Enrollment(change.encode()),
                ClusterChange::Client(change) => Change::Client(change.to_proto()),
                ClusterChange::Raise(level) => Change::Raise(level.number()),
                ClusterChange::Rotate(step, turn) => Change::Rotate(turn.to_log(*step)),
            }),
        }
    }
}

impl TryFrom<log::ClusterCommand> for ClusterCommand {
    type Error = DecodeError;

    fn try_from(message: log::ClusterCommand) -> Result<Self, DecodeError> {
        use log::cluster_command::Change;
        let missing = DecodeError::Missing {
            what: "the change of a cluster command",
        };
        Ok(Self {
            at: Timestamp(message.at),
            by: access::actor_from_log(message.actor.as_ref()),
            change: match message.change.ok_or(missing)? {
                Change::Found(founding) => ClusterChange::Found(founding.try_into()?),
                Change::Enrollment(bytes) => {
                    ClusterChange::Enrollment(EnrollmentCommand::decode(&bytes)?)
                }
                Change::Client(change) => ClusterChange::Client(ClientCommand::from_proto(change)?),
                Change::Raise(level) => ClusterChange::Raise(Level::of_message(level)),
                Change::Rotate(command) => {
                    let (step, turn) = Turn::from_log(command)?;
                    ClusterChange::Rotate(step, turn)
                }
            },
        })
    }
}

impl From<&ClusterAnswer> for log::ClusterAnswer {
    fn from(answer: &ClusterAnswer) -> Self {
        use log::cluster_answer::Answer;
        Self {
            answer: Some(match answer {
                ClusterAnswer::Founded(first) => Answer::Founded(*first),
                ClusterAnswer::Enrollment(answer) => Answer::Enrollment(answer.encode()),
                ClusterAnswer::Client(answer) => Answer::Client(answer.to_proto()),
                ClusterAnswer::Raised(level) => Answer::Raised(level.number()),
                ClusterAnswer::Rotated(step) => Answer::Rotated(*step),
            }),
        }
    }
}

impl TryFrom<log::ClusterAnswer> for ClusterAnswer {
    type Error = DecodeError;

    fn try_from(message: log::ClusterAnswer) -> Result<Self, DecodeError> {
        use log::cluster_answer::Answer;
        let missing = DecodeError::Missing {
            what: "the answer to a cluster command",
        };
        Ok(match message.answer.ok_or(missing)? {
            Answer::Founded(first) => Self::Founded(first),
            Answer::Enrollment(bytes) => Self::Enrollment(EnrollmentAnswer::decode(&bytes)?),
            Answer::Client(answer) => Self::Client(ClientAnswer::from_proto(answer)?),
            Answer::Raised(level) => Self::Raised(Level::of_message(level)),
            Answer::Rotated(step) => Self::Rotated(step),
        })
    }
}

impl From<&ClusterState> for log::Cluster {
    fn from(state: &ClusterState) -> Self {
        Self {
            founding: state.founding.as_ref().map(Into::into),
            enrollment: state.enrollment.encode(),
            clients: state.clients.to_proto(),
            level: state.level.number(),
            rotation: (state.rotation != Rotation::default()).then(|| (&state.rotation).into()),
        }
    }
}

impl TryFrom<log::Cluster> for ClusterState {
    type Error = DecodeError;

    fn try_from(message: log::Cluster) -> Result<Self, DecodeError> {
        Ok(Self {
            founding: message.founding.map(TryInto::try_into).transpose()?,
            enrollment: EnrollmentState::decode(&message.enrollment)?,
            clients: Clients::from_proto(message.clients)?,
            level: Level::of_message(message.level),
            rotation: message.rotation.map(Into::into).unwrap_or_default(),
        })
    }
}
