//! Copies of a cluster's state in files, and what can be told of them without a cluster.
//!
//! A copy is a snapshot ([`crate::snapshot`]), byte for byte. It holds the cluster's keys, so it is
//! for root alone; or it leaves them out, and a cluster that begins anew from it has others.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use merlin_model::Revision;
use merlin_model::store::{Consistency, ReadError};
use tokio::time::{Instant, timeout_at};

use crate::identity::ClusterId;
use crate::log::Position;
use crate::snapshot::{self, FormatError};
use crate::state::State;
use crate::store::RaftStore;
use crate::typ::NodeId;

/// Why a file is not a copy that can be used. It stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("cannot read {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a usable snapshot", path.display())]
    Unusable {
        path: PathBuf,
        #[source]
        source: FormatError,
    },
    #[error("{} was made before its cluster existed: there is nothing in it", path.display())]
    Unfounded { path: PathBuf },
}

/// A copy that was found good: complete, undamaged, and understood by this version.
#[derive(Debug)]
pub struct Backup {
    pub(crate) state: State,
    pub(crate) contents: Contents,
}

/// What a copy holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    pub cluster: ClusterId,
    pub incarnation: u64,
    pub revision: Revision,
    /// The last entry of the log that it includes.
    pub last: Option<Position>,
    /// In order of their ids.
    pub members: Vec<BackupMember>,
    pub services: usize,
    pub servers: usize,
    /// The version of the file's layout.
    pub format: u32,
    /// Of the file.
    pub bytes: u64,
    /// Whether the key of the certificate authority is in it.
    pub authority: bool,
}

/// Whether a copy holds the key of the certificate authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    Kept,
    LeftOut,
}

/// A member at the time of the copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupMember {
    pub id: NodeId,
    pub name: String,
    pub addr: String,
    pub voter: bool,
}

impl Backup {
    /// Reads and checks all of it. Blocks.
    pub fn read(path: &Path) -> Result<Self, BackupError> {
        let unusable = |source| BackupError::Unusable {
            path: path.to_owned(),
            source,
        };
        let bytes = read(path).map_err(|source| BackupError::Io {
            path: path.to_owned(),
            source,
        })?;
        let bytes = bytes.map_err(unusable)?;
        let state = snapshot::decode(&bytes).map_err(unusable)?;
        let founding = state.cluster.founding.as_ref();
        let founding = founding.ok_or_else(|| BackupError::Unfounded {
            path: path.to_owned(),
        })?;
        let contents = Contents {
            cluster: founding.cluster,
            incarnation: founding.incarnation,
            revision: state.catalog.revision(),
            last: state.applied.as_ref().map(crate::log::position),
            members: members(&state),
            services: state.catalog.services().len(),
            servers: state.catalog.services().map(|s| s.servers.len()).sum(),
            format: snapshot::FORMAT,
            bytes: bytes.len() as u64,
            authority: !founding.ca.key.is_empty(),
        };
        Ok(Self { state, contents })
    }

    pub fn contents(&self) -> &Contents {
        &self.contents
    }
}

/// Whatever else is given instead of a copy need not be read whole.
fn read(path: &Path) -> io::Result<Result<Bytes, FormatError>> {
    let bytes = read_beginning(path)?;
    if let Err(error) = snapshot::check_beginning(&bytes) {
        return Ok(Err(error));
    }
    Ok(Ok(fs::read(path)?.into()))
}

fn read_beginning(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(12).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(crate) fn members(state: &State) -> Vec<BackupMember> {
    let membership = state.membership.membership();
    let member = |(id, node): (&NodeId, &crate::typ::MerlinNode)| BackupMember {
        id: *id,
        name: node.name.clone(),
        addr: node.addr.clone(),
        voter: membership.voter_ids().any(|voter| voter == *id),
    };
    membership.nodes().map(member).collect()
}

/// Why a copy was not saved. Whatever had the file's name before still has.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error(
        "{} exists and is not a snapshot: choose another name, it would be replaced", path.display()
    )]
    Occupied { path: PathBuf },
    #[error("cannot write {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("what arrived is not a good copy")]
    Arrived(#[source] BackupError),
}

/// Saves a copy that arrives in pieces. The file has its name only when it is complete, found good
/// and on the disk; given up before, it leaves nothing. All calls block.
#[derive(Debug)]
pub struct Saving {
    path: PathBuf,
    unfinished: PathBuf,
    file: File,
}

impl Saving {
    pub fn begin(path: &Path) -> Result<Self, SaveError> {
        let failed = |source| SaveError::Io {
            path: path.to_owned(),
            source,
        };
        match read_beginning(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(bytes) if snapshot::has_magic(&bytes) => {}
            Ok(_) => {
                return Err(SaveError::Occupied {
                    path: path.to_owned(),
                });
            }
        }
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".part");
        let unfinished = PathBuf::from(unfinished);
        // It holds the cluster's keys. One that a crash left may be anybody's to read.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            unfinished,
            file,
        })
    }

    pub fn write(&mut self, piece: &[u8]) -> Result<(), SaveError> {
        let written = self.file.write_all(piece);
        written.map_err(|source| self.failed(source))
    }

    /// Checks what is on the disk and gives it its name.
    pub fn finish(self) -> Result<Contents, SaveError> {
        let synced = self.file.sync_all();
        synced.map_err(|source| self.failed(source))?;
        let backup = Backup::read(&self.unfinished).map_err(SaveError::Arrived)?;
        let name = || -> io::Result<()> {
            fs::rename(&self.unfinished, &self.path)?;
            let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
            File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
        };
        name().map_err(|source| self.failed(source))?;
        Ok(backup.contents)
    }

    fn failed(&self, source: io::Error) -> SaveError {
        SaveError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        // Not there any more when it has its name.
        let _ = fs::remove_file(&self.unfinished);
    }
}

impl RaftStore {
    /// A copy of the whole state, as the bytes of a file. A linearizable one has every change that
    /// was acknowledged before the call.
    pub async fn copy(
        &self,
        consistency: Consistency,
        keys: Keys,
        timeout: Duration,
    ) -> Result<Bytes, ReadError> {
        if consistency == Consistency::Linearizable {
            let caught_up = self.inner.reads.catch_up(&self.inner.views.applied);
            let caught_up = timeout_at(Instant::now() + timeout, caught_up);
            caught_up.await.map_err(|_| ReadError::Timeout(timeout))??;
        }
        let mut state = self.inner.views.whole.state();
        if keys == Keys::LeftOut {
            Arc::make_mut(&mut state.cluster).forget_keys();
        }
        let encoded = tokio::task::spawn_blocking(move || snapshot::encode(&state)).await;
        encoded.map_err(|error| ReadError::Unavailable {
            reason: error.to_string(),
        })
    }
}
