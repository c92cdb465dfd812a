//! The last catalog, on this node's disk.
//!
//! A node that starts while etcd is away checks the health of the last known catalog and leaves the
//! kernel as it is; and a node that starts to an emptied etcd knows what it would be removing. The
//! file is a copy: losing it costs those two things and no data.
//!
//! ```text
//! last-catalog:  "merlin catalog 1\n"  crc32c of what follows (4 bytes, big-endian)  merlin.log.v1.Catalog
//! ```
//!
//! It is written beside, made durable, and renamed into place: there is a whole one or none. One that
//! does not check out is reported and passed over.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use merlin_model::Catalog;
use merlin_proto::{DecodeError, log};
use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PAUSE: Duration = Duration::from_secs(1);
const NAME: &str = "last-catalog";
const MAGIC: &[u8] = b"merlin catalog 1\n";

/// Where the last catalog is kept.
#[derive(Clone, Debug)]
pub struct Keep {
    dir: PathBuf,
}

/// The kept catalog cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("reading {path}", path = path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is damaged", path = path.display())]
    Damaged { path: PathBuf },
    #[error("{path} is of another version", path = path.display())]
    Foreign {
        path: PathBuf,
        #[source]
        source: DecodeError,
    },
}

/// The catalog could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("writing {path}", path = path.display())]
pub struct StoreError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Keeps every catalog that is published, the last one for good, until told to stop.
///
/// Writing the whole catalog takes longer the larger it is, so what follows within a second of a
/// write waits for that second.
pub(crate) async fn run(
    keep: Keep,
    mut catalog: watch::Receiver<Arc<Catalog>>,
    stop: CancellationToken,
) {
    let write = |catalog: Arc<Catalog>| {
        let keep = keep.clone();
        async move {
            let written = tokio::task::spawn_blocking(move || keep.store(&catalog)).await;
            if let Ok(Err(error)) = written {
                let reason = error.source();
                tracing::warn!(%error, reason, "the catalog is not kept for the next start");
            }
        }
    };
    let changes = async {
        while catalog.changed().await.is_ok() {
            let latest = Arc::clone(&catalog.borrow_and_update());
            write(latest).await;
            tokio::time::sleep(PAUSE).await;
        }
    };
    stop.run_until_cancelled(changes).await;
    if catalog.has_changed().unwrap_or(false) {
        let latest = Arc::clone(&catalog.borrow_and_update());
        write(latest).await;
    }
}

impl Keep {
    /// The directory has to exist.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The catalog that was kept last; `None` when none ever was.
    pub fn load(&self) -> Result<Option<Catalog>, LoadError> {
        let path = self.dir.join(NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LoadError::Read { path, source }),
        };
        let Some(body) = checked(&bytes) else {
            return Err(LoadError::Damaged { path });
        };
        let Ok(message) = log::Catalog::decode(body) else {
            return Err(LoadError::Damaged { path });
        };
        match Catalog::try_from(&message) {
            Ok(catalog) => Ok(Some(catalog)),
            Err(source) => Err(LoadError::Foreign { path, source }),
        }
    }

    /// Keeps a catalog in place of the one before.
    pub fn store(&self, catalog: &Catalog) -> Result<(), StoreError> {
        let path = self.dir.join(NAME);
        self.replace(&path, catalog)
            .map_err(|source| StoreError { path, source })
    }

    fn replace(&self, path: &Path, catalog: &Catalog) -> io::Result<()> {
        let body = log::Catalog::from(catalog).encode_to_vec();
        let beside = path.with_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(MAGIC)?;
        file.write_all(&crc32c::crc32c(&body).to_be_bytes())?;
        file.write_all(&body)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        // The new name is durable when its directory is.
        File::open(&self.dir)?.sync_all()
    }
}

fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (sum, body) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
    (u32::from_be_bytes(*sum) == crc32c::crc32c(body)).then_some(body)
}

#[cfg(test)]
mod tests {
    use merlin_model::command::{Command, Mutation, Timestamp};
    use merlin_model::{Protocol, Scheduler, ServiceConfig, ServiceId, ServiceKey};
    use tempfile::TempDir;

    use super::*;

    fn catalog(ports: std::ops::Range<u16>) -> Catalog {
        let mut catalog = Catalog::default();
        for port in ports {
            let mutation = Mutation::CreateService {
                id: ServiceId::new(&format!("s{port}")).unwrap(),
                key: ServiceKey::Address {
                    address: [10, 0, 0, 1].into(),
                    port,
                    protocol: Protocol::Tcp,
                },
                config: ServiceConfig::new(Scheduler::Rr),
            };
            let command = Command::new(Timestamp::default(), mutation);
            catalog.apply(&command).unwrap();
        }
        catalog
    }

    #[test]
    fn what_is_kept_is_there_again() {
        let dir = TempDir::new().unwrap();
        let keep = Keep::in_dir(dir.path());
        assert!(keep.load().unwrap().is_none());
        for kept in [catalog(1..9), catalog(5..6), Catalog::default()] {
            keep.store(&kept).unwrap();
            assert_eq!(keep.load().unwrap(), Some(kept));
        }
    }

    #[test]
    fn damage_is_noticed_wherever_it_is() {
        let dir = TempDir::new().unwrap();
        let keep = Keep::in_dir(dir.path());
        keep.store(&catalog(1..3)).unwrap();
        let path = dir.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            assert!(
                matches!(keep.load(), Err(LoadError::Damaged { .. })),
                "byte {at}"
            );
            fs::write(&path, &whole[..at]).unwrap();
            assert!(
                matches!(keep.load(), Err(LoadError::Damaged { .. })),
                "length {at}"
            );
        }
    }

    #[test]
    fn a_write_that_never_finished_does_not_matter() {
        let dir = TempDir::new().unwrap();
        let keep = Keep::in_dir(dir.path());
        keep.store(&catalog(1..3)).unwrap();
        fs::write(dir.path().join("last-catalog.new"), b"half of it").unwrap();
        assert_eq!(keep.load().unwrap(), Some(catalog(1..3)));
        keep.store(&catalog(1..4)).unwrap();
        assert_eq!(keep.load().unwrap(), Some(catalog(1..4)));
    }
}
