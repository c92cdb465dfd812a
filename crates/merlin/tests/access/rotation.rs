//! Another certificate authority, on daemons that run: nodes, clients, and what is said of it.

use merlin_client::Context;
use merlin_proto::v1::AuditRequest;

use crate::namespace::{address, alone_async};
use crate::node::{Hosts, Node};
use crate::remote::{client, cluster, dial, local, merlin, open_host};
use crate::support::{eventually, service};

async fn writes(node: &Node, name: &str, port: u16) {
    let mut merlin = merlin(&local(node).await);
    merlin.create_service(service(name, port)).await.unwrap();
}

async fn sees(context: &Context, host: u8, count: usize) {
    let channel = dial(context, address(host)).await;
    let listed = merlin(&channel).list(()).await.unwrap().into_inner();
    assert_eq!(listed.items.len(), count);
}

#[test]
fn a_new_authority_takes_the_place_of_the_old_one() {
    alone_async(
        "rotation::a_new_authority_takes_the_place_of_the_old_one",
        async || {
            let hosts = Hosts::new();
            let mut one = open_host(&hosts, "n1", 1);
            let mut two = open_host(&hosts, "n2", 2);
            one.start();
            two.join(&one);
            two.start();
            one.awaits_voters(2);
            let ana = client(&hosts, &one, "ana", "admin");
            writes(&one, "web", 80).await;
            let quiet = one.succeeds(&["status"]);
            assert!(!quiet.contains("authority"), "{quiet}");
            let refused = one.refuses(&["ca", "rotate", "--finish"]);
            assert!(refused.contains("nothing to finish"), "{refused}");

            let said = two.succeeds(&["ca", "rotate"]);
            assert!(said.contains("every member has a certificate"), "{said}");
            assert!(said.contains("ca rotate --finish"), "{said}");
            let status = one.succeeds(&["status"]);
            assert!(status.contains("ca rotate --finish"), "{status}");
            writes(&two, "mail", 25).await;

            // Clients of before and of now know every node, and the nodes them, after a restart too.
            let ben = client(&hosts, &two, "ben", "admin");
            two.stop();
            two.start();
            eventually("n2 takes writes", || two.takes_writes());
            for host in [1, 2] {
                for context in [&ana, &ben] {
                    sees(context, host, 2).await;
                }
            }

            let said = one.succeeds(&["ca", "rotate", "--finish"]);
            assert!(said.contains("no other one is trusted"), "{said}");
            let status = one.succeeds(&["status"]);
            assert!(!status.contains("authority"), "{status}");
            for host in [1, 2] {
                sees(&ben, host, 2).await;
                let place = merlin_client::Place::Tls {
                    addr: address(host).to_string(),
                    name: ana.client.clone(),
                    context: std::sync::Arc::new(ana.clone()),
                };
                assert!(place.connect(crate::support::SOON).await.is_err());
            }
            writes(&two, "dns", 53).await;
            for node in [&mut one, &mut two] {
                node.stop();
                assert!(!node.data().join("identity/former.pem").exists());
            }
            one.spawn();
            two.start();
            eventually("both take writes", || {
                one.takes_writes() && two.takes_writes()
            });
            sees(&ben, 1, 3).await;

            // And everybody can see who did it.
            let mut asked = cluster(&local(&one).await);
            let trail = asked.audit(AuditRequest::default()).await.unwrap();
            let whats = trail
                .into_inner()
                .entries
                .into_iter()
                .map(|entry| entry.what);
            let whats: Vec<_> = whats.filter(|what| what.contains("authority")).collect();
            assert_eq!(whats.len(), 3, "{whats:?}");
            assert!(whats[2].starts_with("trust a new certificate authority, sha256"));
        },
    );
}
