//! Makes one node that is left the only one of its cluster, when the quorum is lost for good.
//!
//! ```text
//! inspect   lock the directory, read snapshot and log, say what is there and who might live
//! perform   copy the directory into itself ─▶ identity removed ─▶ snapshot of the new life
//!           ─▶ node.json ─▶ log cleared away
//! ```
//! Entries that are in the log and not known to be committed are kept: the lost majority may have
//! acknowledged them. What was acknowledged and is not in this node's log is lost.
//!
//! Cut off anywhere, it can be run again. In between the directory is the old node's, or that of a
//! node of the new life with the old one's leftovers; neither is heard by the old members.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::join_all;
use merlin_model::Revision;
use openraft::RaftLogReader;
use openraft::storage::RaftLogStorage;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::backup::{self, BackupMember};
use crate::datadir::{DataDir, DataDirError, NodeFile};
use crate::identity::PeerName;
use crate::log::LogStore;
use crate::proposer::now;
use crate::rebirth::{Cause, reborn};
use crate::restore::Reborn;
use crate::snapshot::Snapshots;
use crate::state::State;
use crate::typ::{LogId, MerlinNode};

/// How long a member may take to answer that is alive.
const PROBE: Duration = Duration::from_secs(3);

/// Entries read at a time.
const STRIDE: u64 = 256;

/// Why a node cannot be made the only one. What is in its directory still is.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(
        "{} holds no node: say with --data-dir where this host's node is, or begin from a copy \
         with `merlin cluster snapshot restore`",
        dir.display()
    )]
    Empty { dir: PathBuf },
    #[error(
        "{} holds a node that has not heard from its cluster yet: there is nothing in it to go on \
         with",
        dir.display()
    )]
    Unfounded { dir: PathBuf },
    #[error("this node is its cluster's only voter and needs no other: start the daemon")]
    Alone,
    #[error(transparent)]
    Log(#[from] crate::log::OpenError),
    #[error("the state in {} cannot be {action}", dir.display())]
    State {
        action: &'static str,
        dir: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot copy {} to {}: make room and run it again", from.display(), to.display())]
    Copy {
        from: PathBuf,
        to: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("it was cut off: run it again")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// A stopped node's directory, locked, and what is in it.
#[derive(Debug)]
pub struct Remains {
    dir: DataDir,
    path: PathBuf,
    state: State,
    summary: Summary,
}

/// What a node has to go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub name: PeerName,
    /// What operators call the node, and where it was reached; unknown when it is no member.
    pub node_name: Option<String>,
    pub addr: Option<String>,
    pub incarnation: u64,
    /// The last log entry that is known to be committed.
    pub committed: Option<u64>,
    /// The last one there is.
    pub last: Option<u64>,
    /// The revision with all entries applied.
    pub revision: Revision,
    /// Entries after the committed one. They are kept, and may never have been acknowledged.
    pub uncertain: u64,
    pub services: usize,
    /// Everybody but this node.
    pub others: Vec<BackupMember>,
    /// Whether this node had a vote. One without may lack more.
    pub voter: bool,
}

/// What has become of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    pub reborn: Reborn,
    /// Everything that was in the directory.
    pub backup: PathBuf,
}

impl Remains {
    /// Looks at the directory of a node whose daemon is stopped. Changes nothing.
    pub async fn inspect(path: &Path) -> Result<Self, RecoverError> {
        let at = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || open(&at));
        let (dir, node, mut state, mut log) = opened.await??;
        let replayed = replay(&mut log, &mut state).await;
        let last = log
            .get_log_state()
            .await
            .ok()
            .and_then(|log| log.last_log_id);
        let committed = log.read_committed().await.ok().flatten();
        // Fails only with the runtime, and then the process ends anyway.
        let _ = tokio::task::spawn_blocking(move || log.close()).await;
        let snapshot = replayed.map_err(|source| RecoverError::State {
            action: "read",
            dir: path.to_owned(),
            source,
        })?;

        if state.cluster.founding.is_none() {
            return Err(RecoverError::Unfounded {
                dir: path.to_owned(),
            });
        }
        let index = |at: Option<LogId>| at.map(|at| at.index);
        let committed = index(committed).max(index(snapshot.applied));
        let last = index(last).max(index(state.applied));
        let mut members = backup::members(&state);
        let own = members.iter().position(|member| member.id == node.node);
        let own = own.map(|at| members.remove(at));
        let summary = Summary {
            name: node.name(),
            node_name: own.as_ref().map(|own| own.name.clone()),
            addr: own.as_ref().map(|own| own.addr.clone()),
            incarnation: node.incarnation,
            committed,
            last,
            revision: state.catalog.revision(),
            uncertain: last.unwrap_or(0).saturating_sub(committed.unwrap_or(0)),
            services: state.catalog.services().len(),
            voter: own.as_ref().is_some_and(|own| own.voter),
            others: members,
        };
        if summary.voter && !summary.others.iter().any(|member| member.voter) {
            return Err(RecoverError::Alone);
        }
        Ok(Self {
            dir,
            path: path.to_owned(),
            state,
            summary,
        })
    }

    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Those of the other members at whose addresses somebody answers, and so may have a quorum, or
    /// have one soon.
    pub async fn alive(&self) -> Vec<BackupMember> {
        let probes = self.summary.others.iter().map(|member| async move {
            let connected = timeout(PROBE, TcpStream::connect(&member.addr)).await;
            matches!(connected, Ok(Ok(_))).then(|| member.clone())
        });
        join_all(probes).await.into_iter().flatten().collect()
    }

    /// Makes it the only node. The next start of the daemon is that of a cluster of one.
    pub async fn perform(self, name: String, addr: String) -> Result<Recovered, RecoverError> {
        let this = MerlinNode { name, addr };
        let written = tokio::task::spawn_blocking(move || self.write(this));
        let (recovered, log, applied) = written.await??;
        let log_dir = log.clone();
        let opened = tokio::task::spawn_blocking(move || LogStore::open(&log_dir)).await?;
        let mut log_store = opened?;
        if let Some(applied) = applied {
            let purged = log_store.purge(applied).await;
            purged.map_err(|error| RecoverError::State {
                action: "cleared away",
                dir: log,
                source: error.into(),
            })?;
        }
        let _ = tokio::task::spawn_blocking(move || log_store.close()).await;
        Ok(recovered)
    }

    fn write(self, this: MerlinNode) -> Result<(Recovered, PathBuf, Option<LogId>), RecoverError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| RecoverError::State {
            action: "written",
            dir: self.path.clone(),
            source,
        };
        let (state, node) = reborn(&self.state, this, now(), Cause::Recovered)
            .map_err(|error| failed(error.into()))?;
        let backup = self.path.join(format!("before-recovery-{}", now().0));
        copy(&self.path, &backup).map_err(|source| RecoverError::Copy {
            from: self.path.clone(),
            to: backup.clone(),
            source,
        })?;
        self.dir.forget_old_node()?;
        let snapshots =
            Snapshots::open(self.dir.snapshots()).map_err(|error| failed(error.into()))?;
        snapshots
            .write_alone(&state)
            .map_err(|error| failed(error.into()))?;
        self.dir.set_node(&node)?;
        let recovered = Recovered {
            reborn: Reborn {
                name: node.name(),
                incarnation: node.incarnation,
                revision: state.catalog.revision(),
            },
            backup,
        };
        Ok((recovered, self.dir.log(), state.applied))
    }
}

fn open(path: &Path) -> Result<(DataDir, NodeFile, State, LogStore), RecoverError> {
    if !path.exists() {
        return Err(RecoverError::Empty {
            dir: path.to_owned(),
        });
    }
    let dir = DataDir::open(path)?;
    let node = dir.node()?.ok_or_else(|| RecoverError::Empty {
        dir: path.to_owned(),
    })?;
    let unreadable = |source: crate::snapshot::SnapshotError| RecoverError::State {
        action: "read",
        dir: path.to_owned(),
        source: source.into(),
    };
    let snapshots = Snapshots::open(dir.snapshots()).map_err(unreadable)?;
    let state = snapshots.load().map_err(unreadable)?.unwrap_or_default();
    let log = LogStore::open(&dir.log())?;
    Ok((dir, node, state, log))
}

/// Applies every entry there is, and gives the state before.
async fn replay(
    log: &mut LogStore,
    state: &mut State,
) -> Result<State, Box<dyn std::error::Error + Send + Sync>> {
    let before = state.clone();
    let end = log.get_log_state().await?.last_log_id;
    let end = end.map_or(0, |last| last.index + 1);
    let mut next = state.applied.map_or(0, |at| at.index + 1);
    while next < end {
        let entries = log
            .try_get_log_entries(next..end.min(next + STRIDE))
            .await?;
        for entry in entries {
            next = entry.log_id.index + 1;
            state.apply(entry, &mut Vec::new())?;
        }
    }
    Ok(before)
}

/// Copies all files of a node, on the disk when this returns.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let earlier = name.to_string_lossy().starts_with("before-recovery-");
        if earlier || name == "lock" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to.join(name))?;
        } else {
            let copied = to.join(name);
            fs::copy(entry.path(), &copied)?;
            fs::File::open(&copied)?.sync_all()?;
        }
    }
    fs::File::open(to)?.sync_all()
}

#[cfg(test)]
mod tests;
