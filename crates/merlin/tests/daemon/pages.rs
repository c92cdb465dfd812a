//! The pages for probes and scrapers, and whether they tell the truth.

use merlin_proto::types::real_server;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::requests::{beside, check, numbered_server, refused, service};
use crate::support::{Daemon, Setup, eventually, workspace};

async fn status(daemon: &Daemon, path: &str) -> (u16, String) {
    let answer = daemon.get(path).await.unwrap();
    (answer.status, answer.body)
}

#[tokio::test]
async fn a_well_node_is_alive_ready_and_healthy() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    assert_eq!(daemon.page("/alive").await, "alive\n");
    for page in ["/ready", "/health"] {
        assert_eq!(daemon.page(page).await, "ok\n");
    }
    assert_eq!(status(&daemon, "/nothing").await.0, 404);
    assert_eq!(status(&daemon, "/").await.0, 404);
}

/// The earlier system's `/health` always said ok.
#[tokio::test]
async fn a_node_without_a_quorum_says_so_and_why_until_there_is_one() {
    let founder = Setup::founder();
    let mut first = founder.start().await;
    let member = Setup::member_of(&founder);
    let mut second = member.start().await;
    eventually(async || match founder.voters() {
        2 => Ok(()),
        voters => Err(voters),
    })
    .await;
    first
        .merlin()
        .await
        .create_service(service("web", 80))
        .await
        .unwrap();
    second
        .metric("merlin_catalog_services", |services| services == 1.0)
        .await;
    first.process.crash();

    eventually(async || match status(&second, "/health").await {
        (503, reason) if reason.contains("store: ") && reason.contains("kernel keeps") => Ok(()),
        other => Err(other),
    })
    .await;
    grpc_health(&second, ServingStatus::NotServing).await;
    // Nothing that a restart of it would mend.
    assert_eq!(status(&second, "/alive").await.0, 200);
    assert_eq!(status(&second, "/ready").await.0, 503);
    second
        .metric("merlin_store_available", |available| available == 0.0)
        .await;
    let mut merlin = second.merlin().await;
    let write = merlin.create_service(service("mail", 25)).await;
    refused(write, Code::Unavailable, "");
    let stale = beside((), &[("merlin-consistency", "stale")]);
    let list = merlin.list(stale).await.unwrap().into_inner();
    assert_eq!(list.items.len(), 1);
    assert_eq!(second.live().await.services.len(), 1);

    // Started without a quorum it works with what it knew, and still complains.
    second.process.crash();
    let second = member.start_unready().await;
    eventually(async || match second.live().await.services.len() {
        1 => Ok(()),
        services => Err(services),
    })
    .await;
    assert_eq!(status(&second, "/health").await.0, 503);

    let _first = founder.start().await;
    eventually(async || match status(&second, "/health").await {
        (200, _) => Ok(()),
        other => Err(other),
    })
    .await;
    grpc_health(&second, ServingStatus::Serving).await;
}

/// Waits until the standard health service says so too.
async fn grpc_health(daemon: &Daemon, wanted: ServingStatus) {
    let mut client = HealthClient::new(daemon.channel().await);
    for (service, wanted) in [
        ("", wanted),
        ("types.Merlin", wanted),
        // It is there to say what is wrong.
        ("merlin.v1.Node", ServingStatus::Serving),
    ] {
        eventually(async || {
            let service = service.to_owned();
            let answer = client.check(HealthCheckRequest { service }).await;
            match answer.map(|answer| answer.into_inner().status()) {
                Ok(status) if status == wanted => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }
}

/// A new member knows nothing until it hears from the others: what it would make of the kernel
/// is worth nothing.
#[tokio::test]
async fn a_node_that_never_had_a_catalog_is_not_ready_before_it_has_one() {
    let founder = Setup::founder();
    let mut first = founder.start().await;
    // It has its id and its certificate, but not the catalog yet.
    let member = Setup::member_of(&founder);
    first.process.crash();
    let second = member.start_unready().await;
    let (code, reason) = status(&second, "/ready").await;
    assert_eq!(code, 503);
    assert!(reason.contains("first reconcile"), "{reason}");
    assert_eq!(status(&second, "/alive").await.0, 200);
    let _first = founder.start().await;
    eventually(async || match status(&second, "/ready").await {
        (200, _) => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test]
async fn metrics_parse_and_are_all_documented() {
    let setup = Setup::with(&["--metrics-per-server"]);
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    let mut checked = numbered_server("web", 1);
    checked.health_check = Some(real_server::HealthCheck {
        ..check(setup.peer.addr().port())
    });
    merlin.create_server(checked).await.unwrap();
    daemon
        .metric("merlin_catalog_servers", |servers| servers == 1.0)
        .await;
    eventually(async || {
        let page = daemon.page("/metrics").await;
        if page.contains("merlin_health_server_up{") {
            Ok(())
        } else {
            Err(page)
        }
    })
    .await;

    let answer = daemon.get("/metrics").await.unwrap();
    let head = answer.head.to_lowercase();
    assert!(
        head.contains("content-type: application/openmetrics-text"),
        "{head}"
    );
    let mut lines: Vec<_> = answer.body.lines().collect();
    assert_eq!(lines.pop(), Some("# EOF"));
    let readme = std::fs::read_to_string(workspace().join("deploy/README.md")).unwrap();
    let (mut types, mut samples) = (Vec::new(), 0);
    for line in lines {
        if let Some(described) = line.strip_prefix("# ") {
            let (kind, rest) = described.split_once(' ').unwrap();
            let (name, text) = rest.split_once(' ').unwrap();
            assert!(
                ["HELP", "TYPE", "UNIT"].contains(&kind) && !text.is_empty(),
                "{line}"
            );
            if kind == "TYPE" {
                assert!(
                    ["counter", "gauge", "histogram", "info"].contains(&text),
                    "{line}"
                );
                types.push((name, text));
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = series.split('{').next().unwrap();
        // Samples follow the type of their family, counters with a suffix.
        let (family, kind) = types.last().expect("a type before the first sample");
        let suffix = name
            .strip_prefix(family)
            .unwrap_or_else(|| panic!("{line} in {family}"));
        assert_eq!(suffix == "_total", *kind == "counter", "{line}");
        assert!(
            readme.contains(&format!("`{name}`")),
            "deploy/README.md has no {name}"
        );
        samples += 1;
    }
    assert!(samples > 25, "{samples}");
}
