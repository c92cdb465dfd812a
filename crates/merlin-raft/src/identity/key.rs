//! A node's private key, and the request by which its public half becomes a certificate.

use std::fmt;
use std::sync::Arc;

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, KeyPair, PublicKey,
    PublicKeyData,
};
use rustls::pki_types::{
    CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer,
};

use super::digest::KeyFingerprint;

/// Why a key or a signing request is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("could not generate a key")]
    Generate(#[source] rcgen::Error),
    #[error("not a private key")]
    Malformed(#[source] rcgen::Error),
    #[error("could not write a certificate request")]
    Request(#[source] rcgen::Error),
    #[error("not a certificate request signed with its own key")]
    BadRequest(#[source] rcgen::Error),
}

/// A node's own private key. It is generated where it is used and never sent anywhere.
#[derive(Clone)]
pub struct NodeKey(Arc<KeyPair>);

impl NodeKey {
    pub fn generate() -> Result<Self, KeyError> {
        let pair = KeyPair::generate().map_err(KeyError::Generate)?;
        Ok(Self(Arc::new(pair)))
    }

    /// Reads a PKCS #8 key.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let pair = KeyPair::try_from(der).map_err(KeyError::Malformed)?;
        Ok(Self(Arc::new(pair)))
    }

    /// PKCS #8. Whoever holds it is who the certificate says.
    pub fn der(&self) -> &[u8] {
        self.0.serialized_der()
    }

    pub(super) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }

    pub(super) fn public_key(&self) -> SubjectPublicKeyInfoDer<'static> {
        self.0.subject_public_key_info().into()
    }

    pub fn fingerprint(&self) -> KeyFingerprint {
        KeyFingerprint::of(&self.0.subject_public_key_info())
    }

    /// A PKCS #10 request for this key. It asks for no name: the signer decides that.
    pub fn signing_request(&self) -> Result<CertificateSigningRequestDer<'static>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params
            .serialize_request(&*self.0)
            .map_err(KeyError::Request)?;
        Ok(request.into())
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.fingerprint())
    }
}

/// What counts of a PKCS #10 request: a public key, whose holder signed the request.
#[derive(Clone, Debug)]
pub struct SigningRequest {
    pub(super) public_key: PublicKey,
}

impl SigningRequest {
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let request =
            CertificateSigningRequestParams::from_der(&der.into()).map_err(KeyError::BadRequest)?;
        Ok(Self {
            public_key: request.public_key,
        })
    }

    pub fn fingerprint(&self) -> KeyFingerprint {
        KeyFingerprint::of(&self.public_key.subject_public_key_info())
    }
}

/// Bytes nobody can guess.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .expect("the kernel's random source does not fail once the system is up");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_the_keys_fingerprint() {
        let key = NodeKey::generate().unwrap();
        let request = SigningRequest::from_der(&key.signing_request().unwrap()).unwrap();
        assert_eq!(request.fingerprint(), key.fingerprint());
        assert_eq!(
            NodeKey::from_der(key.der()).unwrap().fingerprint(),
            key.fingerprint()
        );
    }

    #[test]
    fn a_request_not_signed_by_its_key_is_refused() {
        let mut der = NodeKey::generate()
            .unwrap()
            .signing_request()
            .unwrap()
            .to_vec();
        let end = der.len() - 1;
        der[end] ^= 1;
        assert!(matches!(
            SigningRequest::from_der(&der),
            Err(KeyError::BadRequest(_))
        ));
        assert!(SigningRequest::from_der(b"nonsense").is_err());
    }

    #[test]
    fn a_key_does_not_print_itself() {
        let key = NodeKey::generate().unwrap();
        assert_eq!(
            format!("{key:?}"),
            format!("NodeKey({})", key.fingerprint())
        );
    }
}
