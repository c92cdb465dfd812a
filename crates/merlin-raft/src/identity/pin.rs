//! Trust by a CA's fingerprint, for a node that has nothing but a token.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use super::digest::CaFingerprint;
use super::name::{ClusterId, PeerName};
use super::tls::{ALPN, provider};

/// Why whoever answers is not a member of the token's cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    #[error("it is not a member of the token's cluster")]
    OtherAuthority,
    #[error("it has a certificate of the token's cluster, but not a node's")]
    NotANode,
}

/// Accepts any node of one cluster.
///
/// The CA's certificate is taken from the chain the server shows, if its hash is the expected one;
/// the server's certificate then has to follow from it by the usual rules. Which node answers does
/// not matter to a new one.
#[derive(Debug)]
struct PinnedAuthority {
    cluster: ClusterId,
    ca: CaFingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates
            .iter()
            .find(|certificate| CaFingerprint::of(certificate) == self.ca)
            .ok_or_else(|| refuse(PinError::OtherAuthority))?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &roots,
            &[],
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        match PeerName::of_certificate(end_entity) {
            Ok(name) if name.cluster == self.cluster => Ok(ServerCertVerified::assertion()),
            _ => Err(refuse(PinError::NotANode)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Not offered.
        Err(Error::General("TLS 1.2 between nodes".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn refuse(reason: PinError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
}

impl PinError {
    /// The reason, if it is what made a handshake fail.
    pub(super) fn of(error: &Error) -> Option<Self> {
        match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => {
                reason.downcast_ref().copied()
            }
            _ => None,
        }
    }
}

/// For connections of a node without a certificate to any node of `cluster`.
pub(super) fn client_config(
    cluster: ClusterId,
    ca: CaFingerprint,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let verifier = PinnedAuthority {
        cluster,
        ca,
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
