//! TLS with a context: any node of its cluster, and nobody else.

use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::context::Context;

/// gRPC is HTTP/2.
const ALPN: &[u8] = b"h2";

/// The certificate is the cluster's, but no node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a node's certificate")]
struct NotANode;

/// Accepts any node of one cluster: certificates name the node, and which one answers at an
/// address does not matter.
#[derive(Debug)]
struct AnyNode {
    roots: RootCertStore,
    cluster: String,
    provider: Arc<CryptoProvider>,
}

impl AnyNode {
    /// Whether the certificate's only name is `node-<id>.<cluster-id>.merlin`.
    fn names_a_node(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, certificate)) = parse_x509_certificate(certificate) else {
            return false;
        };
        let Ok(Some(names)) = certificate.subject_alternative_name() else {
            return false;
        };
        let [GeneralName::DNSName(name)] = names.value.general_names.as_slice() else {
            return false;
        };
        let node = name
            .strip_prefix("node-")
            .and_then(|rest| rest.strip_suffix(".merlin"))
            .and_then(|rest| rest.strip_suffix(self.cluster.as_str()))
            .and_then(|rest| rest.strip_suffix('.'));
        node.is_some_and(|id| !id.is_empty() && id.bytes().all(|digit| digit.is_ascii_digit()))
    }
}

impl ServerCertVerifier for AnyNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        if self.names_a_node(end_entity) {
            Ok(ServerCertVerified::assertion())
        } else {
            let refusal = OtherError(Arc::new(NotANode));
            Err(Error::InvalidCertificate(CertificateError::Other(refusal)))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Not offered.
        Err(Error::General("TLS 1.2 with a node".into()))
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

/// For connections of this context's client to any node of its cluster.
pub(crate) fn client_config(context: &Context) -> Result<Arc<ClientConfig>, Error> {
    let damaged = |field| Error::General(format!("{field} of the context is damaged"));
    let credentials = context.credentials().map_err(damaged)?;
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in credentials.authorities {
        roots.add(authority)?;
    }
    let verifier = AnyNode {
        roots,
        cluster: context.cluster_id.clone(),
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(vec![credentials.certificate], credentials.key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

pub(crate) async fn dial(
    config: Arc<ClientConfig>,
    addr: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(addr).await?;
    tcp.set_nodelay(true)?;
    // Certificates name nodes, not addresses: the verifier knows the cluster.
    let name = ServerName::try_from("merlin").expect("a word is a DNS name");
    TlsConnector::from(config).connect(name, tcp).await
}

/// What a failed handshake means to whoever wants to talk to a node.
pub(crate) fn in_words(error: &io::Error) -> Option<&'static str> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::InvalidMessage(_) => {
            "it does not speak TLS: say --plaintext if that is what you expect"
        }
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "it belongs to another cluster than your context",
        Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "the node's certificate is not good at this time: is the clock right, here and there?",
        Error::InvalidCertificate(CertificateError::Other(OtherError(why)))
            if why.is::<NotANode>() =>
        {
            "it has a certificate of the cluster, but not a node's"
        }
        _ => return None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        KeyUsagePurpose,
    };
    use rustls::ServerConfig;
    use rustls::server::WebPkiClientVerifier;
    use time::{Duration, OffsetDateTime};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::context::Parts;

    /// A cluster that exists only as certificates.
    pub(crate) struct Authority {
        cluster: String,
        certificate: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        pub(crate) fn new(cluster: &str) -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let certificate = params.self_signed(&key).unwrap().into();
            Self {
                cluster: cluster.to_owned(),
                certificate,
                issuer: Issuer::new(params, key),
            }
        }

        fn sign(
            &self,
            name: &str,
            usage: ExtendedKeyUsagePurpose,
            age: Duration,
        ) -> (CertificateDer<'static>, Vec<u8>) {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.extended_key_usages = vec![usage];
            params.not_before = OffsetDateTime::now_utc() - age - Duration::days(1);
            params.not_after = OffsetDateTime::now_utc() - age + Duration::days(1);
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            (certificate.into(), key.serialize_der())
        }

        pub(crate) fn client(&self, client: &str) -> Context {
            let usage = ExtendedKeyUsagePurpose::ClientAuth;
            let (certificate, key) = self.sign("client-1", usage, Duration::ZERO);
            Context::new(Parts {
                client: client.to_owned(),
                role: "operator".to_owned(),
                cluster_id: self.cluster.clone(),
                nodes: vec!["192.0.2.1:4282".to_owned()],
                ca_certificates: vec![self.certificate.to_vec()],
                certificate: certificate.to_vec(),
                private_key: key,
            })
        }

        fn server(&self, name: &str, age: Duration) -> Arc<ServerConfig> {
            let usage = ExtendedKeyUsagePurpose::ServerAuth;
            let (certificate, key) = self.sign(name, usage, age);
            let provider = Arc::new(ring::default_provider());
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.clone()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
            let config = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&TLS13])
                .unwrap()
                .with_client_cert_verifier(verifier.build().unwrap())
                .with_single_cert(
                    vec![certificate],
                    rustls::pki_types::PrivatePkcs8KeyDer::from(key).into(),
                );
            Arc::new(config.unwrap())
        }
    }

    /// What comes of a handshake of this client with this server, at both ends.
    async fn meet(context: &Context, server: Arc<ServerConfig>) -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let accept = async {
            let (tcp, _) = listener.accept().await?;
            TlsAcceptor::from(server).accept(tcp).await
        };
        let config = client_config(context).unwrap();
        let (accepted, dialled) = tokio::join!(accept, dial(config, &addr));
        dialled?;
        accepted.map(drop)
    }

    #[tokio::test]
    async fn any_node_of_the_cluster_is_trusted_whatever_its_address() {
        let c1 = Authority::new("c1");
        let ana = c1.client("ana");
        for node in ["node-1.c1.merlin", "node-77.c1.merlin"] {
            meet(&ana, c1.server(node, Duration::ZERO)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn nobody_else_is_trusted_and_the_reason_is_told() {
        let (c1, other) = (Authority::new("c1"), Authority::new("c1"));
        let ana = c1.client("ana");
        let words = async |server| {
            let error = meet(&ana, server).await.unwrap_err();
            in_words(&error).map_or(error.to_string(), str::to_owned)
        };
        for name in [
            "client-1.c1.merlin",
            "node-.c1.merlin",
            "node-1.c2.merlin",
            "node-1.xc1.merlin",
            "node-1.c1.merlin.example.org",
        ] {
            let words = words(c1.server(name, Duration::ZERO)).await;
            assert!(words.contains("not a node's"), "{name}: {words}");
        }
        // The same id is easily had; the authority's key is not.
        let words_of = words(other.server("node-1.c1.merlin", Duration::ZERO)).await;
        assert!(words_of.contains("another cluster"), "{words_of}");
        for age in [Duration::days(3), Duration::days(-3)] {
            let words = words(c1.server("node-1.c1.merlin", age)).await;
            assert!(words.contains("is the clock right"), "{words}");
        }
    }

    #[tokio::test]
    async fn a_server_without_tls_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let answer = async {
            let (tcp, _) = listener.accept().await.unwrap();
            tcp.writable().await.unwrap();
            // A SETTINGS frame, as an HTTP/2 server begins.
            tcp.try_write(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
            tcp
        };
        let config = client_config(&Authority::new("c1").client("ana")).unwrap();
        let (_tcp, dialled) = tokio::join!(answer, dial(config, &addr));
        let error = dialled.unwrap_err();
        assert!(in_words(&error).unwrap().contains("--plaintext"), "{error}");
    }
}
