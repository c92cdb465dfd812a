//! The built daemon with its catalog in a real etcd, as somebody runs it who replaces the earlier
//! system.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, helpers too")]

#[path = "../../../merlin-etcd/tests/support/mod.rs"]
mod etcd;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "every test uses some of it")]
mod support;

use std::path::PathBuf;
use std::process::Command;

use merlin_proto::v1::node_client::NodeClient;
use merlin_proto::v1::{LiveRequest, StatusRequest};
use tonic::{Code, Request};

use crate::etcd::pki::Pki;
use crate::etcd::{Etcd, Options};
use crate::support::{Daemon, Home, eventually, server, service};

/// A daemon and where it lives, which goes last.
struct Node {
    daemon: Daemon,
    home: Home,
}

/// Nodes with the earlier system's command line.
async fn nodes(etcd: &Etcd, count: usize) -> Vec<Node> {
    // A daemon whose etcd is not there yet waits for it; these tests need not.
    etcd.client().await;
    let urls = etcd.urls().join(",");
    let node = |_| {
        let home = Home::new();
        let daemon = home.start(&[
            "-store-endpoints",
            &urls,
            "-store-backend=etcd3",
            "-reconcile-sync-period=1m",
        ]);
        Node { daemon, home }
    };
    (0..count).map(node).collect()
}

async fn services_in_table(home: &Home) -> usize {
    let mut client = NodeClient::connect(format!("http://{}", home.api))
        .await
        .unwrap();
    let request = LiveRequest {
        local: true,
        ..LiveRequest::default()
    };
    let live = client.live(request).await.unwrap().into_inner();
    live.nodes[0].services.len()
}

async fn wait_for_table(home: &Home, services: usize) {
    let until = std::time::Instant::now() + support::SOON;
    while services_in_table(home).await != services {
        assert!(
            std::time::Instant::now() < until,
            "never: {services} services in the table"
        );
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_on_one_etcd_have_one_catalog_and_old_clients_notice_nothing() {
    let etcd = Etcd::start().await;
    let nodes = nodes(&etcd, 2).await;
    let mut first = nodes[0].home.client().await;
    let mut second = nodes[1].home.client().await;
    first.create_service(service("web", 80)).await.unwrap();
    second
        .create_server(server("web", "10.1.0.1", 8080))
        .await
        .unwrap();
    let taken = first.create_service(service("web", 81)).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    let missing = second
        .create_server(server("nope", "10.1.0.1", 80))
        .await
        .unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let listed = first.list(()).await.unwrap().into_inner();
    assert_eq!(listed.items.len(), 1);
    assert_eq!(listed.items[0].servers.len(), 1);
    for Node { home, .. } in &nodes {
        wait_for_table(home, 1).await;
    }
    first.delete_service("web".to_owned()).await.unwrap();
    for Node { home, .. } in &nodes {
        wait_for_table(home, 0).await;
    }
    let mut client = etcd.client().await;
    let options = etcd_client::GetOptions::new().with_prefix();
    let left = client.get("/merlin/s", Some(options)).await.unwrap();
    assert_eq!(left.kvs().len(), 0, "the servers went with their service");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_etcd_is_away_the_node_says_so_and_keeps_everything() {
    let mut etcd = Etcd::start().await;
    let nodes = nodes(&etcd, 1).await;
    let Node { home, .. } = &nodes[0];
    let mut api = home.client().await;
    api.create_service(service("web", 80)).await.unwrap();
    wait_for_table(home, 1).await;

    etcd.member().kill();
    eventually("it is not ready", || home.get("/ready").contains(" 503 "));
    assert!(home.get("/alive").contains(" 200 "));
    assert!(home.get("/ready").contains("store: etcd at http://"));
    let refused = api.create_service(service("new", 81)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let refused = api.list(()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let mut stale = Request::new(());
    stale
        .metadata_mut()
        .insert("merlin-consistency", "stale".parse().unwrap());
    let held = api.list(stale).await.unwrap().into_inner();
    assert_eq!(held.items.len(), 1);
    assert_eq!(services_in_table(home).await, 1);
    let mut node = NodeClient::new(
        tonic::transport::Endpoint::from_shared(format!("http://{}", home.api))
            .unwrap()
            .connect_lazy(),
    );
    let status = node
        .status(StatusRequest { local: true })
        .await
        .unwrap()
        .into_inner();
    let store = status.nodes[0].store.clone().unwrap();
    assert_eq!((store.backend.as_str(), store.available), ("etcd3", false));
    assert!(store.lag.is_some());

    etcd.member().start();
    eventually("it is ready again", || home.get("/ready").contains(" 200 "));
    api.create_service(service("new", 81)).await.unwrap();
    wait_for_table(home, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_before_etcd_is_alive_and_waits() {
    let mut etcd = Etcd::cluster(1, &Options::default()).await;
    etcd.member().kill();
    let home = Home::new();
    let mut waiting = home
        .command()
        .args([
            "--store-endpoints",
            &etcd.urls()[0],
            "--store-backend",
            "etcd3",
        ])
        .spawn()
        .unwrap();
    eventually("it lives", || home.get("/alive").contains(" 200 "));
    assert!(home.get("/ready").contains(" 503 "));
    let mut api = home.client().await;
    let refused = api.create_service(service("web", 80)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    etcd.member().start();
    eventually("it is ready", || home.get("/ready").contains(" 200 "));
    api.create_service(service("web", 80)).await.unwrap();
    waiting.kill().unwrap();
    waiting.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_make_no_sense_are_shown_and_disturb_nobody() {
    let etcd = Etcd::start().await;
    let nodes = nodes(&etcd, 1).await;
    let Node { home, daemon } = &nodes[0];
    let mut client = etcd.client().await;
    client
        .put("/merlin/services/bad", "\u{1}", None)
        .await
        .unwrap();
    home.client()
        .await
        .create_service(service("web", 80))
        .await
        .unwrap();
    wait_for_table(home, 1).await;
    let mut node = NodeClient::connect(format!("http://{}", home.api))
        .await
        .unwrap();
    let status = node
        .status(StatusRequest { local: true })
        .await
        .unwrap()
        .into_inner();
    let passed_over = &status.nodes[0].store.as_ref().unwrap().passed_over;
    assert_eq!(passed_over[0].key, "/merlin/services/bad");
    assert!(
        home.get("/metrics")
            .contains("merlin_store_records_passed_over 1")
    );
    assert!(daemon.log().contains("record passed over"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_etcd_has_not_says_so() {
    let etcd = Etcd::start().await;
    let nodes = nodes(&etcd, 1).await;
    let Node { home, .. } = &nodes[0];
    let asked = Command::new(env!("CARGO_BIN_EXE_merlin"))
        .args(["cluster", "status", "--run-dir"])
        .arg(home.path("run"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(!asked.status.success());
    assert!(said.contains("keeps its catalog in etcd3"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_and_a_migration_show_certificates() {
    let pki = Pki::new();
    let address = etcd::address();
    let (certificate, key) = pki.issue("server", Some(address.into()));
    let options = Options {
        address: Some(address),
        tls: Some((certificate, key, pki.path("ca.pem"))),
        ..Options::default()
    };
    let guarded = Etcd::cluster(1, &options).await;
    let (certificate, key) = pki.issue("client", None);
    let files = [
        ("ca", pki.path("ca.pem")),
        ("cert", certificate),
        ("key", key),
    ];
    let shown = |side: &str| -> Vec<String> {
        let flag = |(what, file): &(&str, PathBuf)| format!("--{side}-{what}={}", file.display());
        files.iter().map(flag).collect()
    };
    let url = guarded.urls()[0].clone();
    let home = Home::new();
    let mut flags = vec![format!("--store-endpoints={url}")];
    flags.extend(shown("store"));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let _daemon = home.start(&flags);
    let mut api = home.client().await;
    api.create_service(service("web", 80)).await.unwrap();
    api.create_server(server("web", "10.1.0.1", 8080))
        .await
        .unwrap();
    wait_for_table(&home, 1).await;

    let open = Etcd::start().await;
    let mut client = open.client().await;
    let migrate = |shown: Vec<String>| {
        Command::new(env!("CARGO_BIN_EXE_merlin"))
            .args(["migrate", "--from=etcd3", "--to=etcd3"])
            .args(["--from-endpoints", &url, "--to-endpoints", &open.urls()[0]])
            .args(shown)
            .output()
            .unwrap()
    };
    let refused = migrate(Vec::new());
    assert!(!refused.status.success(), "without certificates");
    let moved = migrate(shown("from"));
    let said = String::from_utf8_lossy(&moved.stderr);
    assert!(moved.status.success(), "{said}");
    let options = etcd_client::GetOptions::new().with_prefix();
    let held = client.get("/merlin/s", Some(options)).await.unwrap();
    assert_eq!(held.kvs().len(), 2);
}
