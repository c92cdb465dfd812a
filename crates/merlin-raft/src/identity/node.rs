//! The identity of this node: its key, its certificate and the authority both ends trust.

use std::time::Duration;

use merlin_model::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;

use super::ca::{Ca, CaError};
use super::digest::CaFingerprint;
use super::key::{KeyError, NodeKey};
use super::name::{CertificateNameError, PeerName};

/// What a node shows the others, and what it measures them by.
///
/// Invariant: the certificate is for the key, names one node, and was signed by the CA. It may have
/// expired: a node that slept for months renews it by itself, as every member holds the CA's key.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    name: PeerName,
    key: NodeKey,
    certificate: CertificateDer<'static>,
    ca: CertificateDer<'static>,
    valid_from: Timestamp,
    expires: Timestamp,
}

/// Why key, certificate and CA are not an identity together.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("the node's certificate does not name a node")]
    Name(#[from] CertificateNameError),
    #[error("the CA certificate is not one")]
    Authority,
    #[error("the node's certificate belongs to another key")]
    OtherKey,
    #[error("the node's certificate was not issued by the CA certificate next to it")]
    OtherAuthority,
    #[error("no key for the node")]
    Key(#[from] KeyError),
    #[error("no certificate for the node")]
    Sign(#[from] CaError),
}

impl NodeIdentity {
    /// Puts together what belongs together.
    pub fn new(
        key: NodeKey,
        certificate: CertificateDer<'static>,
        ca: CertificateDer<'static>,
    ) -> Result<Self, IdentityError> {
        let name = PeerName::of_certificate(&certificate)?;
        let (valid_from, expires) = {
            let (_, authority) =
                parse_x509_certificate(&ca).map_err(|_| IdentityError::Authority)?;
            let (_, leaf) = parse_x509_certificate(&certificate)
                .map_err(|_| CertificateNameError::Malformed)?;
            if leaf.public_key().raw != key.public_key().as_ref() {
                return Err(IdentityError::OtherKey);
            }
            if !issued(&leaf, &authority) {
                return Err(IdentityError::OtherAuthority);
            }
            let validity = leaf.validity();
            (
                timestamp(validity.not_before),
                timestamp(validity.not_after),
            )
        };
        Ok(Self {
            name,
            key,
            certificate,
            ca,
            valid_from,
            expires,
        })
    }

    /// A new key and its certificate, for the node that founds a cluster.
    pub fn found(ca: &Ca, name: PeerName, now: Timestamp) -> Result<Self, IdentityError> {
        let key = NodeKey::generate()?;
        let certificate = ca.sign_own(&key, name, now)?;
        Self::new(key, certificate, ca.certificate().clone())
    }

    /// The same node and key with a new certificate.
    pub fn renewed(&self, ca: &Ca, now: Timestamp) -> Result<Self, IdentityError> {
        let certificate = ca.sign_own(&self.key, self.name, now)?;
        Self::new(self.key.clone(), certificate, ca.certificate().clone())
    }

    pub fn name(&self) -> PeerName {
        self.name
    }

    pub fn expires(&self) -> Timestamp {
        self.expires
    }

    /// When the certificate is to be renewed: two thirds through its life, which leaves a month to
    /// notice that it did not happen.
    pub fn renewal_due(&self) -> Timestamp {
        let life = self.expires.0.saturating_sub(self.valid_from.0);
        Timestamp(self.valid_from.0 + life / 3 * 2)
    }

    pub fn ca_fingerprint(&self) -> CaFingerprint {
        CaFingerprint::of(&self.ca)
    }

    pub(super) fn key(&self) -> &NodeKey {
        &self.key
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(crate) fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }
}

fn issued(leaf: &X509Certificate<'_>, authority: &X509Certificate<'_>) -> bool {
    authority.is_ca()
        && leaf.issuer() == authority.subject()
        && leaf.verify_signature(Some(authority.public_key())).is_ok()
}

fn timestamp(time: ASN1Time) -> Timestamp {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    let since_epoch = Duration::from_secs(seconds).as_millis();
    Timestamp(u64::try_from(since_epoch).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ClusterId;

    const NAME: PeerName = PeerName {
        cluster: ClusterId::from_bytes([1; 16]),
        node: 4,
    };
    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const DAY: u64 = 24 * 3600 * 1000;

    fn ca() -> Ca {
        Ca::create(NAME.cluster, NOW).unwrap()
    }

    #[test]
    fn a_founders_identity_is_for_its_name_and_the_authority() {
        let ca = ca();
        let identity = NodeIdentity::found(&ca, NAME, NOW).unwrap();
        assert_eq!(identity.name(), NAME);
        assert_eq!(identity.ca_fingerprint(), ca.fingerprint());
        assert_eq!(identity.expires(), Timestamp(NOW.0 + 90 * DAY));
    }

    #[test]
    fn renewal_is_due_after_two_thirds_and_keeps_name_and_key() {
        let ca = ca();
        let identity = NodeIdentity::found(&ca, NAME, NOW).unwrap();
        let due = identity.renewal_due();
        assert!((59 * DAY..=60 * DAY).contains(&(due.0 - NOW.0)));
        let renewed = identity.renewed(&ca, due).unwrap();
        assert_eq!(renewed.name(), NAME);
        assert_eq!(renewed.key.fingerprint(), identity.key.fingerprint());
        assert_eq!(renewed.expires(), Timestamp(due.0 / 1000 * 1000 + 90 * DAY));
    }

    #[test]
    fn parts_that_do_not_belong_together_are_no_identity() {
        let (ca, other_ca) = (ca(), ca());
        let key = NodeKey::generate().unwrap();
        let certificate = ca.sign_own(&key, NAME, NOW).unwrap();
        let authority = || ca.certificate().clone();
        NodeIdentity::new(key.clone(), certificate.clone(), authority()).unwrap();

        let other_key = NodeKey::generate().unwrap();
        assert!(matches!(
            NodeIdentity::new(other_key, certificate.clone(), authority()),
            Err(IdentityError::OtherKey)
        ));
        // The other authority has the same name, but not the same key.
        assert!(matches!(
            NodeIdentity::new(
                key.clone(),
                certificate.clone(),
                other_ca.certificate().clone()
            ),
            Err(IdentityError::OtherAuthority)
        ));
        assert!(matches!(
            NodeIdentity::new(key.clone(), certificate.clone(), certificate),
            Err(IdentityError::OtherAuthority)
        ));
        assert!(matches!(
            NodeIdentity::new(key, authority(), authority()),
            Err(IdentityError::Name(CertificateNameError::NotANode))
        ));
    }
}
