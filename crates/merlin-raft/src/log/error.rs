//! What can go wrong, each with what an operator should do about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::layout::{Ballot, Position};

/// What to do about a log that cannot be trusted any more.
const REJOIN: &str = "Traffic is not affected. Do not restore an old copy of this directory: \
     remove this member with `merlin cluster remove` on another node, move the directory away, \
     and join again, which gives the node a new id; a node that is the only member is brought \
     back from its last `merlin cluster snapshot save`";

/// The log could not be opened. Nothing was deleted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error(
        "the raft log in {} is in use by another merlin daemon: stop that one, \
         or give this one its own --data-dir", dir.display()
    )]
    Locked { dir: PathBuf },

    #[error(
        "the raft log cannot be written, {} is on a file system that is mounted read-only: look \
         in the kernel log why (a failing disk?), then remount it read-write", path.display()
    )]
    ReadOnly {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error(
        "the raft log cannot be opened, there is no permission for {}: give the data directory \
         and what is in it to the user that the daemon runs as", path.display()
    )]
    Permission {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error(
        "the raft log cannot be opened, the file system of {} is full: free some space and start \
         again; nothing that was acknowledged is lost", path.display()
    )]
    Full {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error(
        "the raft log in {} was written by a newer merlin (format {found}, this one knows {known}): \
         start that version", dir.display()
    )]
    Format {
        dir: PathBuf,
        found: u32,
        known: u32,
    },

    #[error("the raft log in {} is damaged: {what}. {REJOIN}", dir.display())]
    Corrupt { dir: PathBuf, what: String },

    #[error("the raft log in {} is damaged: entry {index} is unusable, {flaw}. {REJOIN}", dir.display())]
    BadEntry {
        dir: PathBuf,
        index: u64,
        flaw: String,
    },

    #[error("the raft log in {} is damaged: entry {index} is missing. {REJOIN}", dir.display())]
    Hole { dir: PathBuf, index: u64 },

    #[error(
        "the raft log in {} is shorter than what this node acknowledged: it ends at {}, \
         but {acknowledged} was acknowledged. {REJOIN}",
        dir.display(), display(last.as_ref(), "nothing")
    )]
    Short {
        dir: PathBuf,
        last: Option<Position>,
        acknowledged: Position,
    },

    #[error(
        "the raft log in {} has forgotten a vote: it holds {}, but this node voted for \
         {acknowledged}. {REJOIN}",
        dir.display(), display(vote.as_ref(), "none")
    )]
    VoteLost {
        dir: PathBuf,
        vote: Option<Ballot>,
        acknowledged: Ballot,
    },

    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn display<T: std::fmt::Display>(value: Option<&T>, none: &str) -> String {
    value.map_or_else(|| none.to_owned(), T::to_string)
}

/// A change was not made, or nobody knows. After anything but `TooLarge` and `NotNext` the log
/// takes no more changes until it is opened again: what is on disk is then looked at afresh.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    #[error("entry {index} has {size} bytes, more than the log takes in one entry ({limit})")]
    TooLarge {
        index: u64,
        size: usize,
        limit: usize,
    },
    #[error("entry {index} cannot be appended, for the next one is {expected}")]
    NotNext { index: u64, expected: u64 },
    #[error(
        "the raft log cannot be written, its file system is full: free some space and restart the \
         daemon; nothing that was acknowledged is lost"
    )]
    Full(#[source] Arc<io::Error>),
    #[error("the raft log cannot be written: look in the kernel log for a failing disk")]
    Failed(#[source] Arc<io::Error>),
    #[error(
        "the raft log was removed while the daemon ran, so nothing more is acknowledged. Traffic is \
         not affected. If the cluster has other members, remove this one there and join again; a \
         node that is the only member is brought back from its last `merlin cluster snapshot save`"
    )]
    Removed,
    #[error("the raft log is closed")]
    Closed,
}

/// Entries could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    #[error("entry {index} of the raft log is unusable, {flaw}")]
    BadEntry { index: u64, flaw: String },
    #[error("entry {index} of the raft log is missing")]
    Missing { index: u64 },
    #[error("the raft log cannot be read")]
    Failed(#[source] io::Error),
    #[error("the raft log is closed")]
    Closed,
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(error.into()),
            _ => Self::Failed(error.into()),
        }
    }
}

impl From<sled::Error> for WriteError {
    fn from(error: sled::Error) -> Self {
        io::Error::from(error).into()
    }
}

impl OpenError {
    /// An error of the operating system, sorted by what helps.
    pub(super) fn io(action: &'static str, path: &std::path::Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path, source },
            io::ErrorKind::PermissionDenied => Self::Permission { path, source },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { path, source }
            }
            _ => Self::Io {
                action,
                path,
                source,
            },
        }
    }
}
