//! Snapshot files: the whole state, so that the log before it can go.
//!
//! ```text
//! <dir>/<index>.snap, integers big endian
//!
//!    8  magic "MERLINSN"
//!    4  format, 2
//!   16  cluster id          zero before the cluster is founded
//!    8  incarnation
//!    1  whether a log position follows that means anything
//!   16  log position: term, index
//!    8  catalog revision
//!    8  length of the body
//!    n  body: merlin.log.v1.Snapshot
//!   32  sha256 of everything before
//! ```
//!
//! Invariants:
//!
//! * A file has its name only when it is complete and on the disk: written under another name,
//!   synced, renamed, and the directory synced.
//! * The newest two are kept, and the log as far back as the older one, so that one bad file costs
//!   nothing.
//! * The same bytes are the file, what is sent to a node that lags, and a backup.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use merlin_proto::log;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::codec::{self, DecodeError};
use crate::identity::ClusterId;
use crate::state::State;
use crate::typ::{LogId, Snapshot, SnapshotData, SnapshotMeta};

const MAGIC: &[u8; 8] = b"MERLINSN";
pub(crate) const FORMAT: u32 = 2;
const HEADER: usize = 8 + 4 + 16 + 8 + 1 + 16 + 8 + 8;
const DIGEST: usize = 32;

/// How many are kept.
const KEPT: usize = 2;

/// Why bytes are not a usable snapshot.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error("it is not a merlin snapshot")]
    Magic,
    #[error("it is incomplete: something cut it off")]
    Incomplete,
    #[error("its checksum is wrong: it was damaged after it was written")]
    Checksum,
    #[error(
        "it was written by a newer merlin: format {found}, this one knows {FORMAT}; use that version"
    )]
    Newer { found: u32 },
    #[error("its format {found} is none that any release wrote")]
    Format { found: u32 },
    #[error("its content is not understood")]
    Content(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<DecodeError> for FormatError {
    fn from(error: DecodeError) -> Self {
        Self::Content(error.into())
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the snapshot {} is unusable", path.display())]
    Format {
        path: PathBuf,
        #[source]
        source: FormatError,
    },
    #[error("the received snapshot is unusable")]
    Received(#[source] FormatError),
}

/// What a snapshot says of itself before its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Absent in a snapshot from before the founding.
    pub(crate) cluster: Option<(ClusterId, u64)>,
    pub(crate) last: Option<LogId>,
    pub(crate) revision: u64,
}

pub(crate) fn encode(state: &State) -> Bytes {
    let body = state.to_proto();
    let length = body.encoded_len();
    let mut bytes = BytesMut::with_capacity(HEADER + length + DIGEST);
    bytes.put_slice(MAGIC);
    bytes.put_u32(FORMAT);
    let founding = state.cluster.founding.as_ref();
    bytes.put_slice(&founding.map_or([0; 16], |f| *f.cluster.as_bytes()));
    bytes.put_u64(founding.map_or(0, |f| f.incarnation));
    bytes.put_u8(state.applied.is_some().into());
    let last = state.applied.unwrap_or_default();
    bytes.put_u64(last.leader_id.term);
    bytes.put_u64(last.index);
    bytes.put_u64(state.catalog.revision().0);
    bytes.put_u64(length as u64);
    body.encode(&mut bytes).expect("a BytesMut grows as needed");
    let digest = Sha256::digest(&bytes);
    bytes.put_slice(&digest);
    bytes.freeze()
}

/// Checks the whole and reads the header.
pub(crate) fn inspect(bytes: &Bytes) -> Result<(Header, Bytes), FormatError> {
    let mut rest = bytes.clone();
    check_beginning(bytes)?;
    rest.advance(MAGIC.len() + 4);
    if bytes.len() < HEADER + DIGEST {
        return Err(FormatError::Incomplete);
    }
    let mut cluster = [0; 16];
    rest.copy_to_slice(&mut cluster);
    let incarnation = rest.get_u64();
    let positioned = rest.get_u8() != 0;
    let last = codec::log_id(rest.get_u64(), rest.get_u64());
    let revision = rest.get_u64();
    let length = usize::try_from(rest.get_u64()).map_err(|_| FormatError::Incomplete)?;
    if rest.len() != length.saturating_add(DIGEST) {
        return Err(FormatError::Incomplete);
    }
    let (content, digest) = bytes.split_at(HEADER + length);
    if Sha256::digest(content)[..] != *digest {
        return Err(FormatError::Checksum);
    }
    let header = Header {
        cluster: (incarnation > 0).then_some((ClusterId::from_bytes(cluster), incarnation)),
        last: positioned.then_some(last),
        revision,
    };
    Ok((header, rest.split_to(length)))
}

fn check_format(found: u32) -> Result<(), FormatError> {
    match found {
        FORMAT => Ok(()),
        0 => Err(FormatError::Format { found }),
        _ => Err(FormatError::Newer { found }),
    }
}

pub(crate) fn has_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Whether a file that begins like this may be a snapshot. It need not be read whole to say no.
pub(crate) fn check_beginning(bytes: &[u8]) -> Result<(), FormatError> {
    let (magic, rest) = bytes
        .split_at_checked(MAGIC.len())
        .ok_or(FormatError::Magic)?;
    if magic != MAGIC {
        return Err(FormatError::Magic);
    }
    let format = rest.first_chunk().ok_or(FormatError::Incomplete)?;
    check_format(u32::from_be_bytes(*format))
}

pub(crate) fn decode(bytes: &Bytes) -> Result<State, FormatError> {
    let (header, body) = inspect(bytes)?;
    let malformed = |source| DecodeError::Malformed {
        what: "snapshot",
        source,
    };
    let body = log::Snapshot::decode(body).map_err(malformed)?;
    Ok(State::from_proto(header.last, body)?)
}

/// What consensus is told about a snapshot of this state. The name tells two snapshots apart that
/// are not the same.
pub(crate) fn meta(state: &State) -> SnapshotMeta {
    let last = state.applied.unwrap_or_default();
    SnapshotMeta {
        last_log_id: state.applied,
        last_membership: state.membership.clone(),
        snapshot_id: format!("{}-{}", last.leader_id.term, last.index),
    }
}

/// The directory of snapshots. All calls block.
#[derive(Debug)]
pub(crate) struct Snapshots {
    dir: PathBuf,
}

impl Snapshots {
    pub(crate) fn open(dir: PathBuf) -> Result<Self, SnapshotError> {
        let snapshots = Self { dir };
        let dir = &snapshots.dir;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("create the directory", dir))?;
        for path in snapshots.files("tmp")? {
            fs::remove_file(&path).map_err(failed("remove the unfinished", &path))?;
        }
        Ok(snapshots)
    }

    /// The state of the newest snapshot that is intact, passing over damaged ones.
    pub(crate) fn load(&self) -> Result<Option<State>, SnapshotError> {
        let mut damaged = None;
        for path in self.complete()? {
            match read(&path) {
                Ok((_, state)) => return Ok(Some(state)),
                Err(error @ SnapshotError::Io { .. }) => return Err(error),
                Err(error) => {
                    tracing::error!(%error, path = %path.display(), "snapshot passed over");
                    damaged.get_or_insert(error);
                }
            }
        }
        damaged.map_or(Ok(None), Err)
    }

    pub(crate) fn newest(&self) -> Result<Option<Snapshot>, SnapshotError> {
        let Some(path) = self.complete()?.into_iter().next() else {
            return Ok(None);
        };
        let (bytes, state) = read(&path)?;
        Ok(Some(Snapshot {
            meta: meta(&state),
            snapshot: Box::new(SnapshotData(bytes)),
        }))
    }

    pub(crate) fn write(&self, state: &State) -> Result<Snapshot, SnapshotError> {
        let bytes = encode(state);
        self.store(state.applied, &bytes)?;
        Ok(Snapshot {
            meta: meta(state),
            snapshot: Box::new(SnapshotData(bytes)),
        })
    }

    /// Writes a snapshot in the place of all others.
    pub(crate) fn write_alone(&self, state: &State) -> Result<(), SnapshotError> {
        let earlier = self.complete()?;
        self.write(state)?;
        let kept = self.complete()?;
        let newest = kept.first();
        for path in earlier.iter().filter(|path| Some(*path) != newest) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Stores a snapshot that another node made, and gives its state.
    pub(crate) fn install(&self, bytes: Bytes) -> Result<State, SnapshotError> {
        let state = decode(&bytes).map_err(SnapshotError::Received)?;
        self.store(state.applied, &bytes)?;
        Ok(state)
    }

    fn store(&self, last: Option<LogId>, bytes: &[u8]) -> Result<(), SnapshotError> {
        let index = last.unwrap_or_default().index;
        let path = self.dir.join(format!("{index:020}.snap"));
        let unfinished = path.with_extension("tmp");
        write_synced(&unfinished, bytes).map_err(failed("write", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(failed("rename a snapshot to", &path))?;
        sync_dir(&self.dir)?;
        for old in self.complete()?.into_iter().skip(KEPT) {
            fs::remove_file(&old).map_err(failed("remove", &old))?;
        }
        Ok(())
    }

    /// Newest first.
    fn complete(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut files = self.files("snap")?;
        files.sort_by(|a, b| b.cmp(a));
        Ok(files)
    }

    fn files(&self, extension: &str) -> Result<Vec<PathBuf>, SnapshotError> {
        let list = || -> io::Result<Vec<PathBuf>> {
            let paths = fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.path()));
            paths.collect()
        };
        let mut files = list().map_err(failed("list", &self.dir))?;
        files.retain(|path| path.extension().is_some_and(|e| e == extension));
        Ok(files)
    }
}

fn read(path: &Path) -> Result<(Bytes, State), SnapshotError> {
    let bytes = fs::read(path).map_err(failed("read", path))?.into();
    match decode(&bytes) {
        Ok(state) => Ok((bytes, state)),
        Err(source) => Err(SnapshotError::Format {
            path: path.to_owned(),
            source,
        }),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // It holds the cluster's keys.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_dir(dir: &Path) -> Result<(), SnapshotError> {
    let sync = || File::open(dir)?.sync_all();
    sync().map_err(failed("sync the directory", dir))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::state::tests::{entry, populated};

    fn snapshots() -> (tempfile::TempDir, Snapshots) {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path().join("snapshots")).unwrap();
        (dir, snapshots)
    }

    /// A state some entries later.
    fn later(state: &State, index: u64) -> State {
        let mut state = state.clone();
        state.apply(entry(index), &mut Vec::new()).unwrap();
        state
    }

    #[test]
    fn a_snapshot_is_the_whole_state() {
        let state = populated();
        let bytes = encode(&state);
        assert_eq!(decode(&bytes).unwrap(), state);
        let (header, _) = inspect(&bytes).unwrap();
        assert_eq!(header.last, state.applied);
        assert_eq!(header.revision, state.catalog.revision().0);
    }

    #[test]
    fn any_damaged_byte_and_any_missing_end_is_noticed() {
        let bytes = encode(&populated());
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 0x10;
            assert!(decode(&damaged.into()).is_err(), "byte {at}");
            assert!(decode(&bytes.slice(..at)).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn the_newest_two_are_kept_and_only_for_the_owner() {
        let (_dir, snapshots) = snapshots();
        let mut state = populated();
        for index in 100..104 {
            state = later(&state, index);
            snapshots.write(&state).unwrap();
        }
        let files = snapshots.complete().unwrap();
        assert_eq!(files.len(), KEPT);
        let mode = fs::metadata(&files[0]).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let newest = snapshots.newest().unwrap().unwrap();
        assert_eq!(newest.meta, meta(&state));
        assert_eq!(snapshots.load().unwrap(), Some(state));
    }

    #[test]
    fn a_damaged_snapshot_gives_way_to_the_older_one() {
        let (_dir, snapshots) = snapshots();
        let state = populated();
        snapshots.write(&state).unwrap();
        snapshots.write(&later(&state, 200)).unwrap();
        let newest = &snapshots.complete().unwrap()[0];
        let mut bytes = fs::read(newest).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(newest, bytes).unwrap();
        assert_eq!(snapshots.load().unwrap(), Some(state));
        assert!(snapshots.newest().is_err());
    }

    #[test]
    fn damage_alone_is_not_an_empty_state() {
        let (_dir, snapshots) = snapshots();
        snapshots.write(&populated()).unwrap();
        fs::write(&snapshots.complete().unwrap()[0], b"MERLINSNxx").unwrap();
        assert!(snapshots.load().is_err());
    }

    #[test]
    fn what_a_crash_left_unfinished_is_removed() {
        let (_dir, snapshots) = snapshots();
        let unfinished = snapshots.dir.join("00000000000000000007.tmp");
        fs::write(&unfinished, b"half").unwrap();
        Snapshots::open(snapshots.dir.clone()).unwrap();
        assert!(!unfinished.exists());
        assert_eq!(snapshots.load().unwrap(), None);
    }
}
