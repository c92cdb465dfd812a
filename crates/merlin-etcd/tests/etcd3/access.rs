//! An etcd that does not let everybody in.

use std::path::{Path, PathBuf};

use etcd_client::{Client, ConnectOptions, Permission, PermissionType};
use merlin_etcd::{Config, Tls, User};

use super::*;
use crate::support::pki::Pki;
use crate::support::{self, Etcd, Options, connected};

/// etcd with users: `root`, and `merlin` with what its role may touch.
async fn with_users(prefixes: &[&str]) -> (Etcd, Client) {
    let etcd = Etcd::start().await;
    let mut root = etcd.client().await;
    root.user_add("root", "all", None).await.unwrap();
    root.role_add("root").await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.user_add("merlin", "secret", None).await.unwrap();
    root.role_add("catalog").await.unwrap();
    for prefix in prefixes {
        let permission = Permission::new(PermissionType::Readwrite, *prefix).with_prefix();
        root.role_grant_permission("catalog", permission)
            .await
            .unwrap();
    }
    root.user_grant_role("merlin", "catalog").await.unwrap();
    root.auth_enable().await.unwrap();
    let options = ConnectOptions::new().with_user("root", "all");
    let root = Client::connect(etcd.urls(), Some(options)).await.unwrap();
    (etcd, root)
}

fn as_merlin(etcd: &Etcd, password: &str) -> Config {
    Config {
        user: Some(User {
            name: "merlin".to_owned(),
            password: password.to_owned(),
        }),
        ..etcd.config()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_gets_in_by_password_and_stays_in_when_tokens_end() {
    let (mut etcd, mut root) = with_users(&["/merlin/"]).await;
    let store = EtcdStore::open(as_merlin(&etcd, "secret"));
    connected(&store).await;
    accepted(&store, named("one", create(1))).await;
    // Tokens are in the memory of the member.
    etcd.member().kill();
    etcd.member().start();
    insist(&store, named("two", create(2))).await;
    let (key, value) = record(3);
    let until = tokio::time::Instant::now() + DEADLINE;
    while let Err(error) = root.put(key.as_str(), value.clone(), None).await {
        assert!(tokio::time::Instant::now() < until, "{error}");
        let options = ConnectOptions::new().with_user("root", "all");
        root = Client::connect(etcd.urls(), Some(options)).await.unwrap();
    }
    eventually("changes are still seen", || holds(&store, 3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_let_in_is_told_why() {
    let (etcd, _) = with_users(&["/merlin/"]).await;
    for config in [as_merlin(&etcd, "wrong"), etcd.config()] {
        let store = EtcdStore::open(config);
        eventually("the reason is told", || {
            let reason = store.status().unavailable.unwrap_or_default();
            reason.contains("authentication failed") || reason.contains("user name is empty")
        })
        .await;
        store.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_touch_nothing_but_records_works_without_answers_kept() {
    let (etcd, _) = with_users(&["/merlin/se"]).await;
    let store = EtcdStore::open(as_merlin(&etcd, "secret"));
    connected(&store).await;
    accepted(&store, named("one", create(1))).await;
    accepted(&store, named("one", delete(1))).await;
    assert!(!holds(&store, 1), "the second was not taken for the first");
}

fn tls(ca: &Path, identity: Option<(PathBuf, PathBuf)>) -> Tls {
    Tls {
        ca: Some(ca.to_owned()),
        identity,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_show_certificates() {
    let pki = Pki::new();
    let address = support::address();
    let (certificate, key) = pki.issue("server", Some(address.into()));
    let options = Options {
        address: Some(address),
        tls: Some((certificate, key, pki.path("ca.pem"))),
        ..Options::default()
    };
    let etcd = Etcd::cluster(1, &options).await;
    let client = pki.issue("client", None);
    let config = |tls| Config {
        tls,
        ..etcd.config()
    };
    let store = EtcdStore::open(config(tls(&pki.path("ca.pem"), Some(client.clone()))));
    connected(&store).await;
    accepted(&store, named("one", create(1))).await;

    let stranger = Pki::new();
    for refused in [
        tls(&stranger.path("ca.pem"), Some(client)),
        tls(&pki.path("ca.pem"), None),
        tls(&pki.path("ca.pem"), Some(stranger.issue("client", None))),
    ] {
        let store = EtcdStore::open(config(refused));
        let asked = store.propose(create(2), Duration::from_secs(4)).await;
        assert!(
            matches!(asked, Err(ProposeError::Unavailable { .. })),
            "{asked:?}"
        );
        store.shutdown().await;
    }
    assert!(!holds(&store, 2));
}
