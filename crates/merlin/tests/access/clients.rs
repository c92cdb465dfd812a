//! What clients with and without a certificate may do, from where.

use std::path::Path;
use std::process::Command;

use merlin_client::Context;
use merlin_client::context::Parts;
use merlin_proto::types::{RealServer, real_server};
use merlin_proto::v1::{
    AuditRequest, CreateTokenRequest, DescribeRequest, StatusRequest, WatchRequest,
};
use tonic::Code;

use crate::namespace::{address, alone_async};
use crate::node::{Hosts, spoken};
use crate::remote::{
    client, cluster, dial, local, merlin, nodes, open_host, plaintext, refused, run_dir,
};
use crate::support::{eventually, server, service};

fn weight(weight: u32) -> RealServer {
    RealServer {
        config: Some(real_server::Config {
            weight: Some(weight),
            ..Default::default()
        }),
        ..server("web", "10.1.0.1", 80)
    }
}

#[test]
fn other_hosts_are_answered_by_tls_to_clients_only() {
    alone_async(
        "clients::other_hosts_are_answered_by_tls_to_clients_only",
        async || {
            let hosts = Hosts::new();
            let mut node = open_host(&hosts, "n1", 1);
            // On every address, as an operator says it.
            node.env[0].1 = "0.0.0.0:4282".to_owned();
            let advertise = "10.9.9.1:4284".to_owned();
            node.env.push(("MERLIN_PEER_ADDR".into(), advertise));
            node.start();

            // Plaintext is for this host alone, and not for the cluster.
            let channel = plaintext(([127, 0, 0, 1], 4282).into()).await;
            merlin(&channel)
                .create_service(service("web", 80))
                .await
                .unwrap();
            let words = refused(
                cluster(&channel).describe(DescribeRequest::default()).await,
                Code::Unauthenticated,
            );
            assert!(words.contains("unix socket"), "{words}");
            let channel = plaintext(address(1)).await;
            for words in [
                refused(merlin(&channel).list(()).await, Code::Unauthenticated),
                refused(
                    nodes(&channel).status(StatusRequest::default()).await,
                    Code::Unauthenticated,
                ),
            ] {
                assert!(words.contains("TLS"), "{words}");
                assert!(words.contains("merlin cluster client create"), "{words}");
                assert!(words.contains("meradm login"), "{words}");
            }

            // A client is trusted, and trusts the node, at whatever address.
            let ana = client(&hosts, &node, "ana", "viewer");
            assert_eq!(ana.nodes, ["10.9.9.1:4282"]);
            for addr in [address(1), address(2), ([127, 0, 0, 1], 4282).into()] {
                let channel = dial(&ana, addr).await;
                let listed = merlin(&channel).list(()).await.unwrap().into_inner();
                assert_eq!(listed.items.len(), 1);
            }

            // A node's certificate makes nobody a client.
            let node_as_client = as_client(&ana, &node.data().join("identity/node.pem"));
            let channel = dial(&node_as_client, address(1)).await;
            let words = refused(merlin(&channel).list(()).await, Code::Unauthenticated);
            assert!(words.contains("node-1."), "{words}");
        },
    );
}

/// A context with the key and certificate of a node's file.
fn as_client(context: &Context, file: &Path) -> Context {
    let blocks = pem::parse_many(std::fs::read(file).unwrap()).unwrap();
    let [key, certificate, ca] = blocks.as_slice() else {
        panic!("a key and two certificates");
    };
    Context::new(Parts {
        client: "node".to_owned(),
        role: "admin".to_owned(),
        cluster_id: context.cluster_id.clone(),
        nodes: Vec::new(),
        ca_certificates: vec![ca.contents().to_vec()],
        certificate: certificate.contents().to_vec(),
        private_key: key.contents().to_vec(),
    })
}

#[test]
fn each_role_may_do_its_part_and_no_more() {
    alone_async(
        "clients::each_role_may_do_its_part_and_no_more",
        async || {
            let hosts = Hosts::new();
            let mut node = open_host(&hosts, "n1", 1);
            node.start();
            let channel = local(&node).await;
            let mut root = merlin(&channel);
            root.create_service(service("web", 80)).await.unwrap();
            root.create_server(server("web", "10.1.0.1", 80))
                .await
                .unwrap();

            for (role, may_steer, may_all) in [
                ("viewer", false, false),
                ("operator", true, false),
                ("admin", true, true),
            ] {
                let context = client(&hosts, &node, role, role);
                let channel = dial(&context, address(1)).await;
                let mut catalog = merlin(&channel);
                let mut admin = cluster(&channel);
                // Everybody reads.
                catalog.list(()).await.unwrap();
                nodes(&channel)
                    .status(StatusRequest::default())
                    .await
                    .unwrap();
                admin.describe(DescribeRequest::default()).await.unwrap();
                let watched = nodes(&channel).watch(WatchRequest::default()).await;
                watched.unwrap().into_inner().message().await.unwrap();

                let denied = |answer: Result<(), tonic::Status>, allowed: bool, needed: &str| {
                    if allowed {
                        answer.unwrap();
                    } else {
                        let words = refused(answer, Code::PermissionDenied);
                        assert!(words.contains(&format!("needs role {needed}")), "{words}");
                        assert!(words.contains(role), "{words}");
                    }
                };
                let steered = catalog.update_server(weight(0)).await;
                denied(steered.map(drop), may_steer, "operator");
                let audited = admin.audit(AuditRequest::default()).await;
                denied(audited.map(drop), may_steer, "operator");
                let forward = server("web", "10.1.0.1", 80);
                // A viewer is told of the least it lacks.
                let needed = if may_steer { "admin" } else { "operator" };
                let changed = catalog.update_server(forward).await;
                denied(changed.map(drop), may_all, needed);
                let added = catalog.create_service(service("more", 81)).await;
                denied(added.map(drop), may_all, "admin");
                let token = admin.create_token(CreateTokenRequest::default()).await;
                denied(token.map(drop), may_all, "admin");
            }
            // What was refused has changed nothing.
            let listed = root.list(()).await.unwrap().into_inner();
            assert_eq!(listed.items.len(), 2, "the admin added one");
        },
    );
}

#[test]
fn a_revocation_reaches_every_node_and_what_is_open() {
    alone_async(
        "clients::a_revocation_reaches_every_node_and_what_is_open",
        async || {
            let hosts = Hosts::new();
            let mut one = open_host(&hosts, "n1", 1);
            one.start();
            let mut two = open_host(&hosts, "n2", 2);
            two.join(&one);
            two.start();
            one.awaits_voters(2);

            let ana = client(&hosts, &two, "ana", "operator");
            assert_eq!(ana.nodes, ["10.9.9.1:4282", "10.9.9.2:4282"]);
            let channels = [dial(&ana, address(1)).await, dial(&ana, address(2)).await];
            let mut watches = Vec::new();
            for channel in &channels {
                merlin(channel).list(()).await.unwrap();
                let watch = nodes(channel).watch(WatchRequest::default()).await;
                watches.push(watch.unwrap().into_inner());
            }
            // The whole of a context is its file: the command line does what a client may.
            let listed = one.succeeds(&["client", "list"]);
            assert!(
                listed.contains("ana") && listed.contains("operator"),
                "{listed}"
            );
            one.succeeds(&["client", "revoke", "ana"]);
            for watch in &mut watches {
                let ended = loop {
                    match watch.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => panic!("the watch ended without a reason"),
                        Err(status) => break status,
                    }
                };
                assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
                assert!(ended.message().contains("ana has been revoked"), "{ended}");
            }
            for channel in &channels {
                let words = refused(merlin(channel).list(()).await, Code::Unauthenticated);
                assert!(words.contains("ana has been revoked"), "{words}");
            }
            let listed = two.succeeds(&["client", "list"]);
            assert!(listed.contains("revoked"), "{listed}");
            one.succeeds(&["client", "revoke", "ana"]);
            let words = one.refuses(&["client", "revoke", "bob"]);
            assert!(words.contains("no client \"bob\""), "{words}");
            // The name is free again, and the old certificate stays worthless.
            std::fs::remove_file(hosts.file("ana.toml")).unwrap();
            let again = client(&hosts, &one, "ana", "viewer");
            merlin(&dial(&again, address(2)).await)
                .list(())
                .await
                .unwrap();
            refused(merlin(&channels[0]).list(()).await, Code::Unauthenticated);
        },
    );
}

#[test]
fn a_client_ends_with_its_certificate() {
    alone_async("clients::a_client_ends_with_its_certificate", async || {
        let hosts = Hosts::new();
        let mut node = open_host(&hosts, "n1", 1);
        node.start();
        let file = hosts.file("brief.toml");
        let out = file.to_str().unwrap();
        node.succeeds(&[
            "client", "create", "brief", "--role", "viewer", "--ttl", "3s", "--out", out,
        ]);
        let brief = Context::read(&file).unwrap();
        let channel = dial(&brief, address(1)).await;
        let watch = nodes(&channel).watch(WatchRequest::default()).await;
        let mut watch = watch.unwrap().into_inner();
        let ended = loop {
            if let Err(status) = watch.message().await {
                break status;
            }
        };
        assert_eq!(ended.code(), Code::Unauthenticated);
        assert!(ended.message().contains("brief has expired"), "{ended}");
        refused(merlin(&channel).list(()).await, Code::Unauthenticated);
    });
}

#[test]
fn plaintext_for_everybody_is_for_the_catalog_and_said_loudly() {
    alone_async(
        "clients::plaintext_for_everybody_is_for_the_catalog_and_said_loudly",
        async || {
            let hosts = Hosts::new();
            let mut node = open_host(&hosts, "n1", 1);
            node.env.push(("MERLIN_API_INSECURE".into(), "true".into()));
            node.start();
            assert!(node.log().contains("IN PLAINTEXT"), "{}", node.log());
            let channel = plaintext(address(1)).await;
            merlin(&channel)
                .create_service(service("web", 80))
                .await
                .unwrap();
            let words = refused(
                cluster(&channel).describe(DescribeRequest::default()).await,
                Code::Unauthenticated,
            );
            assert!(words.contains("plaintext"), "{words}");
            // Clients with a certificate are who they are all the same.
            let ana = client(&hosts, &node, "ana", "viewer");
            let channel = dial(&ana, address(1)).await;
            refused(
                merlin(&channel).create_service(service("more", 81)).await,
                Code::PermissionDenied,
            );
        },
    );
}

#[test]
fn cluster_commands_work_from_another_host() {
    alone_async(
        "clients::cluster_commands_work_from_another_host",
        async || {
            let hosts = Hosts::new();
            let mut node = open_host(&hosts, "n1", 1);
            node.start();
            // The administrator's own host has nothing but the file.
            let admin = client(&hosts, &node, "admin", "admin");
            let home = hosts.file("home");
            merlin_client::Contexts::in_dir(home.join("merlin"))
                .add("prod", &admin)
                .unwrap();
            let elsewhere = |args: &[&str]| {
                let mut command = Command::new(env!("CARGO_BIN_EXE_merlin"));
                command.env_clear().env("XDG_CONFIG_HOME", &home);
                let output = command.arg("cluster").args(args).output().unwrap();
                let (said, error) = spoken(&output);
                (output.status.code().unwrap(), said, error)
            };
            let (code, said, error) = elsewhere(&["-H", "10.9.9.1", "members"]);
            assert_eq!(code, 0, "{error}");
            assert!(said.contains("n1") && said.contains("leader"), "{said}");
            let (code, said, error) = elsewhere(&["--context", "prod", "token", "create"]);
            assert_eq!(code, 0, "{error}");
            assert!(said.starts_with("merlin cluster join mjt1."), "{said}");
            let (code, _, error) = elsewhere(&["--context", "test", "members"]);
            assert_eq!(code, 1);
            assert!(error.contains("\"test\" (there is prod)"), "{error}");
            let (code, _, error) = elsewhere(&["-H", "10.9.9.3", "members"]);
            assert_eq!(code, 3, "{error}");
        },
    );
}

#[tokio::test]
async fn files_that_are_there_are_not_overwritten_and_names_are_checked() {
    let hosts = Hosts::new();
    let mut node = hosts.host("n1");
    node.start();
    let file = hosts.file("ana.toml");
    std::fs::write(&file, "precious").unwrap();
    let out = file.to_str().unwrap();
    let create = |name, out| ["client", "create", name, "--role", "viewer", "--out", out];
    let words = node.refuses(&create("ana", out));
    assert!(words.contains("exists already"), "{words}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    assert!(!node.succeeds(&["client", "list"]).contains("ana"));
    let words = node.refuses(&create("two words", "-"));
    assert!(words.contains("name: must be 1 to 64"), "{words}");

    // On standard output too; and a name is one client's.
    let text = node.succeeds(&create("bob", "-"));
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, text).unwrap();
    let bob = Context::read(&file).unwrap();
    assert_eq!((bob.client.as_str(), bob.nodes.len()), ("bob", 0));
    let words = node.refuses(&create("bob", "-"));
    assert!(words.contains("client bob exists already"), "{words}");
    // By default the socket is for its owner alone.
    let socket = run_dir(&node).join("merlin.sock");
    eventually("the socket is there", || socket.exists());
}
