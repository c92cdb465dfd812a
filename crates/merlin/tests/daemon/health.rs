//! Health checks from a real server's answer to the weight in the table.

use merlin_proto::v1::{HealthVerdict, LiveRequest, LiveServer};

use crate::support::requests::{check, server, service};
use crate::support::web::Backend;
use crate::support::{Daemon, Setup, eventually};

/// The only server of the table.
async fn live(daemon: &Daemon) -> Option<LiveServer> {
    let request = LiveRequest {
        local: true,
        service_id: "web".to_owned(),
    };
    let table = daemon
        .node()
        .await
        .live(request)
        .await
        .unwrap()
        .into_inner();
    table
        .nodes
        .into_iter()
        .next()?
        .services
        .into_iter()
        .next()?
        .servers
        .into_iter()
        .next()
}

async fn reaches(daemon: &Daemon, weight: u32, verdict: HealthVerdict) -> LiveServer {
    eventually(async || match live(daemon).await {
        Some(server) if server.weight == weight && server.health() == verdict => Ok(server),
        other => Err(other),
    })
    .await
}

async fn declare(daemon: &Daemon, backend: &Backend) {
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    let mut server = server("web", backend.addr);
    server.config.as_mut().unwrap().weight = Some(5);
    server.health_check = Some(check(backend.addr.port()));
    merlin.create_server(server).await.unwrap();
}

#[tokio::test]
async fn a_server_that_fails_its_check_gets_no_traffic_until_it_passes_again() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let backend = Backend::start().await;
    declare(&daemon, &backend).await;
    reaches(&daemon, 5, HealthVerdict::Up).await;
    backend.answer_with(503);
    let down = reaches(&daemon, 0, HealthVerdict::Down).await;
    assert!(down.last_failure.contains("503"), "{down:?}");
    backend.answer_with(204);
    let up = reaches(&daemon, 5, HealthVerdict::Up).await;
    // Why it was down is what somebody will ask.
    assert!(up.last_failure.contains("503"), "{up:?}");
}

#[tokio::test]
async fn a_server_nobody_answers_for_goes_down_and_comes_back_when_its_check_is_removed() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let backend = Backend::start().await;
    declare(&daemon, &backend).await;
    reaches(&daemon, 5, HealthVerdict::Up).await;
    let addr = backend.addr;
    drop(backend);
    let down = reaches(&daemon, 0, HealthVerdict::Down).await;
    assert!(down.last_failure.contains("refused"), "{down:?}");
    let mut unchecked = server("web", addr);
    unchecked.config = None;
    unchecked.health_check = Some(merlin_proto::types::real_server::HealthCheck {
        endpoint: Some(String::new()),
        ..Default::default()
    });
    daemon
        .merlin()
        .await
        .update_server(unchecked)
        .await
        .unwrap();
    reaches(&daemon, 5, HealthVerdict::Unchecked).await;
}

/// Over IPv6, which the earlier system could not do, and with the query, which it lost.
#[tokio::test]
async fn an_ipv6_server_is_probed_with_the_whole_endpoint() {
    use tokio::io::AsyncReadExt;
    let setup = Setup::new();
    let daemon = setup.start().await;
    let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut merlin = daemon.merlin().await;
    let mut web = service("web", 80);
    "fd00::1".clone_into(&mut web.key.as_mut().unwrap().ip);
    merlin.create_service(web).await.unwrap();
    let mut server = server("web", addr);
    server.health_check = Some(check(addr.port()));
    merlin.create_server(server).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = [0; 27];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"GET /health?deep=1 HTTP/1.1");
}
