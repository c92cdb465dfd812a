//! The node's identity on disk.
//!
//! ```text
//! <data-dir>/identity/    mode 0700
//!   node.pem              0600: private key, certificate, CA certificate; whole or not there
//!   joining.pem           0600: private key of a join that has not finished
//!   trusted.pem           0600: whom it trusts beside that CA, while the CA is replaced
//!   former.pem            0600: as node.pem, of the CA before, to show to clients meanwhile
//! ```
//! One file, so that key and certificate cannot come apart; any PEM tool reads it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pem::Pem;
use rustls::pki_types::CertificateDer;

use super::key::{KeyError, NodeKey};
use super::name::ClusterId;
use super::node::{IdentityError, NodeIdentity};
use super::tls::Beside;

const NODE: &str = "node.pem";
const JOINING: &str = "joining.pem";
const ADMITTED: &str = "admitted.pem";
const TRUSTED: &str = "trusted.pem";
const FORMER: &str = "former.pem";

const KEY: &str = "PRIVATE KEY";
const CERTIFICATE: &str = "CERTIFICATE";
/// [`Life`] and step of the rotation that what follows belongs to.
const STEP: &str = "MERLIN ROTATION STEP";

/// Why an identity cannot be read or written. Nothing is deleted to get over it.
#[derive(Debug, thiserror::Error)]
pub enum IdentityStoreError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "others than its owner can use the private key in {}: run `chmod 600` on it, and remove \
         this node from the cluster if somebody may have copied it",
        path.display()
    )]
    Exposed { path: PathBuf },
    #[error(
        "{} is damaged, it should hold {expected} in PEM: restore it from a backup, or move the \
         data directory away and join the cluster as a new node",
        path.display()
    )]
    Damaged {
        path: PathBuf,
        expected: &'static str,
    },
    #[error(
        "the parts of {} do not belong together: restore it from a backup, or move the data \
         directory away and join the cluster as a new node",
        path.display()
    )]
    Inconsistent {
        path: PathBuf,
        #[source]
        source: IdentityError,
    },
    #[error("no key to join with")]
    Key(#[source] KeyError),
}

type Result<T> = std::result::Result<T, IdentityStoreError>;

/// Which life of which cluster something was kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) cluster: ClusterId,
    pub(crate) incarnation: u64,
}

impl Life {
    fn with(self, step: u64) -> Vec<u8> {
        let numbers = [self.incarnation, step].map(u64::to_be_bytes);
        [self.cluster.as_bytes().as_slice(), &numbers.concat()].concat()
    }

    fn split(bytes: &[u8]) -> Option<(Self, u64)> {
        let (cluster, rest) = bytes.split_first_chunk()?;
        let (incarnation, rest) = rest.split_first_chunk()?;
        let life = Self {
            cluster: ClusterId::from_bytes(*cluster),
            incarnation: u64::from_be_bytes(*incarnation),
        };
        Some((life, u64::from_be_bytes(rest.try_into().ok()?)))
    }
}

/// The directory of a node's identity.
#[derive(Clone, Debug)]
pub struct IdentityDir {
    path: PathBuf,
}

impl IdentityDir {
    /// Makes the directory if it is not there.
    pub fn open(path: PathBuf) -> Result<Self> {
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(failed("create", &path)(source)),
        }
        Ok(Self { path })
    }

    /// The node's identity; none before it has founded or joined a cluster.
    pub fn load(&self) -> Result<Option<NodeIdentity>> {
        self.load_node(NODE)
    }

    fn load_node(&self, name: &str) -> Result<Option<NodeIdentity>> {
        let path = self.path.join(name);
        let Some(blocks) = read(&path)? else {
            return Ok(None);
        };
        let [key, certificate, ca] = blocks.as_slice() else {
            return Err(IdentityStoreError::damaged_node(path));
        };
        if (key.tag(), certificate.tag(), ca.tag()) != (KEY, CERTIFICATE, CERTIFICATE) {
            return Err(IdentityStoreError::damaged_node(path));
        }
        let der = |block: &Pem| CertificateDer::from(block.contents().to_vec());
        NodeKey::from_der(key.contents())
            .map_err(IdentityError::Key)
            .and_then(|key| NodeIdentity::new(key, der(certificate), der(ca)))
            .map(Some)
            .map_err(|source| IdentityStoreError::Inconsistent { path, source })
    }

    /// Keeps an identity, durably, in place of the one before.
    pub fn save(&self, identity: &NodeIdentity) -> Result<()> {
        self.write(NODE, &blocks(identity))
    }

    /// What this node has beside its identity, and how far it has followed the rotation of its
    /// authority. What was kept in another life of the cluster, or another cluster, is nothing.
    pub(crate) fn load_beside(&self, life: Life) -> Result<(u64, Beside)> {
        let path = self.path.join(TRUSTED);
        let Some(blocks) = read(&path)? else {
            return Ok(Default::default());
        };
        let damaged = || IdentityStoreError::Damaged {
            path: path.clone(),
            expected: "what this node trusts",
        };
        let (first, authorities) = blocks.split_first().ok_or_else(damaged)?;
        let authorities = authorities.iter().map(|block| match block.tag() {
            CERTIFICATE => Ok(CertificateDer::from(block.contents().to_vec())),
            _ => Err(damaged()),
        });
        let (of, step) = (first.tag() == STEP)
            .then(|| Life::split(first.contents()))
            .flatten()
            .ok_or_else(damaged)?;
        let trusted = authorities.collect::<Result<Vec<_>>>()?;
        if of != life {
            return Ok(Default::default());
        }
        let former = self.load_node(FORMER)?.map(Arc::new);
        Ok((step, Beside { trusted, former }))
    }

    /// Keeps that, durably.
    pub(crate) fn save_beside(&self, life: Life, step: u64, beside: &Beside) -> Result<()> {
        let mut blocks = vec![Pem::new(STEP, life.with(step))];
        let authority = |der: &CertificateDer<'_>| Pem::new(CERTIFICATE, der.as_ref());
        blocks.extend(beside.trusted.iter().map(authority));
        match &beside.former {
            Some(former) => self.write(FORMER, &self::blocks(former))?,
            None => self.remove(FORMER)?,
        }
        self.write(TRUSTED, &blocks)
    }

    /// Keeps, durably, the identity of the node that this one is about to become.
    pub(crate) fn save_admitted(&self, identity: &NodeIdentity) -> Result<()> {
        self.write(ADMITTED, &blocks(identity))
    }

    /// The key to join a cluster with. It stays the same until the join has finished, so that the
    /// cluster recognises a join that was interrupted and is run again.
    pub fn joining_key(&self) -> Result<NodeKey> {
        let path = self.path.join(JOINING);
        match read(&path)? {
            Some(blocks) => match blocks.as_slice() {
                [key] if key.tag() == KEY => NodeKey::from_der(key.contents()).ok(),
                _ => None,
            }
            .ok_or(IdentityStoreError::Damaged {
                path,
                expected: "a private key",
            }),
            None => {
                let key = NodeKey::generate().map_err(IdentityStoreError::Key)?;
                self.write(JOINING, &[Pem::new(KEY, key.der())])?;
                Ok(key)
            }
        }
    }

    /// The join has finished: the next one is another node's.
    pub fn forget_joining_key(&self) -> Result<()> {
        self.remove(JOINING)
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(failed("remove", &path)(source)),
        }
    }

    /// Writes a file so that it is there whole or as it was, through a power cut too.
    fn write(&self, name: &str, blocks: &[Pem]) -> Result<()> {
        let path = self.path.join(name);
        let unfinished = path.with_extension("tmp");
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&unfinished)?;
            file.write_all(pem::encode_many(blocks).as_bytes())?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(failed("write", &path))
    }
}

fn blocks(identity: &NodeIdentity) -> [Pem; 3] {
    [
        Pem::new(KEY, identity.key().der()),
        Pem::new(CERTIFICATE, identity.certificate().as_ref()),
        Pem::new(CERTIFICATE, identity.ca().as_ref()),
    ]
}

fn read(path: &Path) -> Result<Option<Vec<Pem>>> {
    let mode = match fs::metadata(path) {
        Ok(metadata) => metadata.permissions().mode(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("inspect", path)(source)),
    };
    let path = path.to_owned();
    if mode & 0o077 != 0 {
        return Err(IdentityStoreError::Exposed { path });
    }
    let text = fs::read(&path).map_err(failed("read", &path))?;
    // What cannot be parsed has no blocks, which the caller reports as damage.
    Ok(Some(pem::parse_many(text).unwrap_or_default()))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityStoreError {
    let path = path.to_owned();
    move |source| IdentityStoreError::Io {
        action,
        path,
        source,
    }
}

impl IdentityStoreError {
    fn damaged_node(path: PathBuf) -> Self {
        Self::Damaged {
            path,
            expected: "a private key, a certificate and the CA's certificate",
        }
    }
}

#[cfg(test)]
mod tests {
    use merlin_model::Timestamp;

    use super::*;
    use crate::identity::{Ca, ClusterId, PeerName};

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn open() -> (tempfile::TempDir, IdentityDir) {
        let parent = tempfile::tempdir().unwrap();
        let dir = IdentityDir::open(parent.path().join("identity")).unwrap();
        (parent, dir)
    }

    fn identity() -> NodeIdentity {
        let cluster = ClusterId::from_bytes([1; 16]);
        let ca = Ca::create(cluster, NOW).unwrap();
        NodeIdentity::found(&ca, PeerName { cluster, node: 3 }, NOW).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn an_identity_is_kept_for_its_owner_alone() {
        let (_parent, dir) = open();
        assert!(dir.load().unwrap().is_none());
        let identity = identity();
        dir.save(&identity).unwrap();
        let loaded = dir.load().unwrap().unwrap();
        assert_eq!(loaded.name(), identity.name());
        assert_eq!(loaded.certificate(), identity.certificate());
        assert_eq!(loaded.key().fingerprint(), identity.key().fingerprint());
        assert_eq!(mode(&dir.path), 0o700);
        assert_eq!(mode(&dir.path.join(NODE)), 0o600);
        assert!(!dir.path.join("node.tmp").exists());
    }

    #[test]
    fn an_identity_replaces_the_one_before() {
        let (_parent, dir) = open();
        dir.save(&identity()).unwrap();
        let second = identity();
        dir.save(&second).unwrap();
        let loaded = dir.load().unwrap().unwrap();
        assert_eq!(loaded.ca_fingerprint(), second.ca_fingerprint());
    }

    #[test]
    fn a_damaged_file_is_named_and_left_alone() {
        let (_parent, dir) = open();
        dir.save(&identity()).unwrap();
        let path = dir.path.join(NODE);
        let whole = fs::read_to_string(&path).unwrap();
        for damaged in ["", "nonsense", &whole[..whole.len() / 2]] {
            fs::write(&path, damaged).unwrap();
            let error = dir.load().unwrap_err();
            assert!(
                matches!(error, IdentityStoreError::Damaged { .. }),
                "{error}"
            );
            assert!(error.to_string().contains("node.pem"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn parts_of_two_identities_are_not_taken_for_one() {
        let (_parent, dir) = open();
        let (one, two) = (identity(), identity());
        let blocks = [
            Pem::new(KEY, one.key().der()),
            Pem::new(CERTIFICATE, two.certificate().as_ref()),
            Pem::new(CERTIFICATE, two.ca().as_ref()),
        ];
        dir.write(NODE, &blocks).unwrap();
        let error = dir.load().unwrap_err();
        assert!(
            matches!(
                error,
                IdentityStoreError::Inconsistent {
                    source: IdentityError::OtherKey,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn what_a_node_trusts_besides_is_kept_for_this_life_of_its_cluster() {
        let (_parent, dir) = open();
        let (own, other) = (identity(), identity());
        let life = Life {
            cluster: own.name().cluster,
            incarnation: 3,
        };
        assert_eq!(dir.load_beside(life).unwrap().0, 0);
        let beside = Beside {
            trusted: vec![other.ca().clone()],
            former: Some(Arc::new(other)),
        };
        dir.save_beside(life, 5, &beside).unwrap();
        let (step, loaded) = dir.load_beside(life).unwrap();
        assert_eq!((step, &loaded.trusted), (5, &beside.trusted));
        assert!(loaded.former.is_some());
        assert_eq!(mode(&dir.path.join(TRUSTED)), 0o600);

        let next = Life {
            incarnation: 4,
            ..life
        };
        let (step, loaded) = dir.load_beside(next).unwrap();
        assert!(step == 0 && loaded.trusted.is_empty() && loaded.former.is_none());

        dir.save_beside(life, 6, &Beside::default()).unwrap();
        let (step, loaded) = dir.load_beside(life).unwrap();
        assert!(step == 6 && loaded.trusted.is_empty() && loaded.former.is_none());
        assert!(!dir.path.join(FORMER).exists());

        fs::write(dir.path.join(TRUSTED), "x").unwrap();
        let error = dir.load_beside(life).unwrap_err();
        assert!(error.to_string().contains("trusted.pem"), "{error}");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let (_parent, dir) = open();
        dir.save(&identity()).unwrap();
        let path = dir.path.join(NODE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = dir.load().unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_join_keeps_its_key_until_it_is_finished() {
        let (_parent, dir) = open();
        let first = dir.joining_key().unwrap().fingerprint();
        assert_eq!(dir.joining_key().unwrap().fingerprint(), first);
        assert_eq!(mode(&dir.path.join(JOINING)), 0o600);
        dir.forget_joining_key().unwrap();
        dir.forget_joining_key().unwrap();
        assert_ne!(dir.joining_key().unwrap().fingerprint(), first);

        fs::write(dir.path.join(JOINING), "x").unwrap();
        assert!(matches!(
            dir.joining_key(),
            Err(IdentityStoreError::Damaged { .. })
        ));
    }
}
