//! The answers a catalog store can give, whichever store it is.

use std::time::Duration;

use crate::catalog::Revision;
use crate::command::Rejection;

/// Why a command has no positive answer.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// The catalog refused it; it changed nothing and a retry would be refused again.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// It was not accepted and changed nothing; a retry may succeed.
    #[error("the store is not available: {reason}")]
    Unavailable { reason: String },
    /// Some members of the cluster run a version that does not know such commands. It changed
    /// nothing; the reason says which.
    #[error("{reason}")]
    Outdated { reason: String },
    /// It may or may not have been applied, now or later. A retry with the same request id is safe.
    #[error("the outcome is unknown: {reason}")]
    Unknown { reason: String },
    /// It exceeds what the store takes in one piece.
    #[error("the command is too large: {size} bytes, at most {limit}")]
    TooLarge { size: usize, limit: usize },
}

/// How fresh a read has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write acknowledged before the read began.
    #[default]
    Linearizable,
    /// The local copy, which may lag.
    Stale,
}

/// Why a read has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the store is not available: {reason}")]
    Unavailable { reason: String },
    #[error("no answer from the store within {0:?}")]
    Timeout(Duration),
}

/// A watch cannot start or go on: events before this revision are gone, read the catalog again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("events before revision {oldest} are no longer kept")]
pub struct Compacted {
    /// Oldest revision a watch can still begin after.
    pub oldest: Revision,
}
