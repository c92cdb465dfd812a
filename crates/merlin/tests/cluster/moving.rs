//! Members that come back at another address.

use std::process::Command;

use merlin_proto::v1::AuditRequest;
use serde_json::Value;

use crate::node::{Hosts, Node, new_address};
use crate::support::{eventually, service};

/// Where a node finds a member.
fn known(at: &Node, member: u64) -> String {
    let status = at.status();
    let members = status["members"].as_array().cloned().unwrap_or_default();
    let found = members.into_iter().find(|known| known["id"] == member);
    let addr = found.map(|found| found["addr"].clone());
    addr.and_then(|addr| addr.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn finds(at: &Node, member: u64, node: &Node) {
    let addr = node.peer_addr().to_string();
    eventually(&format!("{} finds {} there", at.name, node.name), || {
        known(at, member) == addr
    });
}

/// Starts a node that is down at another address.
fn starts_elsewhere(node: &mut Node) {
    node.ip = new_address();
    node.start();
}

fn copy_data(from: &Node, to: &Node) {
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(from.data()).arg(to.data());
    assert!(copy.status().unwrap().success());
}

async fn creates(node: &Node, id: &str, port: u16) {
    let mut client = node.client().await;
    client.create_service(service(id, port)).await.unwrap();
}

#[tokio::test]
async fn a_member_is_found_again_at_its_new_address() {
    let hosts = Hosts::new();
    let mut nodes = hosts.cluster(["n1", "n2", "n3"]);
    // Who leads is another one while it is away; that and all others learn where it is.
    for (id, port) in [(2, 80), (1, 81), (3, 82)] {
        let index = usize::try_from(id - 1).unwrap();
        nodes[index].stop();
        starts_elsewhere(&mut nodes[index]);
        let moved = &nodes[index];
        moved.awaits_voters(3);
        for node in &nodes {
            finds(node, id, moved);
        }
        creates(moved, &moved.name, port).await;
    }
    let [n1, n2, _] = &nodes;
    eventually("all is well", || n1.cluster(&["status"]).status.success());
    let mut client = n1.cluster_client().await;
    let trail = client.audit(AuditRequest::default()).await.unwrap();
    let line = format!("node 2 is called n2 and reached at {}", n2.peer_addr());
    let trail = format!("{:?}", trail.into_inner());
    assert!(trail.contains(&line), "{trail}");
}

#[tokio::test]
async fn a_member_without_which_nothing_is_decided_is_found_too() {
    let hosts = Hosts::new();
    let [mut n1, mut n2] = hosts.cluster(["n1", "n2"]);
    n2.stop();
    starts_elsewhere(&mut n2);
    n2.awaits_voters(2);
    finds(&n1, 2, &n2);
    creates(&n1, "web", 80).await;
    // Two of three at once.
    let mut n3 = hosts.host("n3");
    n3.join(&n1);
    n3.start();
    n1.awaits_voters(3);
    for node in [&mut n1, &mut n3] {
        node.stop();
        node.ip = new_address();
    }
    n1.spawn();
    n3.start();
    for at in [&n1, &n2, &n3] {
        finds(at, 1, &n1);
        finds(at, 3, &n3);
    }
    creates(&n2, "api", 81).await;
}

#[test]
fn a_cluster_of_one_is_joined_at_its_new_address() {
    let hosts = Hosts::new();
    let [mut n1, mut n2] = ["n1", "n2"].map(|name| hosts.host(name));
    n1.start();
    n1.stop();
    starts_elsewhere(&mut n1);
    finds(&n1, 1, &n1);
    n2.join(&n1);
    n2.start();
    n1.awaits_voters(2);
    finds(&n2, 1, &n1);
}

#[tokio::test]
async fn an_address_that_does_not_lead_to_a_member_is_not_taken() {
    let hosts = Hosts::new();
    let [mut n1, mut n2, n3] = hosts.cluster(["n1", "n2", "n3"]);
    n3.succeeds(&["transfer-leader", "n3"]);
    let nobody = hosts.host("nobody");
    // Of one that follows, to where nobody is; then of the one that leads, to where another is.
    let wrong = [nobody.peer_addr(), n3.peer_addr()];
    for (node, wrong) in [&mut n1, &mut n2].into_iter().zip(wrong) {
        node.stop();
        node.env = vec![("MERLIN_ADVERTISE_ADDR".into(), wrong.to_string())];
        node.start();
        let to_lead = wrong == n3.peer_addr();
        if to_lead {
            n3.succeeds(&["transfer-leader", &node.name]);
        }
        eventually("it is said", || {
            let said = n3.cluster(&["status"]).stdout;
            let said = String::from_utf8_lossy(&said).into_owned();
            said.contains(&format!("({}) was started with another address", node.name))
                && said.contains("--advertise-addr")
        });
        let log = node.log();
        assert!(log.contains("do not take this node's new address"), "{log}");
    }
    for (id, node) in [(1, &n1), (2, &n2), (3, &n3)] {
        finds(&n3, id, node);
    }
    creates(&n1, "web", 80).await;
    assert_eq!(n3.status()["unavailable"], Value::String(String::new()));
}

#[tokio::test]
async fn a_copy_of_a_member_does_not_take_its_place() {
    let hosts = Hosts::new();
    let [n1, n2, mut n3] = hosts.cluster(["n1", "n2", "n3"]);
    let mut copy = hosts.host("copy");
    n3.stop();
    copy_data(&n3, &copy);
    n3.start();
    copy.env = vec![("MERLIN_NODE_NAME".into(), "n3".into())];
    copy.spawn();
    eventually("the copy is told", || {
        copy.log().contains("data directory is a copy")
    });
    // Whoever leads by now.
    for node in [&n1, &n2, &n3] {
        finds(node, 3, &n3);
    }
    creates(&n3, "web", 80).await;
    eventually("the copy is heard by nobody", || {
        copy.get("/ready").starts_with("HTTP/1.1 503")
    });
    let status = n1.succeeds(&["members"]);
    assert!(!status.contains(&copy.peer_addr().to_string()), "{status}");
}
