//! The file that makes somebody a client of one cluster: certificates, key, and where to ask.
//!
//! ```toml
//! version = 1
//! client = "ana"
//! role = "operator"
//! cluster-id = "..."
//! nodes = ["192.0.2.1:4282", "192.0.2.2:4282"]
//! ca-certificate = "PEM"
//! certificate = "PEM"
//! private-key = "PEM, PKCS #8"
//! ```
//! Readers of version 1 pass over fields they do not know. What the role allows, and when the
//! certificate ends, the cluster decides: here they are for people.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pem::Pem;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use x509_parser::parse_x509_certificate;

const VERSION: u32 = 1;
const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";

/// Why a file is not a usable context.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a context as `merlin cluster client create` writes it", path.display())]
    Malformed {
        path: PathBuf,
        #[source]
        source: toml::de::Error,
    },
    #[error("{} was written by a newer merlin (version {found}, this one knows {VERSION})", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error("{}: {field} is damaged", path.display())]
    Damaged { path: PathBuf, field: &'static str },
}

/// A client of one cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Context {
    version: u32,
    /// What the cluster calls the client.
    pub client: String,
    pub role: String,
    pub cluster_id: String,
    /// Where nodes answer, IP:PORT.
    pub nodes: Vec<String>,
    ca_certificate: String,
    certificate: String,
    private_key: String,
}

/// Certificates and key in DER.
#[derive(Debug)]
pub(crate) struct Credentials {
    /// One, or two while the cluster replaces its authority.
    pub(crate) authorities: Vec<CertificateDer<'static>>,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// What a context is made of. Certificates and key (PKCS #8) are in DER.
#[derive(Clone)]
pub struct Parts {
    pub client: String,
    pub role: String,
    pub cluster_id: String,
    pub nodes: Vec<String>,
    pub ca_certificates: Vec<Vec<u8>>,
    pub certificate: Vec<u8>,
    pub private_key: Vec<u8>,
}

impl Context {
    pub fn new(parts: Parts) -> Self {
        let pem = |tag, der: Vec<u8>| pem::encode(&Pem::new(tag, der));
        let authorities = parts.ca_certificates.into_iter();
        Self {
            version: VERSION,
            client: parts.client,
            role: parts.role,
            cluster_id: parts.cluster_id,
            nodes: parts.nodes,
            ca_certificate: authorities.map(|der| pem(CERTIFICATE, der)).collect(),
            certificate: pem(CERTIFICATE, parts.certificate),
            private_key: pem(PRIVATE_KEY, parts.private_key),
        }
    }

    /// Reads a context, and whether it is whole.
    pub fn read(path: &Path) -> Result<Self, ContextError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let malformed = |source| ContextError::Malformed {
            path: path.to_owned(),
            source,
        };
        let text = std::fs::read_to_string(path).map_err(failed("read", path))?;
        let Version { version } = toml::from_str(&text).map_err(malformed)?;
        if version != VERSION {
            return Err(ContextError::Newer {
                path: path.to_owned(),
                found: version,
            });
        }
        let context: Self = toml::from_str(&text).map_err(malformed)?;
        context
            .credentials()
            .map_err(|field| ContextError::Damaged {
                path: path.to_owned(),
                field,
            })?;
        Ok(context)
    }

    /// Writes a context for its owner alone. An existing file is replaced only when asked to.
    pub fn write(&self, path: &Path, replace: bool) -> Result<(), ContextError> {
        if replace {
            let unfinished = path.with_extension("tmp");
            let _ = std::fs::remove_file(&unfinished);
            self.write_new(&unfinished)?;
            return std::fs::rename(&unfinished, path).map_err(failed("write", path));
        }
        self.write_new(path)
    }

    fn write_new(&self, path: &Path) -> Result<(), ContextError> {
        let write = || -> io::Result<File> {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)?;
            file.write_all(self.to_text().as_bytes())?;
            file.sync_all()?;
            Ok(file)
        };
        write().map(drop).map_err(failed("write", path))
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let fields = toml::to_string(self).expect("strings are all it has");
        format!(
            "# Makes whoever has this file {} ({}) of the cluster below: keep it secret.\n\
             # Use it with `meradm login FILE`.\n{fields}",
            self.client, self.role
        )
    }

    /// When the certificate ends.
    pub fn expires(&self) -> Option<SystemTime> {
        let credentials = self.credentials().ok()?;
        let (_, certificate) = parse_x509_certificate(&credentials.certificate).ok()?;
        let seconds = certificate.validity().not_after.timestamp();
        let since_epoch = Duration::from_secs(u64::try_from(seconds).ok()?);
        SystemTime::UNIX_EPOCH.checked_add(since_epoch)
    }

    /// Certificates and key, or which field is none.
    pub(crate) fn credentials(&self) -> Result<Credentials, &'static str> {
        let authorities = certificates(&self.ca_certificate).ok_or("ca-certificate")?;
        let certificate = certificates(&self.certificate).and_then(|mut found| found.pop());
        let key = decode(&self.private_key, PRIVATE_KEY).ok_or("private-key")?;
        Ok(Credentials {
            authorities,
            certificate: certificate.ok_or("certificate")?,
            key: PrivatePkcs8KeyDer::from(key).into(),
        })
    }
}

/// At least one.
fn certificates(text: &str) -> Option<Vec<CertificateDer<'static>>> {
    let blocks = pem::parse_many(text).ok()?;
    let certificates = blocks.into_iter().map(|block| {
        let der = (block.tag() == CERTIFICATE).then(|| block.into_contents())?;
        parse_x509_certificate(&der).ok()?;
        Some(CertificateDer::from(der))
    });
    let certificates: Vec<_> = certificates.collect::<Option<_>>()?;
    (!certificates.is_empty()).then_some(certificates)
}

fn decode(text: &str, tag: &str) -> Option<Vec<u8>> {
    let block = pem::parse(text).ok()?;
    (block.tag() == tag).then(|| block.into_contents())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ContextError {
    let path = path.to_owned();
    move |source| ContextError::Io {
        action,
        path,
        source,
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("Context")
            .field("client", &self.client)
            .field("cluster_id", &self.cluster_id)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("Parts")
            .field("client", &self.client)
            .field("cluster_id", &self.cluster_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::tls::tests::Authority;

    pub(crate) fn context(client: &str) -> Context {
        Authority::new("c1").client(client)
    }

    #[test]
    fn a_context_reads_back_as_it_was_written_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ana.toml");
        let ana = context("ana");
        ana.write(&path, false).unwrap();
        assert_eq!(Context::read(&path).unwrap(), ana);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(ana.expires().unwrap() > SystemTime::now());

        let error = ana.write(&path, false).unwrap_err();
        assert!(matches!(error, ContextError::Io { .. }), "{error}");
        context("ana").write(&path, true).unwrap();
        assert_ne!(Context::read(&path).unwrap(), ana);
    }

    #[test]
    fn a_file_that_is_no_context_is_named_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        let text = context("ana").to_text();
        for (text, words) in [
            ("nonsense".to_owned(), "is not a context"),
            ("version = 2".to_owned(), "newer merlin"),
            ("version = 1".to_owned(), "is not a context"),
            (text.replace("PRIVATE KEY", "KEY"), "private-key is damaged"),
            (text.replacen("MII", "xxx", 1), "ca-certificate is damaged"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Context::read(&path).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("x.toml"), "{error}");
        }
    }

    #[test]
    fn later_fields_are_passed_over_and_the_key_is_not_printed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        let ana = context("ana");
        std::fs::write(&path, format!("later = true\n{}", ana.to_text())).unwrap();
        assert_eq!(Context::read(&path).unwrap(), ana);
        assert!(!format!("{ana:?}").contains("PRIVATE"), "{ana:?}");
    }
}
