//! What a cluster is called, and what a certificate says about the node that holds it.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::{CertificateDer, ServerName};
use uuid::{Builder, Uuid};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::typ::NodeId;

/// Random number of a cluster; stays for its whole life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(Uuid);

impl ClusterId {
    pub fn random() -> Self {
        Self(Builder::from_random_bytes(super::key::random_bytes()).into_uuid())
    }

    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

/// The text is not a cluster id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cluster id")]
pub struct InvalidClusterId;

impl FromStr for ClusterId {
    type Err = InvalidClusterId;

    /// Accepts the one spelling that [`fmt::Display`] writes, so that equal ids are equal texts.
    fn from_str(text: &str) -> Result<Self, InvalidClusterId> {
        let id = Self(Uuid::try_parse(text).map_err(|_| InvalidClusterId)?);
        if id.to_string() == text {
            Ok(id)
        } else {
            Err(InvalidClusterId)
        }
    }
}

/// One node of one cluster: the only thing a certificate between nodes speaks for.
///
/// Written `node-<id>.<cluster-id>.merlin`, which is the certificate's DNS name and what a caller
/// dials with; so a wrong address can be unreachable, but never be taken for the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName {
    pub cluster: ClusterId,
    pub node: NodeId,
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node-{}.{}.merlin", self.node, self.cluster)
    }
}

/// Why a certificate does not name a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateNameError {
    #[error("not an X.509 certificate")]
    Malformed,
    #[error("the certificate does not name exactly one node of a cluster")]
    NotANode,
}

impl FromStr for PeerName {
    type Err = CertificateNameError;

    fn from_str(text: &str) -> Result<Self, CertificateNameError> {
        let parse = || {
            let (node, cluster) = text
                .strip_prefix("node-")?
                .strip_suffix(".merlin")?
                .split_once('.')?;
            let name = Self {
                cluster: cluster.parse().ok()?,
                node: node.parse().ok()?,
            };
            // One spelling: no leading zeros or signs.
            (name.to_string() == text).then_some(name)
        };
        parse().ok_or(CertificateNameError::NotANode)
    }
}

impl PeerName {
    /// The node a certificate speaks for. Says nothing about who issued it.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, CertificateNameError> {
        let (rest, certificate) =
            parse_x509_certificate(certificate).map_err(|_| CertificateNameError::Malformed)?;
        if !rest.is_empty() {
            return Err(CertificateNameError::Malformed);
        }
        let names = certificate
            .subject_alternative_name()
            .ok()
            .flatten()
            .ok_or(CertificateNameError::NotANode)?;
        match names.value.general_names.as_slice() {
            [GeneralName::DNSName(name)] => name.parse(),
            _ => Err(CertificateNameError::NotANode),
        }
    }

    pub(super) fn server_name(&self) -> ServerName<'static> {
        ServerName::try_from(self.to_string()).expect("hyphens, digits and dots make a DNS name")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId::from_bytes([0xab; 16]);

    #[test]
    fn a_name_reads_back_as_it_is_written() {
        let name = PeerName {
            cluster: CLUSTER,
            node: 7,
        };
        assert_eq!(
            name.to_string(),
            "node-7.abababab-abab-abab-abab-abababababab.merlin"
        );
        assert_eq!(name.to_string().parse(), Ok(name));
        assert_eq!(name.server_name().to_str(), name.to_string());
    }

    #[test]
    fn only_the_exact_spelling_is_a_name() {
        for text in [
            "",
            "node-7",
            "node-7.abababab-abab-abab-abab-abababababab",
            "node-07.abababab-abab-abab-abab-abababababab.merlin",
            "node-+7.abababab-abab-abab-abab-abababababab.merlin",
            "node-7.ABABABAB-abab-abab-abab-abababababab.merlin",
            "node-7.abababababababababababababababab.merlin",
            "node-7.x.abababab-abab-abab-abab-abababababab.merlin",
            "evil.node-7.abababab-abab-abab-abab-abababababab.merlin",
        ] {
            assert_eq!(
                text.parse::<PeerName>(),
                Err(CertificateNameError::NotANode),
                "{text}"
            );
        }
    }

    #[test]
    fn clusters_get_different_ids() {
        assert_ne!(ClusterId::random(), ClusterId::random());
    }
}
