//! Makes an empty data directory that of the only node of a cluster, from a copy of its state.
//!
//! ```text
//! copy is good?  ─▶ restoring ─▶ log/ with the last term ─▶ snapshots/ ─▶ node.json ─▶ restoring removed
//! ```
//! Until node.json is there no daemon takes the directory for a node's: `restoring` forbids it. A
//! restore that is interrupted can be run again.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use merlin_model::Revision;
use openraft::storage::RaftLogStorage;

use crate::backup::{Backup, BackupError};
use crate::datadir::{DataDir, DataDirError};
use crate::identity::{Ca, CaError, PeerName};
use crate::log::LogStore;
use crate::proposer::now;
use crate::rebirth::{Cause, reborn};
use crate::snapshot::{SnapshotError, Snapshots};
use crate::state::State;
use crate::typ::{MerlinNode, StorageError, Vote};

/// What is to be made of a copy.
#[derive(Clone, Debug)]
pub struct Restore {
    pub file: PathBuf,
    /// Where the node will keep its state. Empty, or not there.
    pub data_dir: PathBuf,
    /// What operators call the node.
    pub name: String,
    /// Where other nodes will reach it.
    pub advertise: SocketAddr,
}

/// A cluster that begins anew, of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reborn {
    pub name: PeerName,
    pub incarnation: u64,
    pub revision: Revision,
}

/// Why nothing was restored. Neither the copy nor the directory was changed, or the restore can be
/// run again.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(
        "{} is not empty, it holds {found}: a snapshot is restored into an empty directory only. \
         Stop merlin and move the directory away, or choose another --data-dir",
        dir.display()
    )]
    NotEmpty { dir: PathBuf, found: String },
    #[error("no new certificate authority could be made")]
    Authority(#[from] CaError),
    #[error(transparent)]
    Log(#[from] crate::log::OpenError),
    #[error("the state could not be written to {}", dir.display())]
    Write {
        dir: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the restore was cut off: run it again")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Restores a copy. The next start of the daemon is that of a cluster of one.
pub async fn restore(restore: Restore) -> Result<Reborn, RestoreError> {
    let Restore {
        file,
        data_dir,
        name,
        advertise,
    } = restore;
    let read = tokio::task::spawn_blocking(move || Backup::read(&file));
    let Backup {
        mut state,
        contents,
    } = read.await??;
    if !contents.authority {
        let ca = Ca::create(contents.cluster, now())?;
        Arc::make_mut(&mut state.cluster).replace_keys((&ca).into());
    }
    let this = MerlinNode {
        name,
        addr: advertise.to_string(),
    };
    let wrote = |source: Box<dyn std::error::Error + Send + Sync>| RestoreError::Write {
        dir: data_dir.clone(),
        source,
    };
    let (state, node) =
        reborn(&state, this, now(), Cause::Restored).map_err(|error| wrote(error.into()))?;

    let path = data_dir.clone();
    let dir = tokio::task::spawn_blocking(move || claim(&path)).await??;
    let log_dir = dir.log();
    let log = tokio::task::spawn_blocking(move || LogStore::open(&log_dir)).await??;
    promise(log, &state)
        .await
        .map_err(|error| wrote(error.into()))?;

    let reborn = Reborn {
        name: node.name(),
        incarnation: node.incarnation,
        revision: state.catalog.revision(),
    };
    let written = tokio::task::spawn_blocking(move || -> Result<(), WriteError> {
        Snapshots::open(dir.snapshots())?.write(&state)?;
        dir.set_node(&node)?;
        dir.end_restoring()?;
        Ok(())
    });
    written.await?.map_err(|error| match error {
        WriteError::Snapshot(error) => wrote(error.into()),
        WriteError::DataDir(error) => error.into(),
    })?;
    Ok(reborn)
}

enum WriteError {
    Snapshot(SnapshotError),
    DataDir(DataDirError),
}

impl From<SnapshotError> for WriteError {
    fn from(error: SnapshotError) -> Self {
        Self::Snapshot(error)
    }
}

impl From<DataDirError> for WriteError {
    fn from(error: DataDirError) -> Self {
        Self::DataDir(error)
    }
}

/// Takes an empty directory, or one where a restore was interrupted, which is cleared.
fn claim(path: &Path) -> Result<DataDir, RestoreError> {
    // Looked at first: a directory that is not empty stays as it is.
    let found = occupants(path).map_err(|source| {
        RestoreError::DataDir(DataDirError::Io {
            action: "list",
            path: path.to_owned(),
            source,
        })
    })?;
    let interrupted = found.iter().any(|name| name == crate::datadir::RESTORING)
        && !found.iter().any(|name| name == "node.json");
    let foreign = found.iter().find(|name| {
        let ours = ["log", "snapshots", crate::datadir::RESTORING].contains(&name.as_str());
        !(interrupted && ours)
    });
    if let Some(foreign) = foreign {
        return Err(RestoreError::NotEmpty {
            dir: path.to_owned(),
            found: foreign.clone(),
        });
    }
    let dir = DataDir::open(path)?;
    dir.begin_restoring()?;
    Ok(dir)
}

/// What is in a directory, save what every file system or daemon leaves in it.
fn occupants(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.retain(|name| name != "lock" && name != "lost+found");
    names.sort();
    Ok(names)
}

/// Terms go on from the copy's, so that whatever is logged from now on is later than what it holds.
async fn promise(mut log: LogStore, state: &State) -> Result<(), StorageError> {
    let term = state.applied.map_or(0, |at| at.leader_id.term);
    let saved = log.save_vote(&Vote::new(term, 0)).await;
    // Fails only with the runtime, and then the process ends anyway.
    let _ = tokio::task::spawn_blocking(move || log.close()).await;
    saved
}
