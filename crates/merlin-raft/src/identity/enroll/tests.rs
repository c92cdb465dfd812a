//! New nodes ask real members over the loopback interface. The members keep their tokens in the
//! replicated state's own type; only the log between them is left out.

use merlin_model::Timestamp;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::version::TLS13;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::transport::Server;

use super::*;
use crate::identity::testing::{Cluster, days_ago, now};
use crate::identity::tls::{ALPN, provider};
use crate::identity::{
    Ca, ClusterId, Enrollment, EnrollmentAnswer, EnrollmentCommand, EnrollmentState, PeerTls,
    Redemption, Registrar, RegistrarError, Secret, TokenId, TokenRecord, Welcome,
};

/// A member that commits on its own, or knows who does.
#[derive(Clone)]
struct Office {
    cluster: ClusterId,
    ca: (Vec<u8>, Vec<u8>),
    state: Arc<Mutex<EnrollmentState>>,
    leader: Option<SocketAddr>,
}

impl Registrar for Office {
    async fn redeem(&self, redemption: Redemption) -> Result<Welcome, RegistrarError> {
        if let Some(leader) = self.leader {
            let leader = Some(leader.to_string());
            return Err(RegistrarError::NotLeader { leader });
        }
        let command = EnrollmentCommand::Redeem(redemption);
        let admission = match self.state.lock().unwrap().apply(now(), command) {
            EnrollmentAnswer::Admitted(admission) => admission,
            EnrollmentAnswer::Refused(refusal) => return Err(refusal.into()),
            EnrollmentAnswer::Done => panic!("a redemption is answered with a node"),
        };
        Ok(Welcome {
            cluster: self.cluster,
            incarnation: 5,
            admission,
            ca: Ca::load(&self.ca.0, &self.ca.1).unwrap(),
            members: vec![Member {
                id: 1,
                name: "n1".into(),
                addr: "192.0.2.1:4284".into(),
                voter: true,
            }],
        })
    }
}

impl Office {
    fn of(cluster: &Cluster) -> Self {
        Self {
            cluster: cluster.id,
            ca: (cluster.ca.certificate().to_vec(), cluster.ca.key().to_vec()),
            state: Arc::default(),
            leader: None,
        }
    }

    fn apply(&self, command: EnrollmentCommand) -> EnrollmentAnswer {
        self.state.lock().unwrap().apply(now(), command)
    }

    /// A token that nobody serves yet.
    fn token(&self, uses: u32, lifetime: Duration) -> Token {
        let token = Token {
            cluster: self.cluster,
            ca: Ca::load(&self.ca.0, &self.ca.1).unwrap().fingerprint(),
            id: TokenId::random(),
            secret: Secret::random(),
            addresses: Vec::new(),
        };
        let lifetime = u64::try_from(lifetime.as_millis()).unwrap();
        let record = TokenRecord {
            secret: token.secret.hash(),
            role: Role::Voter,
            name: String::new(),
            expires: Timestamp(now().0 + lifetime),
            uses_left: uses,
            revoked: false,
        };
        self.apply(EnrollmentCommand::CreateToken(token.id, record));
        token
    }

    fn nodes(&self) -> usize {
        self.state.lock().unwrap().nodes.len()
    }
}

const HOUR: Duration = Duration::from_secs(3600);

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// Serves enrolment until the test's runtime ends.
async fn serve(office: &Office, identity: NodeIdentity) -> SocketAddr {
    let (listener, addr) = listen().await;
    serve_at(listener, office, identity);
    addr
}

fn serve_at(listener: TcpListener, office: &Office, identity: NodeIdentity) {
    let service = Enrollment::new(office.clone(), now).into_service();
    let incoming = PeerTls::new(identity).unwrap().incoming(listener);
    let mut server = Server::builder();
    tokio::spawn(server.add_service(service).serve_with_incoming(incoming));
}

async fn dead_address() -> SocketAddr {
    let (listener, addr) = listen().await;
    drop(listener);
    addr
}

/// A cluster of one member, with a token for one more.
async fn member() -> (Cluster, Office, Token) {
    let cluster = Cluster::new();
    let office = Office::of(&cluster);
    let mut token = office.token(1, HOUR);
    token.addresses = vec![serve(&office, cluster.node(1)).await];
    (cluster, office, token)
}

fn applicant() -> Applicant {
    Applicant {
        level: Level::LATEST,
        key: NodeKey::generate().unwrap(),
        name: "n2".into(),
        advertise: "192.0.2.2:4284".parse().unwrap(),
    }
}

async fn refusal(token: &Token, applicant: &Applicant) -> String {
    match enroll(token, applicant).await {
        Err(EnrollError::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

async fn failed_attempts(token: &Token) -> Vec<Attempt> {
    match enroll(token, &applicant()).await {
        Err(EnrollError::NoAnswer(attempts)) => attempts,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_token_makes_a_node_of_the_cluster() {
    let (cluster, office, token) = member().await;
    // As an operator carries it.
    let token: Token = token.to_string().parse().unwrap();
    let enrolled = enroll(&token, &applicant()).await.unwrap();
    assert_eq!(enrolled.identity.name(), cluster.name(2));
    assert_eq!(enrolled.incarnation, 5);
    assert_eq!(enrolled.role, Role::Voter);
    assert_eq!(enrolled.members[0].name, "n1");
    assert_eq!(office.state.lock().unwrap().nodes[&2].name, "n2");
    assert_eq!(
        office.state.lock().unwrap().nodes[&2].addr,
        "192.0.2.2:4284"
    );
    PeerTls::new(enrolled.identity).unwrap();
}

#[tokio::test]
async fn joining_again_with_the_same_key_is_the_same_node() {
    let (_cluster, office, token) = member().await;
    let applicant = applicant();
    let first = enroll(&token, &applicant).await.unwrap();
    let second = enroll(&token, &applicant).await.unwrap();
    assert_eq!(first.identity.name(), second.identity.name());
    assert_eq!(office.nodes(), 1);
}

#[tokio::test]
async fn a_token_makes_one_node_only() {
    let (_cluster, office, token) = member().await;
    enroll(&token, &applicant()).await.unwrap();
    let reason = refusal(&token, &applicant()).await;
    assert!(reason.contains("used already"), "{reason}");
    assert_eq!(office.nodes(), 1);
}

#[tokio::test]
async fn the_last_use_goes_to_one_of_those_who_ask_at_once() {
    let (cluster, office, token) = member().await;
    let asked = (0..6).map(|_| async {
        let mut token = token.clone();
        token.addresses = vec![serve(&office, cluster.node(1)).await];
        enroll(&token, &applicant()).await
    });
    let answers = futures::future::join_all(asked).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert_eq!(office.nodes(), 1);
}

#[tokio::test]
async fn each_bad_token_is_refused_in_its_own_words() {
    let (_cluster, office, token) = member().await;

    let mut expired = office.token(1, Duration::ZERO);
    expired.addresses.clone_from(&token.addresses);
    let reason = refusal(&expired, &applicant()).await;
    assert!(reason.contains("expired"), "{reason}");

    let forged = Token {
        secret: Secret::random(),
        ..token.clone()
    };
    let reason = refusal(&forged, &applicant()).await;
    assert!(reason.contains("secret is wrong"), "{reason}");

    let unknown = Token {
        id: TokenId::random(),
        ..token.clone()
    };
    let reason = refusal(&unknown, &applicant()).await;
    assert!(reason.contains("no such token"), "{reason}");

    office.apply(EnrollmentCommand::RevokeToken(token.id));
    let reason = refusal(&token, &applicant()).await;
    assert!(reason.contains("revoked"), "{reason}");
    assert_eq!(office.nodes(), 0);
}

#[tokio::test]
async fn a_node_that_could_not_be_reached_is_not_let_in() {
    let (_cluster, office, token) = member().await;
    for advertise in ["0.0.0.0:4284", "192.0.2.2:0"] {
        let applicant = Applicant {
            advertise: advertise.parse().unwrap(),
            ..applicant()
        };
        let reason = refusal(&token, &applicant).await;
        assert!(reason.contains("advertise_addr"), "{reason}");
    }
    for name in [String::new(), "a\nb".into(), "x".repeat(65)] {
        let applicant = Applicant {
            name,
            ..applicant()
        };
        let reason = refusal(&token, &applicant).await;
        assert!(reason.contains("node_name"), "{reason}");
    }
    assert_eq!(office.nodes(), 0);
}

/// Takes one connection and tells whether it got as far as anything but a handshake.
async fn trap(chain: Vec<CertificateDer<'static>>, key: &NodeKey) -> (SocketAddr, Trapped) {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key.private_key())
        .unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let (listener, addr) = listen().await;
    let trapped = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        TlsAcceptor::from(Arc::new(config))
            .accept(tcp)
            .await
            .is_ok()
    });
    (addr, trapped)
}

type Trapped = tokio::task::JoinHandle<bool>;

fn chain(identity: &NodeIdentity, ca: &Ca) -> Vec<CertificateDer<'static>> {
    vec![identity.certificate().clone(), ca.certificate().clone()]
}

#[tokio::test]
async fn a_stranger_is_told_nothing() {
    let (ours, _, mut token) = member().await;
    let theirs = Cluster::named(ours.id);
    let stranger = theirs.node(1);
    // With its own authority, with our authority's certificate (which is no secret), with neither.
    let chains = [
        chain(&stranger, &theirs.ca),
        chain(&stranger, &ours.ca),
        vec![stranger.certificate().clone()],
    ];
    for chain in chains {
        let (addr, trapped) = trap(chain, stranger.key()).await;
        token.addresses = vec![addr];
        let attempts = failed_attempts(&token).await;
        assert!(
            matches!(
                attempts[0].error,
                AttemptError::Stranger(PinError::OtherAuthority) | AttemptError::Handshake(_)
            ),
            "{attempts:?}"
        );
        assert!(!trapped.await.unwrap(), "the handshake must not complete");
    }
}

#[tokio::test]
async fn a_token_of_another_cluster_says_so_before_anything_is_sent() {
    let (_, office, theirs) = member().await;
    let (_, _, ours) = member().await;
    let token = Token {
        addresses: theirs.addresses.clone(),
        ..ours
    };
    let attempts = failed_attempts(&token).await;
    assert!(matches!(
        attempts[0].error,
        AttemptError::Stranger(PinError::OtherAuthority)
    ));
    let words = EnrollError::NoAnswer(attempts).to_string();
    assert!(words.contains("not a member of the token's"), "{words}");
    assert_eq!(office.nodes(), 0);
}

#[tokio::test]
async fn a_certificate_that_is_no_nodes_does_not_count_as_a_member() {
    let cluster = Cluster::new();
    let office = Office::of(&cluster);
    let mut token = office.token(1, HOUR);
    // A node of a cluster with another id, by the same authority.
    let name = PeerName {
        cluster: ClusterId::random(),
        node: 1,
    };
    let other = NodeIdentity::found(&cluster.ca, name, now()).unwrap();
    let (addr, trapped) = trap(chain(&other, &cluster.ca), other.key()).await;
    token.addresses = vec![addr];
    let attempts = failed_attempts(&token).await;
    assert!(matches!(
        attempts[0].error,
        AttemptError::Stranger(PinError::NotANode)
    ));
    assert!(!trapped.await.unwrap());
}

#[tokio::test]
async fn an_expired_member_is_not_asked() {
    let cluster = Cluster::new();
    let office = Office::of(&cluster);
    let mut token = office.token(1, HOUR);
    let old = cluster.node_signed_at(1, days_ago(91));
    token.addresses = vec![serve(&office, old).await];
    let words = failed_attempts(&token).await[0].error.to_string();
    assert!(words.contains("expired"), "{words}");
    assert_eq!(office.nodes(), 0);
}

#[tokio::test]
async fn the_addresses_are_tried_until_a_member_answers() {
    let (cluster, office, mut token) = member().await;
    let stranger = Cluster::new();
    let follower = Office {
        leader: Some(token.addresses[0]),
        ..office.clone()
    };
    token.addresses = vec![
        dead_address().await,
        serve(&Office::of(&stranger), stranger.node(1)).await,
        // Names the leader, whom the token does not know.
        serve(&follower, cluster.node(3)).await,
    ];
    let enrolled = enroll(&token, &applicant()).await.unwrap();
    assert_eq!(enrolled.identity.name(), cluster.name(2));
}

#[tokio::test]
async fn when_nobody_answers_every_address_is_accounted_for() {
    let (_, office, mut token) = member().await;
    let lost = Office {
        leader: Some(dead_address().await),
        ..office.clone()
    };
    let cluster = Cluster {
        id: office.cluster,
        ca: Ca::load(&office.ca.0, &office.ca.1).unwrap(),
    };
    token.addresses = vec![dead_address().await, serve(&lost, cluster.node(3)).await];
    let attempts = failed_attempts(&token).await;
    assert_eq!(attempts.len(), 3, "{attempts:?}");
    let tried: Vec<_> = attempts.iter().map(|attempt| attempt.addr).collect();
    let words = EnrollError::NoAnswer(attempts).to_string();
    for addr in tried {
        assert!(words.contains(&addr.to_string()), "{words}");
    }

    token.addresses.clear();
    assert!(matches!(
        enroll(&token, &applicant()).await,
        Err(EnrollError::NoAddress)
    ));
}

#[tokio::test]
async fn members_that_send_a_node_in_circles_are_given_up_on() {
    let (cluster, office, mut token) = member().await;
    // Each of the two names the other as the leader.
    let (listener, second) = listen().await;
    let lost = |leader| Office {
        leader: Some(leader),
        ..office.clone()
    };
    let first = serve(&lost(second), cluster.node(3)).await;
    serve_at(listener, &lost(first), cluster.node(4));
    token.addresses = vec![first];
    assert_eq!(failed_attempts(&token).await.len(), MAX_ATTEMPTS);
}

#[test]
fn an_answer_is_trusted_no_further_than_the_token() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let applicant = applicant();
    let token = Token {
        cluster: ours.id,
        ca: ours.ca.fingerprint(),
        id: TokenId::random(),
        secret: Secret::random(),
        addresses: Vec::new(),
    };
    let answer = |ca: &Ca, key: &NodeKey, name: PeerName, node_id| EnrollResponse {
        node_id,
        certificate: ca.sign_own(key, name, now()).unwrap().to_vec(),
        ca_certificate: ca.certificate().to_vec(),
        ..EnrollResponse::default()
    };
    let accept = |response| accept(response, &token, &applicant);

    accept(answer(&ours.ca, &applicant.key, ours.name(2), 2)).unwrap();
    assert!(matches!(
        accept(answer(&ours.ca, &applicant.key, ours.name(2), 3)),
        Err(AnswerError::OtherNode { expected: 3, .. })
    ));
    assert!(matches!(
        accept(answer(&ours.ca, &applicant.key, theirs.name(2), 2)),
        Err(AnswerError::OtherNode { .. })
    ));
    assert!(matches!(
        accept(answer(&theirs.ca, &applicant.key, ours.name(2), 2)),
        Err(AnswerError::OtherAuthority)
    ));
    let other = NodeKey::generate().unwrap();
    assert!(matches!(
        accept(answer(&ours.ca, &other, ours.name(2), 2)),
        Err(AnswerError::Identity(IdentityError::OtherKey))
    ));
}
