//! Real connections over the loopback interface. Any gRPC service will do at the end; the
//! enrolment service has a single call, and lends it to a question that is answered only to the
//! node it claims to come from.

use merlin_model::Timestamp;
use merlin_proto::peer::enrollment_client::EnrollmentClient;
use merlin_proto::peer::enrollment_server::{Enrollment, EnrollmentServer};
use merlin_proto::peer::{EnrollRequest, EnrollResponse};
use tonic::transport::Server;
use tonic::{Code, Response};

use super::*;
use crate::identity::testing::{Cluster, days_ago, now};

/// Answers who it is, to a caller that is who it says.
struct WhoAreYou {
    name: PeerName,
}

#[tonic::async_trait]
impl Enrollment for WhoAreYou {
    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let claimed = request.get_ref().node_name.parse();
        let claimed = claimed.map_err(|_| Status::invalid_argument("node_name"))?;
        verify_peer(&request, claimed)?;
        Ok(Response::new(EnrollResponse {
            node_id: self.name.node,
            ..EnrollResponse::default()
        }))
    }
}

/// A server that ends with the test's runtime.
async fn serve(tls: &PeerTls) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let incoming = tls.incoming(listener);
    let service = EnrollmentServer::new(WhoAreYou { name: tls.name() });
    let mut server = Server::builder();
    tokio::spawn(server.add_service(service).serve_with_incoming(incoming));
    addr
}

fn tls(identity: NodeIdentity) -> PeerTls {
    PeerTls::new(identity).unwrap()
}

async fn ask(channel: Channel, claimed: PeerName) -> Result<NodeId, Status> {
    let request = EnrollRequest {
        node_name: claimed.to_string(),
        ..EnrollRequest::default()
    };
    let answer = EnrollmentClient::new(channel).enroll(request).await?;
    Ok(answer.into_inner().node_id)
}

/// What went wrong, with everything that led to it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn channel(tls: &PeerTls, node: NodeId, addr: &str) -> Channel {
    tls.channel(node, addr, |endpoint| {
        endpoint.timeout(Duration::from_secs(10))
    })
}

/// The call must have died in the handshake.
async fn refused_handshake(channel: Channel, claimed: PeerName) -> String {
    let status = ask(channel, claimed).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    chain(&status)
}

#[tokio::test]
async fn nodes_of_a_cluster_reach_each_other() {
    let cluster = Cluster::new();
    let (one, two) = (tls(cluster.node(1)), tls(cluster.node(2)));
    let addr = serve(&one).await;
    assert_eq!(ask(channel(&two, 1, &addr), two.name()).await.unwrap(), 1);
}

#[tokio::test]
async fn a_node_cannot_speak_for_another() {
    let cluster = Cluster::new();
    let (one, two) = (tls(cluster.node(1)), tls(cluster.node(2)));
    let addr = serve(&one).await;
    let status = ask(channel(&two, 1, &addr), cluster.name(3))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("node-2"), "{status}");
}

/// The same node, but that it makes connections in this way.
fn dialing(tls: &PeerTls, dialing: Arc<ClientConfig>) -> PeerTls {
    let current = Current {
        dialing,
        ..tls.current()
    };
    PeerTls {
        current: Arc::new(RwLock::new(current)),
        complaints: Arc::default(),
    }
}

/// Trusts the cluster and has nothing to show.
fn nobody(cluster: &Cluster) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(cluster.ca.certificate().clone()).unwrap();
    let mut nobody = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    nobody.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(nobody)
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_refused_by_the_call() {
    let cluster = Cluster::new();
    let one = tls(cluster.node(1));
    let addr = serve(&one).await;
    let nobody = dialing(&one, nobody(&cluster));
    let status = ask(channel(&nobody, 1, &addr), cluster.name(2))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_at_either_end() {
    let ours = Cluster::new();
    // Even one that uses our cluster's id.
    let theirs = Cluster::named(ours.id);
    let (one, stranger) = (tls(ours.node(1)), tls(theirs.node(1)));

    // Neither as a server,
    let addr = serve(&stranger).await;
    let refused = refused_handshake(channel(&one, 1, &addr), one.name()).await;
    assert!(refused.contains("certificate"), "{refused}");

    // nor as a client, be it one that takes our server for good.
    let addr = serve(&one).await;
    let mut roots = RootCertStore::empty();
    roots.add(ours.ca.certificate().clone()).unwrap();
    let shown = certified(&stranger.identity()).unwrap();
    let config = client_config(Arc::new(roots), &shown).unwrap();
    let stranger = dialing(&stranger, Arc::new(config));
    ask(channel(&stranger, 1, &addr), ours.name(1))
        .await
        .unwrap_err();
}

#[tokio::test]
async fn another_node_at_the_address_is_not_taken_for_the_one_that_was_meant() {
    let cluster = Cluster::new();
    let (one, two) = (tls(cluster.node(1)), tls(cluster.node(2)));
    let addr = serve(&one).await;
    let refused = refused_handshake(channel(&two, 3, &addr), two.name()).await;
    assert!(refused.contains("not valid for name"), "{refused}");
}

#[tokio::test]
async fn expired_certificates_are_refused_until_they_are_renewed() {
    let cluster = Cluster::new();
    let one = tls(cluster.node(1));
    let old = tls(cluster.node_signed_at(2, days_ago(91)));

    let one_addr = serve(&one).await;
    ask(channel(&old, 1, &one_addr), old.name())
        .await
        .unwrap_err();
    let old_addr = serve(&old).await;
    let refused = refused_handshake(channel(&one, 2, &old_addr), one.name()).await;
    assert!(refused.contains("expired"), "{refused}");

    // Renewal takes effect without a new listener.
    let renewed = old.identity().renewed(&cluster.ca, days_ago(0)).unwrap();
    old.replace(renewed).unwrap();
    ask(channel(&old, 1, &one_addr), old.name()).await.unwrap();
    ask(channel(&one, 2, &old_addr), one.name()).await.unwrap();
}

#[tokio::test]
async fn a_clock_that_is_hours_off_does_not_keep_nodes_apart() {
    let cluster = Cluster::new();
    let one = tls(cluster.node(1));
    let addr = serve(&one).await;
    // Signed by a member whose clock was ahead, or behind.
    for hours in [-12, -1, 1, 12] {
        let signed = now().0.saturating_add_signed(hours * 3600 * 1000);
        let two = tls(cluster.node_signed_at(2, Timestamp(signed)));
        let asked = ask(channel(&two, 1, &addr), two.name()).await;
        assert_eq!(asked.unwrap(), 1, "{hours} h");
    }
}

#[test]
fn only_the_same_nodes_certificate_can_take_its_place() {
    let cluster = Cluster::new();
    let one = tls(cluster.node(1));
    assert!(matches!(
        one.replace(cluster.node(2)),
        Err(TlsError::OtherNode { .. })
    ));
    assert!(matches!(
        one.replace(Cluster::named(cluster.id).node(1)),
        Err(TlsError::OtherAuthority { .. })
    ));
}

/// At every turn of a rotation each node reaches each other one, however far either has come.
#[tokio::test]
async fn nodes_reach_each_other_while_their_authority_is_replaced() {
    let old = Cluster::new();
    let new = Cluster::named(old.id);
    let both = |node: u64, signed_by: &Cluster, other: &Cluster| {
        let beside = Beside {
            trusted: vec![other.ca.certificate().clone()],
            former: None,
        };
        PeerTls::with(signed_by.node(node), beside).unwrap()
    };
    let stages = |node| {
        [
            tls(old.node(node)),
            both(node, &old, &new),
            both(node, &new, &old),
            tls(new.node(node)),
        ]
    };
    for (one, server) in stages(1).iter().enumerate() {
        let addr = serve(server).await;
        for (two, client) in stages(2).iter().enumerate() {
            let asked = ask(channel(client, 1, &addr), client.name()).await;
            // Nobody takes a turn before everybody has taken the one before.
            let far_apart = one.abs_diff(two) > 1;
            assert_eq!(asked.is_err(), far_apart, "{one} {two}: {asked:?}");
        }
    }
}

#[tokio::test]
async fn clients_are_shown_the_former_authority_as_long_as_it_is_trusted() {
    let old = Cluster::new();
    let new = Cluster::named(old.id);
    let beside = Beside {
        trusted: vec![old.ca.certificate().clone()],
        former: Some(Arc::new(old.node(1))),
    };
    let node = PeerTls::with(new.node(1), beside).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    for (knows, finished) in [(&old, false), (&new, true)] {
        if finished {
            node.change(node.identity(), Beside::default()).unwrap();
        }
        let (answer, dialed) = tokio::join!(
            async { node.accept(listener.accept().await.unwrap().0).await },
            connect(nobody(knows), &addr, node.name()),
        );
        dialed.unwrap();
        answer.unwrap();
    }
}

#[tokio::test]
async fn a_stalled_or_senseless_connection_does_not_hold_up_the_others() {
    use tokio::io::AsyncWriteExt;
    let cluster = Cluster::new();
    let (one, two) = (tls(cluster.node(1)), tls(cluster.node(2)));
    let addr = serve(&one).await;
    let _silent = TcpStream::connect(&addr).await.unwrap();
    let mut senseless = TcpStream::connect(&addr).await.unwrap();
    senseless
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    ask(channel(&two, 1, &addr), two.name()).await.unwrap();
}

/// A client learns only by reading that TLS 1.3 has let it in, or not.
#[tokio::test]
async fn a_crowd_without_certificates_is_bounded_and_does_not_hold_up_nodes() {
    use tokio::io::AsyncReadExt;
    let cluster = Cluster::new();
    let (one, two) = (tls(cluster.node(1)), tls(cluster.node(2)));
    let addr = serve(&one).await;
    let nobody = nobody(&cluster);
    let visit = async || {
        connect(Arc::clone(&nobody), &addr, one.name())
            .await
            .unwrap()
    };
    let mut crowd = Vec::new();
    for _ in 0..MAX_VISITORS {
        let mut visitor = visit().await;
        // The server's settings, which HTTP/2 begins with.
        visitor.read_u8().await.unwrap();
        crowd.push(visitor);
    }
    let mut refused = visit().await;
    assert!(refused.read_u8().await.is_err());
    ask(channel(&two, 1, &addr), two.name()).await.unwrap();
    drop(crowd.pop());
    let admitted = async {
        while visit().await.read_u8().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), admitted).await.unwrap();
}

#[tokio::test]
async fn a_request_that_came_over_no_such_connection_is_refused() {
    let request = Request::new(());
    let status = verify_peer(&request, Cluster::new().name(1)).unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}
