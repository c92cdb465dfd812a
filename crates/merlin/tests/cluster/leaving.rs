//! Being a node of a cluster no more, or with another part in it.

use serde_json::Value;

use crate::node::{Hosts, Node, programmed_all};
use crate::support::{eventually, server, service};

fn standing(node: &Node) -> String {
    node.status()["unavailable"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

async fn fill(node: &Node) {
    let mut client = node.client().await;
    client.create_service(service("web", 80)).await.unwrap();
    let server = server("web", "192.0.2.1", 80);
    client.create_server(server).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_serves_on_and_comes_back_as_a_new_one() {
    let hosts = Hosts::new();
    let [n1, mut n2, mut n3] = hosts.cluster(["n1", "n2", "n3"]);
    fill(&n1).await;
    let before = programmed_all(&n3, 1).await;
    let said = n2.succeeds(&["remove", "n3"]);
    assert!(
        said.starts_with("removed node 3 (n3)\nvoters  1, 2, before: 1, 2, 3\n"),
        "{said}"
    );
    eventually("it is told", || standing(&n3).contains("was removed"));
    assert_eq!(n3.cluster(&["status"]).status.code(), Some(2));
    assert!(n3.get("/ready").starts_with("HTTP/1.1 503"));
    assert!(n3.get("/ready").contains("was removed"));
    assert!(n3.get("/alive").starts_with("HTTP/1.1 200"));
    // The others go on without it, and it goes on as it was.
    let mut client = n1.client().await;
    client.create_service(service("late", 81)).await.unwrap();
    assert_eq!(programmed_all(&n3, 1).await, before);
    n3.stop();
    n3.start_without_quorum();
    assert!(standing(&n3).contains("was removed"));
    assert_eq!(programmed_all(&n3, 1).await, before);
    let words = n1.refuses(&["remove", "3"]);
    assert!(words.contains("removed already"), "{words}");

    // Its catalog is a copy of the cluster's, so that nothing is given up.
    let line = n1.succeeds(&["token", "create"]);
    let token = line.split_whitespace().last().unwrap();
    let said = n3.succeeds(&["join", token]);
    assert_eq!(
        said,
        "joined as learner 4, caught up, promoted to voter (3/3)\n"
    );
    let mut client = n3.client().await;
    assert_eq!(client.list(()).await.unwrap().into_inner().items.len(), 2);

    // A majority cannot be removed; whoever leads can.
    n2.kill();
    eventually("the others go on", || {
        n1.takes_writes() && n3.takes_writes()
    });
    for node in ["1", "4"] {
        let words = n1.refuses(&["remove", node]);
        assert!(words.contains("too few to decide"), "{words}");
    }
    n1.succeeds(&["remove", "n2"]);
    let leader = n1.status()["leader"].to_string();
    n3.succeeds(&["remove", &leader]);
    let last = if leader == "1" { &n3 } else { &n1 };
    eventually("the last one decides alone", || {
        last.voters() == 1 && last.takes_writes()
    });
    let words = last.refuses(&["leave"]);
    assert!(words.contains("only voter"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_keeps_its_rules_unless_told_to_clear_them() {
    let hosts = Hosts::new();
    let [n1, n2, n3] = hosts.cluster(["n1", "n2", "n3"]);
    fill(&n1).await;
    let held = programmed_all(&n2, 1).await;
    programmed_all(&n3, 1).await;
    let said = n2.succeeds(&["leave", "-o", "json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    let archive = std::path::Path::new(said["archive"].as_str().unwrap());
    assert!(archive.join("node.json").exists());
    assert_eq!(programmed_all(&n2, 1).await, held);
    assert!(standing(&n2).contains("has left"));
    let words = n2.refuses(&["leave"]);
    assert!(words.contains("left the cluster before"), "{words}");

    let said = n3.succeeds(&["leave", "--flush"]);
    assert!(said.contains("out of the kernel"), "{said}");
    assert_eq!(programmed_all(&n3, 0).await, []);
    n1.awaits_voters(1);
    let mut client = n1.client().await;
    assert_eq!(client.list(()).await.unwrap().into_inner().items.len(), 1);
}

#[test]
fn the_parts_of_nodes_change_on_demand() {
    let hosts = Hosts::new();
    let [n1, n2, n3] = hosts.cluster(["n1", "n2", "n3"]);
    for to in [&n2, &n3, &n1] {
        let said = n2.succeeds(&["transfer-leader", &to.name]);
        assert!(said.contains(&format!("({}) leads", to.name)), "{said}");
        eventually("all see it", || {
            let leader = to.status()["nodeId"].clone();
            [&n1, &n2, &n3]
                .iter()
                .all(|node| node.status()["leader"] == leader)
        });
    }
    let said = n3.succeeds(&["demote", "n2"]);
    assert_eq!(said, "demoted node 2 (n2)\nvoters  1, 3, before: 1, 2, 3\n");
    let said = n3.succeeds(&["demote", "2"]);
    assert_eq!(said, "node 2 (n2) is a learner already\n");
    let words = n3.refuses(&["transfer-leader", "n2"]);
    assert!(words.contains("promote it first"), "{words}");
    let said = n2.succeeds(&["promote", "n2", "-o", "json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["votersAfter"].as_array().unwrap().len(), 3, "{said}");
    let words = n1.refuses(&["remove", "nobody"]);
    assert!(words.contains("merlin cluster members"), "{words}");
    let renewed = n2.succeeds(&["cert", "renew"]);
    assert!(renewed.contains("good until"), "{renewed}");
    assert!(n2.takes_writes());
}
