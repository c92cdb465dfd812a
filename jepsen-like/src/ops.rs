//! What is asked of merlin and what it answers: the vocabulary of a recorded history.
//!
//! Every value that is written is a serial of its own, so that whatever is seen later can be
//! traced to the one request that wrote it. Service and server names are serials too and are never
//! used twice, except where clients race to create the same one.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{Catalog, Table};

/// A number that is given out once in a run.
pub type Serial = u32;
pub type Revision = u64;
/// Microseconds since the run began, by the one clock of the harness.
pub type Moment = u64;
/// Number of a node in the lab, from 1.
pub type Node = u8;
/// How often a node's daemon was started before, so that what one process says can be told from
/// what the next one does.
pub type Life = u32;

/// One mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    CreateService {
        service: Serial,
        port: u16,
        value: Serial,
    },
    EditService {
        service: Serial,
        value: Serial,
    },
    /// Deletes its servers too.
    DeleteService {
        service: Serial,
    },
    CreateServer {
        service: Serial,
        server: Serial,
        value: Serial,
    },
    EditServer {
        service: Serial,
        server: Serial,
        value: Serial,
    },
    DeleteServer {
        service: Serial,
        server: Serial,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    pub action: Action,
    /// Revision the object must have last changed at; 0: must not exist.
    pub expected: Option<Revision>,
}

/// A refusal for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Refusal {
    Exists,
    NotFound,
    Conflict,
}

/// How a write ended for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Done {
        revision: Revision,
        /// False for the deletion of what was not there.
        changed: bool,
    },
    Refused(Refusal),
    /// It was promised that nothing happened and nothing will.
    Nothing,
    /// It may have happened, or may yet.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRecord {
    pub start: Moment,
    pub end: Moment,
    /// The node that gave the answer, or was asked last.
    pub node: Node,
    pub write: Write,
    /// More than one: the same request id was sent again after an unknown outcome, or once more
    /// after the answer.
    pub attempts: u8,
    pub outcome: Outcome,
}

/// A read that was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRecord {
    pub start: Moment,
    pub end: Moment,
    pub node: Node,
    pub life: Life,
    pub stale: bool,
    pub revision: Revision,
    pub content: Arc<Catalog>,
}

/// One object's step, as a watch tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    ServicePut {
        service: Serial,
        port: u16,
        value: Serial,
        created: Revision,
        changed: Revision,
    },
    ServiceDeleted {
        service: Serial,
        port: u16,
    },
    ServerPut {
        service: Serial,
        server: Serial,
        value: Serial,
        created: Revision,
        changed: Revision,
    },
    ServerDeleted {
        service: Serial,
        server: Serial,
    },
}

/// What one watch was told, from its beginning to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    pub start: Moment,
    pub node: Node,
    pub life: Life,
    /// The revision it resumed after; absent: from now on.
    pub from: Option<Revision>,
    pub frames: Vec<Frame>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    pub at: Moment,
    pub revision: Revision,
    /// Empty in the first frame and in progress notices.
    pub events: Vec<Event>,
}

/// What a node said of itself and of its table, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    pub start: Moment,
    pub end: Moment,
    pub node: Node,
    pub life: Life,
    /// Revision of the catalog the node held, before the table was read.
    pub catalog: Revision,
    /// Revision the table had matched last, before it was read.
    pub programmed: Revision,
    /// Whether what the node holds may be old: it started while the etcd was away, and leaves the
    /// table as it is until that has answered.
    pub unconfirmed: bool,
    pub table: Arc<Table>,
}

/// A claim about who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Led {
    pub at: Moment,
    pub node: Node,
    pub term: u64,
    /// The leader as the cluster numbers its nodes.
    pub leader: u64,
}

/// A time in which a node could not be expected to keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hurt {
    pub node: Node,
    pub from: Moment,
    pub to: Moment,
}

/// Everything that was observed in a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub writes: Vec<WriteRecord>,
    pub reads: Vec<ReadRecord>,
    pub watches: Vec<Watch>,
    pub samples: Vec<Sample>,
    pub led: Vec<Led>,
    /// From the logs, in their order; without times, because clocks jump.
    pub logged: Vec<Led>,
    pub hurts: Vec<Hurt>,
    /// Revisions in which nothing of the catalog need have changed.
    pub gaps: BTreeSet<Revision>,
}

impl Action {
    #[must_use]
    pub const fn service(&self) -> Serial {
        match *self {
            Self::CreateService { service, .. }
            | Self::EditService { service, .. }
            | Self::DeleteService { service }
            | Self::CreateServer { service, .. }
            | Self::EditServer { service, .. }
            | Self::DeleteServer { service, .. } => service,
        }
    }

    #[must_use]
    pub const fn server(&self) -> Option<Serial> {
        match *self {
            Self::CreateServer { server, .. }
            | Self::EditServer { server, .. }
            | Self::DeleteServer { server, .. } => Some(server),
            _ => None,
        }
    }

    /// The serial by which its effect is recognised; deletions leave none.
    #[must_use]
    pub const fn value(&self) -> Option<Serial> {
        match *self {
            Self::CreateService { value, .. }
            | Self::EditService { value, .. }
            | Self::CreateServer { value, .. }
            | Self::EditServer { value, .. } => Some(value),
            Self::DeleteService { .. } | Self::DeleteServer { .. } => None,
        }
    }
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.action {
            Action::CreateService {
                service,
                port,
                value,
            } => write!(f, "create service s{service} port {port} = {value}")?,
            Action::EditService { service, value } => {
                write!(f, "edit service s{service} = {value}")?;
            }
            Action::DeleteService { service } => write!(f, "delete service s{service}")?,
            Action::CreateServer {
                service,
                server,
                value,
            } => write!(f, "create server {server} of s{service} = {value}")?,
            Action::EditServer {
                service,
                server,
                value,
            } => write!(f, "edit server {server} of s{service} = {value}")?,
            Action::DeleteServer { service, server } => {
                write!(f, "delete server {server} of s{service}")?;
            }
        }
        match self.expected {
            Some(expected) => write!(f, " if at {expected}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { revision, changed } if *changed => write!(f, "done at {revision}"),
            Self::Done { revision, .. } => write!(f, "nothing to do at {revision}"),
            Self::Refused(refusal) => write!(f, "refused: {refusal:?}"),
            Self::Nothing => f.write_str("did not happen"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl fmt::Display for WriteRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            start, end, node, ..
        } = self;
        let (write, outcome) = (self.write, self.outcome);
        write!(f, "`{write}` at n{node} [{start}..{end} us]: {outcome}")
    }
}
