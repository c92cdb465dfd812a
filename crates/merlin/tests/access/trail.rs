//! The audit trail.

use merlin_proto::types::RealServer;
use merlin_proto::v1::{AuditEntry, AuditRequest};
use nix::unistd::geteuid;
use tonic::Request;
use tonic::transport::Channel;

use crate::namespace::{address, alone_async};
use crate::node::{Hosts, Node};
use crate::remote::{client, cluster, dial, local, merlin, open_host};
use crate::support::{server, service};

async fn trail(node: &Node) -> Vec<AuditEntry> {
    let channel = local(node).await;
    audit(&channel, AuditRequest::default()).await
}

async fn audit(channel: &Channel, request: AuditRequest) -> Vec<AuditEntry> {
    let answer = cluster(channel).audit(request).await;
    answer.unwrap().into_inner().entries
}

/// Who and what, oldest first.
fn lines(entries: &[AuditEntry]) -> Vec<String> {
    let line = |entry: &AuditEntry| format!("{}: {} ({})", entry.who, entry.what, entry.revision);
    entries.iter().rev().map(line).collect()
}

#[test]
fn who_did_what_is_known_on_every_node_and_after_a_restart() {
    alone_async(
        "trail::who_did_what_is_known_on_every_node_and_after_a_restart",
        async || {
            let hosts = Hosts::new();
            let mut one = hosts.host("n1");
            one.start();
            let mut two = open_host(&hosts, "n2", 2);
            two.join(&one);
            two.start();
            one.awaits_voters(2);
            let ana = client(&hosts, &one, "ana", "operator");

            // Through both nodes, so that one of them forwards.
            let mut here = merlin(&local(&two).await);
            here.create_service(service("web", 80)).await.unwrap();
            let mut plain = one.client().await;
            plain
                .create_server(server("web", "10.1.0.1", 80))
                .await
                .unwrap();
            let mut remote = merlin(&dial(&ana, address(2)).await);
            let drain = RealServer {
                config: Some(merlin_proto::types::real_server::Config {
                    weight: Some(0),
                    ..Default::default()
                }),
                ..server("web", "10.1.0.1", 80)
            };
            // A retry of the same request is the same change.
            for _ in 0..2 {
                let mut request = Request::new(drain.clone());
                let id = "one-request".parse().unwrap();
                request.metadata_mut().insert("merlin-request-id", id);
                remote.update_server(request).await.unwrap();
            }
            // Refusals and deletions of nothing change nothing.
            here.create_service(service("web", 80)).await.unwrap_err();
            here.delete_service("none".to_owned()).await.unwrap();

            let uid = geteuid();
            let me = nix::unistd::User::from_uid(uid).unwrap().unwrap().name;
            let me = |node| format!("{me} (uid {uid}) on node {node}");
            let entries = trail(&one).await;
            let noted = lines(&entries);
            let expected = [
                format!("{}: add service web TCP 10.0.0.1:80 wrr (1)", me(2)),
                "127.0.0.1 in plaintext: add server 10.1.0.1:80 of web: weight 7, masq (2)".into(),
                "client ana (operator): edit server 10.1.0.1:80 of web: weight 0 (3)".into(),
            ];
            assert!(noted.ends_with(&expected), "{noted:#?}");
            let cluster_changes = &noted[..noted.len() - expected.len()];
            let told = |by: &str, what: &str| {
                let found = cluster_changes
                    .iter()
                    .any(|line| line.starts_with(by) && line.contains(what));
                assert!(found, "{by} {what}: {cluster_changes:#?}");
            };
            told("node 1", "found the cluster");
            told(&me(1), "create join token");
            told("node 1", "admit node 2 (n2");
            told(&me(1), "create client ana (operator)");

            // It is the same on every node, counted without gaps, and survives a restart.
            assert_eq!(trail(&two).await, entries);
            let numbers: Vec<_> = entries.iter().rev().map(|entry| entry.number).collect();
            assert!(
                numbers.iter().copied().eq(1..=entries.len() as u64),
                "{numbers:?}"
            );
            two.stop();
            two.start();
            one.awaits_voters(2);
            assert_eq!(trail(&two).await, entries);

            // As much of it as is asked for.
            let channel = local(&one).await;
            let limit = AuditRequest {
                limit: 2,
                since: None,
            };
            assert_eq!(audit(&channel, limit).await, entries[..2]);
            let since = entries[0].time;
            let recent = audit(&channel, AuditRequest { limit: 0, since }).await;
            assert_eq!(recent, entries[..recent.len()]);
            assert!(recent.len() < entries.len());
        },
    );
}
