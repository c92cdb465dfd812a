//! The data directory: who may use it, and which node of which cluster it belongs to.
//!
//! ```text
//! <data-dir>/           mode 0700: it holds the cluster's keys
//!   lock                locked by the running daemon
//!   node.json           which node this is; written before anything else is
//!   removed             there once the cluster has removed the node
//!   introducers.json    who let the node in; of use until it is a member
//!   log/                the replicated log
//!   snapshots/          what the log before it amounts to
//!   identity/           the node's key and certificate
//!   restoring           a restore is under way, or was interrupted
//! ```
//!
//! Nothing in here is ever deleted to get over an error.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::identity::{ClusterId, Life, PeerName};
use crate::log::LogEngine;
use crate::settle;
use crate::typ::NodeId;

const FORMAT: u32 = 1;

/// Which node of which cluster a data directory belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeFile {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
}

impl NodeFile {
    pub(crate) fn name(&self) -> PeerName {
        PeerName {
            cluster: self.cluster,
            node: self.node,
        }
    }

    pub(crate) fn life(&self) -> Life {
        Life {
            cluster: self.cluster,
            incarnation: self.incarnation,
        }
    }
}

/// Why the data directory cannot be used. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error(
        "another merlin uses {}: stop it, or give this one another --data-dir", dir.display()
    )]
    InUse { dir: PathBuf },
    #[error("{} is on a read-only file system: remount it, or choose another --data-dir", dir.display())]
    ReadOnly {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "no permission to use {}: it must belong to the user that merlin runs as", dir.display()
    )]
    Permission {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the file system of {} is full: make room and start merlin again", dir.display())]
    Full {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{} is damaged: restore the data directory from a backup, or move it away and join the \
         cluster as a new node", path.display()
    )]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "{} was written by a newer merlin (format {found}, this one knows {FORMAT}): run that \
         version", path.display()
    )]
    Newer { path: PathBuf, found: u32 },
    #[error(
        "{} holds a node's state but no {}: restore the file, or move the directory away and join \
         the cluster as a new node", dir.display(), NODE_FILE
    )]
    Nameless { dir: PathBuf },
    #[error(
        "restoring a snapshot into {} was interrupted: run the same `merlin cluster snapshot \
         restore` again", dir.display()
    )]
    HalfRestored { dir: PathBuf },
    #[error(
        "{} is a node's directory, but its log is gone, and with it what this node acknowledged \
         and whom it voted for. Traffic is not affected. Do not start it as it is: remove this \
         member on another node, move the directory away and join again; a node that is the only \
         member is brought back from its last `merlin cluster snapshot save`", dir.display()
    )]
    Logless { dir: PathBuf },
}

const NODE_FILE: &str = "node.json";
const REMOVED_FILE: &str = "removed";
const INTRODUCERS_FILE: &str = "introducers.json";

/// What makes a directory a node's, in the order in which it is moved aside.
const PARTS: [&str; 6] = [
    NODE_FILE,
    REMOVED_FILE,
    INTRODUCERS_FILE,
    "log",
    "snapshots",
    "identity/node.pem",
];

/// A member that let this node in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Introducer {
    pub(crate) id: NodeId,
    pub(crate) addr: String,
}

/// Says that what is there is not all, as long as there is no [`NODE_FILE`].
pub(crate) const RESTORING: &str = "restoring";

/// A locked data directory.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// Holds the lock until it is released, or closed.
    lock: File,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    cluster_id: String,
    node_id: NodeId,
    incarnation: u64,
    /// Whether there has been a log: then there has to be one.
    #[serde(default)]
    has_log: bool,
}

impl DataDir {
    pub(crate) fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |action| move |source| DataDirError::io(action, path, source);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("create"))?;
        let metadata = fs::metadata(path).map_err(failed("inspect"))?;
        if metadata.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                .map_err(failed("restrict the permissions of"))?;
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(failed("write in"))?;
        match lock.try_lock() {
            Ok(()) => {
                let dir = Self {
                    path: path.to_owned(),
                    lock,
                };
                settle::finish(&dir, path)?;
                Ok(dir)
            }
            Err(TryLockError::WouldBlock) => Err(DataDirError::InUse {
                dir: path.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(DataDirError::io("lock", path, source)),
        }
    }

    /// Lets the next one use the directory. Nothing may be written here any more.
    pub(crate) fn release(&self) {
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "the data directory stays locked until the process ends");
        }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.path.join("identity")
    }

    /// Which node this is; none in a directory that was never used.
    pub(crate) fn node(&self) -> Result<Option<NodeFile>, DataDirError> {
        let path = self.path.join(NODE_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.path.join(RESTORING).exists() {
                    return Err(DataDirError::HalfRestored {
                        dir: self.path.clone(),
                    });
                }
                // Taken for a new node it would vote a second time under the name of the old one.
                if self.log().exists() || self.snapshots().exists() {
                    return Err(DataDirError::Nameless {
                        dir: self.path.clone(),
                    });
                }
                return Ok(None);
            }
            Err(source) => return Err(DataDirError::io("read", &path, source)),
        };
        let (node, has_log) = parse(&bytes, path)?;
        if has_log && !LogEngine::exists(&self.log()) {
            return Err(DataDirError::Logless {
                dir: self.path.clone(),
            });
        }
        Ok(Some(node))
    }

    /// Remembers that there is a log now, which from then on must not be missing.
    pub(crate) fn set_has_log(&self, node: &NodeFile) -> Result<(), DataDirError> {
        let path = self.path.join(NODE_FILE);
        let bytes = fs::read(&path).map_err(|source| DataDirError::io("read", &path, source))?;
        match parse(&bytes, path)? {
            (_, true) => Ok(()),
            (_, false) => self.write_node(node, true),
        }
    }

    /// Moves everything that makes this a node's directory to a directory in it; none when there is
    /// nothing to move. The name goes first: without it no start takes the rest for a node's.
    pub(crate) fn set_aside(&self, to: &str) -> Result<Option<PathBuf>, DataDirError> {
        let aside = self.path.join(to);
        let mut moved = None;
        for part in PARTS {
            let part = self.path.join(part);
            let Some(name) = part.file_name().filter(|_| part.exists()) else {
                continue;
            };
            let failed = |source| DataDirError::io("move aside", &part, source);
            if moved.is_none() {
                DirBuilder::new()
                    .mode(0o700)
                    .recursive(true)
                    .create(&aside)
                    .map_err(failed)?;
            }
            fs::rename(&part, aside.join(name)).map_err(failed)?;
            File::open(&self.path)
                .and_then(|dir| dir.sync_all())
                .map_err(failed)?;
            moved = Some(aside.clone());
        }
        Ok(moved)
    }

    /// Removes what [`DataDir::set_aside`] moved, of a node that had done nothing yet.
    pub(crate) fn remove_aside(&self, aside: &Path) -> Result<(), DataDirError> {
        fs::remove_dir_all(aside).map_err(|source| DataDirError::io("remove", aside, source))
    }

    /// Removes what is the old node's alone where a new one goes on with its state. The authority
    /// signs a new certificate at the next start.
    pub(crate) fn forget_old_node(&self) -> Result<(), DataDirError> {
        for part in ["identity/node.pem", REMOVED_FILE, INTRODUCERS_FILE] {
            let path = self.path.join(part);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(DataDirError::io("remove", &path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// From now on what is here is nobody's until it is complete. What an interrupted restore left
    /// is cleared away.
    pub(crate) fn begin_restoring(&self) -> Result<(), DataDirError> {
        let mark = self.path.join(RESTORING);
        let begin = || -> io::Result<()> {
            File::create(&mark)?.sync_all()?;
            self.sync()?;
            for part in [self.log(), self.snapshots()] {
                match fs::remove_dir_all(part) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        };
        begin().map_err(|source| DataDirError::io("write", &mark, source))
    }

    pub(crate) fn end_restoring(&self) -> Result<(), DataDirError> {
        let mark = self.path.join(RESTORING);
        let end = || fs::remove_file(&mark).and_then(|()| self.sync());
        end().map_err(|source| DataDirError::io("remove", &mark, source))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// Remembers that the cluster has removed the node.
    pub(crate) fn mark_removed(&self) -> Result<(), DataDirError> {
        let path = self.path.join(REMOVED_FILE);
        File::create(&path)
            .and_then(|file| file.sync_all())
            .and_then(|()| File::open(&self.path)?.sync_all())
            .map_err(|source| DataDirError::io("write", &path, source))
    }

    /// Remembers whom to ask until the node is a member.
    pub(crate) fn set_introducers(&self, introducers: &[Introducer]) -> Result<(), DataDirError> {
        let path = self.path.join(INTRODUCERS_FILE);
        let written = serde_json::to_vec_pretty(introducers)
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&path, bytes));
        written.map_err(|source| DataDirError::io("write", &path, source))
    }

    /// None where they are not known: then nobody is asked.
    pub(crate) fn introducers(&self) -> Vec<Introducer> {
        let bytes = fs::read(self.path.join(INTRODUCERS_FILE)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    pub(crate) fn is_marked_removed(&self) -> bool {
        self.path.join(REMOVED_FILE).exists()
    }

    /// Makes the directory this node's. The file is there whole or not at all.
    pub(crate) fn set_node(&self, node: &NodeFile) -> Result<(), DataDirError> {
        self.write_node(node, false)
    }

    fn write_node(&self, node: &NodeFile, has_log: bool) -> Result<(), DataDirError> {
        let stored = Stored {
            format: FORMAT,
            cluster_id: node.cluster.to_string(),
            node_id: node.node,
            incarnation: node.incarnation,
            has_log,
        };
        let path = self.path.join(NODE_FILE);
        let unfinished = path.with_extension("tmp");
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&unfinished)?;
            serde_json::to_writer_pretty(&mut file, &stored)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| DataDirError::io("write", &path, source))
    }
}

/// Which node it is, and whether there has been a log.
fn parse(bytes: &[u8], path: PathBuf) -> Result<(NodeFile, bool), DataDirError> {
    /// What every format has.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }

    let read = || -> Result<Result<(NodeFile, bool), u32>, serde_json::Error> {
        let Format { format } = serde_json::from_slice(bytes)?;
        if format != FORMAT {
            return Ok(Err(format));
        }
        let stored: Stored = serde_json::from_slice(bytes)?;
        let node = NodeFile {
            cluster: stored
                .cluster_id
                .parse()
                .map_err(serde::de::Error::custom)?,
            node: stored.node_id,
            incarnation: stored.incarnation,
        };
        Ok(Ok((node, stored.has_log)))
    };
    match read() {
        Ok(Ok(node)) => Ok(node),
        Ok(Err(found)) => Err(DataDirError::Newer { path, found }),
        Err(source) => Err(DataDirError::Damaged { path, source }),
    }
}

impl DataDirError {
    /// An error of the operating system, sorted by what helps.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let dir = path.to_owned();
        match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { dir, source },
            io::ErrorKind::PermissionDenied => Self::Permission { dir, source },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { dir, source },
            _ => Self::Io {
                action,
                path: dir,
                source,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeFile = NodeFile {
        cluster: ClusterId::from_bytes([9; 16]),
        node: 4,
        incarnation: 2,
    };

    fn open() -> (tempfile::TempDir, DataDir) {
        let parent = tempfile::tempdir().unwrap();
        let dir = DataDir::open(&parent.path().join("a/merlin")).unwrap();
        (parent, dir)
    }

    #[test]
    fn a_directory_remembers_its_node_and_belongs_to_the_owner_alone() {
        let (_parent, dir) = open();
        assert_eq!(dir.node().unwrap(), None);
        dir.set_node(&NODE).unwrap();
        assert_eq!(dir.node().unwrap(), Some(NODE));
        let mode = fs::metadata(&dir.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_second_daemon_is_kept_out_until_the_first_is_gone() {
        let (_parent, dir) = open();
        let path = dir.path.clone();
        let second = DataDir::open(&path);
        assert!(matches!(second, Err(DataDirError::InUse { .. })));
        drop(dir);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_damaged_or_newer_node_file_is_refused_and_left_alone() {
        let (_parent, dir) = open();
        let file = dir.path.join(NODE_FILE);
        fs::write(&file, "{\"format\": 1, \"clus").unwrap();
        assert!(matches!(dir.node(), Err(DataDirError::Damaged { .. })));
        fs::write(&file, "{\"format\": 2, \"shards\": []}").unwrap();
        let newer = dir.node();
        assert!(matches!(newer, Err(DataDirError::Newer { found: 2, .. })));
        assert!(file.exists());
    }

    #[test]
    fn a_removal_is_remembered_until_the_node_is_moved_aside() {
        let (_parent, dir) = open();
        dir.set_node(&NODE).unwrap();
        assert!(!dir.is_marked_removed());
        dir.mark_removed().unwrap();
        dir.mark_removed().unwrap();
        let introducers = [Introducer {
            id: 1,
            addr: "192.0.2.1:4284".into(),
        }];
        assert_eq!(dir.introducers(), []);
        dir.set_introducers(&introducers).unwrap();
        assert_eq!(dir.introducers(), introducers);
        assert!(dir.is_marked_removed());
        let aside = dir.set_aside("aside").unwrap().unwrap();
        assert!(aside.join(REMOVED_FILE).exists());
        assert!(!dir.is_marked_removed());
        assert_eq!(dir.introducers(), []);
    }

    #[test]
    fn a_log_without_a_name_is_not_taken_for_a_new_node() {
        let (_parent, dir) = open();
        fs::create_dir(dir.log()).unwrap();
        assert!(matches!(dir.node(), Err(DataDirError::Nameless { .. })));
    }

    #[test]
    fn a_log_that_is_gone_is_not_begun_anew() {
        let (_parent, dir) = open();
        dir.set_node(&NODE).unwrap();
        assert_eq!(dir.node().unwrap(), Some(NODE));
        drop(LogEngine::open(&dir.log()).unwrap());
        dir.set_has_log(&NODE).unwrap();
        assert_eq!(dir.node().unwrap(), Some(NODE));
        fs::remove_dir_all(dir.log()).unwrap();
        assert!(matches!(dir.node(), Err(DataDirError::Logless { .. })));
    }

    #[test]
    fn a_file_in_the_way_is_explained() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("file");
        fs::write(&path, "x").unwrap();
        let error = DataDir::open(&path).unwrap_err();
        assert!(error.to_string().contains("cannot create"), "{error}");
    }
}
