//! The cluster's certificate authority.

use std::fmt;
use std::time::Duration;

use merlin_model::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::parse_x509_certificate;

use super::client::ClientName;
use super::digest::CaFingerprint;
use super::key::{NodeKey, SigningRequest, random_bytes};
use super::name::{ClusterId, PeerName};

/// How long a node's certificate is good for; it is renewed long before.
pub(super) const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// Outlives any machine in the cluster; replacing a CA is an operator's decision, not an expiry's.
const CA_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// Certificates are valid from a while before they were signed, for nodes whose clock is behind: by
/// a time zone, if somebody set it to local time.
const CLOCK_SKEW: Duration = Duration::from_secs(24 * 3600);

/// Why the authority could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("could not make the cluster's certificate authority")]
    Create(#[source] rcgen::Error),
    #[error("the stored CA certificate is damaged")]
    Certificate(#[source] rcgen::Error),
    #[error("the stored CA key is damaged")]
    Key(#[source] rcgen::Error),
    #[error("the stored CA key does not belong to the stored CA certificate")]
    Mismatch,
    #[error("could not sign a certificate")]
    Sign(#[source] rcgen::Error),
    #[error("the clock shows a time no certificate can be dated with")]
    Clock,
}

/// Certificate and key of the authority that says who is a node of one cluster.
///
/// Both are replicated, so that every member can sign.
pub struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// Makes the authority of a new cluster.
    pub fn create(cluster: ClusterId, now: Timestamp) -> Result<Self, CaError> {
        let key = KeyPair::generate().map_err(CaError::Create)?;
        let mut params = params(format!("merlin cluster {cluster}"), now, CA_LIFETIME)?;
        // Signs nodes only, never another authority.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(CaError::Create)?.into();
        Ok(Self {
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads what [`Ca::certificate`] and [`Ca::key`] gave.
    pub fn load(certificate: &[u8], key: &[u8]) -> Result<Self, CaError> {
        let key = KeyPair::try_from(key).map_err(CaError::Key)?;
        let certificate = CertificateDer::from(certificate).into_owned();
        let public_key = key.subject_public_key_info();
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(CaError::Certificate)?;
        match parse_x509_certificate(&certificate) {
            Ok((_, parsed)) if parsed.public_key().raw == public_key => Ok(Self {
                certificate,
                issuer,
            }),
            _ => Err(CaError::Mismatch),
        }
    }

    /// DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// PKCS #8 in DER. Whoever holds it can admit nodes.
    pub fn key(&self) -> &[u8] {
        self.issuer.key().serialized_der()
    }

    pub fn fingerprint(&self) -> CaFingerprint {
        CaFingerprint::of(&self.certificate)
    }

    /// Signs a node's certificate. The name is `peer`'s, whatever the request asked for.
    pub fn sign(
        &self,
        request: &SigningRequest,
        peer: PeerName,
        now: Timestamp,
    ) -> Result<CertificateDer<'static>, CaError> {
        self.issue_node(&request.public_key, peer, now)
    }

    /// Signs a certificate for a key this process holds: the first node's, and renewals.
    pub(super) fn sign_own(
        &self,
        key: &NodeKey,
        peer: PeerName,
        now: Timestamp,
    ) -> Result<CertificateDer<'static>, CaError> {
        let public_key =
            rcgen::SubjectPublicKeyInfo::from_der(&key.public_key()).map_err(CaError::Sign)?;
        self.issue_node(&public_key, peer, now)
    }

    /// Signs a client's certificate, whose serial number is the client's id.
    pub fn sign_client(
        &self,
        request: &SigningRequest,
        client: ClientName,
        name: &str,
        now: Timestamp,
        expires: Timestamp,
    ) -> Result<CertificateDer<'static>, CaError> {
        let lifetime = Duration::from_millis(expires.0.saturating_sub(now.0));
        let mut params = params(name.to_owned(), now, lifetime)?;
        params.serial_number = Some(SerialNumber::from_slice(&client.client.0));
        // It speaks for a client: nobody takes it for a server, or for a node.
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        self.issue(&request.public_key, params, &client, vec![usage])
    }

    fn issue_node(
        &self,
        public_key: &impl PublicKeyData,
        peer: PeerName,
        now: Timestamp,
    ) -> Result<CertificateDer<'static>, CaError> {
        let params = params(peer.node.to_string(), now, CERTIFICATE_LIFETIME)?;
        let usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.issue(public_key, params, &peer, usages)
    }

    fn issue(
        &self,
        public_key: &impl PublicKeyData,
        mut params: CertificateParams,
        name: &impl fmt::Display,
        usages: Vec<ExtendedKeyUsagePurpose>,
    ) -> Result<CertificateDer<'static>, CaError> {
        let name = name.to_string().try_into().map_err(CaError::Sign)?;
        params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        params
            .signed_by(public_key, &self.issuer)
            .map(Into::into)
            .map_err(CaError::Sign)
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ca({})", self.fingerprint())
    }
}

fn params(
    common_name: String,
    now: Timestamp,
    lifetime: Duration,
) -> Result<CertificateParams, CaError> {
    let now = i64::try_from(now.0 / 1000)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(CaError::Clock)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + lifetime;
    // A positive number of at most 20 octets, unlike any other (RFC 5280, 4.1.2.2).
    let mut serial: [u8; 16] = random_bytes();
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ClientId;

    const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);
    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn peer(node: u64) -> PeerName {
        PeerName {
            cluster: CLUSTER,
            node,
        }
    }

    #[test]
    fn an_authority_reads_back_and_signs_as_before() {
        let ca = Ca::create(CLUSTER, NOW).unwrap();
        let again = Ca::load(ca.certificate(), ca.key()).unwrap();
        assert_eq!(again.fingerprint(), ca.fingerprint());

        let key = NodeKey::generate().unwrap();
        let request = SigningRequest::from_der(&key.signing_request().unwrap()).unwrap();
        let certificate = again.sign(&request, peer(3), NOW).unwrap();
        assert_eq!(PeerName::of_certificate(&certificate), Ok(peer(3)));
        let (_, issuer) = parse_x509_certificate(ca.certificate()).unwrap();
        let (_, parsed) = parse_x509_certificate(&certificate).unwrap();
        parsed.verify_signature(Some(issuer.public_key())).unwrap();
        assert!(issuer.subject().to_string().contains(&CLUSTER.to_string()));
        assert_eq!(parsed.subject().to_string(), "CN=3");
        assert!(!parsed.is_ca());
    }

    #[test]
    fn a_certificate_holds_for_90_days_and_for_clocks_behind() {
        let ca = Ca::create(CLUSTER, NOW).unwrap();
        let key = NodeKey::generate().unwrap();
        let certificate = ca.sign_own(&key, peer(1), NOW).unwrap();
        let (_, parsed) = parse_x509_certificate(&certificate).unwrap();
        let signed = i64::try_from(NOW.0 / 1000).unwrap();
        let validity = parsed.validity();
        assert_eq!(validity.not_before.timestamp(), signed - 24 * 3600);
        assert_eq!(validity.not_after.timestamp(), signed + 90 * 24 * 3600);
    }

    #[test]
    fn the_names_a_request_asks_for_are_not_copied() {
        let ca = Ca::create(CLUSTER, NOW).unwrap();
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([peer(1).to_string()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "1".to_owned());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = params.serialize_request(&pair).unwrap();
        let request = SigningRequest::from_der(csr.der()).unwrap();

        let certificate = ca.sign(&request, peer(2), NOW).unwrap();
        assert_eq!(PeerName::of_certificate(&certificate), Ok(peer(2)));
        let (_, parsed) = parse_x509_certificate(&certificate).unwrap();
        assert_eq!(parsed.subject().to_string(), "CN=2");
        assert!(!parsed.is_ca());
    }

    #[test]
    fn a_clients_certificate_is_a_clients_only() {
        let ca = Ca::create(CLUSTER, NOW).unwrap();
        let key = NodeKey::generate().unwrap();
        let request = SigningRequest::from_der(&key.signing_request().unwrap()).unwrap();
        let client = ClientName {
            cluster: CLUSTER,
            client: ClientId::random(),
        };
        let expires = Timestamp(NOW.0 + 5_000);
        let certificate = ca.sign_client(&request, client, "ana", NOW, expires);
        let certificate = certificate.unwrap();
        assert_eq!(ClientName::of_certificate(&certificate), Some(client));
        assert!(PeerName::of_certificate(&certificate).is_err());
        let (_, parsed) = parse_x509_certificate(&certificate).unwrap();
        assert_eq!(parsed.raw_serial(), client.client.0);
        assert_eq!(parsed.subject().to_string(), "CN=ana");
        let ends = parsed.validity().not_after.timestamp();
        assert_eq!(ends, i64::try_from(expires.0 / 1000).unwrap());
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);

        let node = ca.sign_own(&key, peer(1), NOW).unwrap();
        assert_eq!(ClientName::of_certificate(&node), None);
    }

    #[test]
    fn serial_numbers_differ() {
        let ca = Ca::create(CLUSTER, NOW).unwrap();
        let key = NodeKey::generate().unwrap();
        let serial = || {
            let certificate = ca.sign_own(&key, peer(1), NOW).unwrap();
            let (_, parsed) = parse_x509_certificate(&certificate).unwrap();
            parsed.raw_serial().to_vec()
        };
        assert_ne!(serial(), serial());
    }

    #[test]
    fn anothers_key_is_not_taken_for_the_authoritys() {
        let ca = Ca::create(CLUSTER, NOW).unwrap();
        let other = Ca::create(CLUSTER, NOW).unwrap();
        assert!(matches!(
            Ca::load(ca.certificate(), other.key()),
            Err(CaError::Mismatch)
        ));
        assert!(matches!(
            Ca::load(ca.certificate(), b"x"),
            Err(CaError::Key(_))
        ));
        assert!(matches!(
            Ca::load(b"x", ca.key()),
            Err(CaError::Certificate(_))
        ));
    }
}
