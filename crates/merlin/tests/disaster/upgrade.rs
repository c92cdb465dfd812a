//! A cluster whose nodes run different versions, and the way from one to the next.

use merlin_proto::v1::RevokeClientRequest;

use crate::node::{Hosts, Node, catalog, declare};
use crate::support::eventually;

/// As a version would that knows the first level of commands only.
const OLD: (&str, &str) = ("MERLIN_COMMAND_LEVEL", "1");
const LATEST: u64 = merlin_raft::Level::LATEST.number() as u64;

fn level(node: &Node) -> u64 {
    node.status()["level"].as_u64().unwrap_or_default()
}

/// What is said to a command that the old version does not know.
async fn newer(node: &Node) -> String {
    let id = "0123456789abcdef".to_owned();
    let request = RevokeClientRequest { client: id };
    let refused = node.cluster_client().await.revoke_client(request).await;
    refused.unwrap_err().message().to_owned()
}

#[tokio::test]
async fn a_cluster_is_upgraded_node_by_node_while_it_takes_writes() {
    let hosts = Hosts::new();
    let mut nodes = hosts.cluster_with(["a", "b", "c"], &[OLD]);
    let mut ids = Vec::new();
    for upgraded in 0..3 {
        let words = newer(&nodes[upgraded]).await;
        let waiting = nodes[upgraded..].iter().zip(upgraded + 1..);
        let waiting = waiting.map(|(node, id)| format!("node {id} ({})", node.name));
        let expected = format!("upgrade {} first", waiting.collect::<Vec<_>>().join(", "));
        assert!(words.contains(&expected), "{words}");
        assert!(nodes.iter().all(|node| level(node) == 1));

        let id = format!("web{upgraded}");
        declare(&nodes[upgraded], &id, u16::try_from(upgraded).unwrap() + 1).await;
        ids.push(id);
        let node = &mut nodes[upgraded];
        node.stop();
        node.env.clear();
        node.start();
        eventually("the node is back", || node.takes_writes());
    }
    for node in &nodes {
        eventually("all agree on what they know", || level(node) == LATEST);
        assert_eq!(catalog(node).await.1, ids);
        let words = newer(node).await;
        assert!(words.contains("client"), "{words}");
    }

    // There is no way back for a node of its own, and the words say what is needed.
    let old = (OLD.0.to_owned(), OLD.1.to_owned());
    nodes[2].stop();
    nodes[2].env.push(old);
    let words = nodes[2].fails_to_start();
    assert!(words.contains(&format!("level {LATEST}")), "{words}");
    nodes[2].env.clear();
    nodes[2].start();
}

#[test]
fn a_version_that_knows_too_little_is_told_so_before_its_token_is_spent() {
    let hosts = Hosts::new();
    let mut new = hosts.host("new");
    new.start();
    assert_eq!(level(&new), LATEST);
    let mut old = hosts.host("old");
    old.env.push((OLD.0.to_owned(), OLD.1.to_owned()));
    let line = new.succeeds(&["token", "create"]);
    let token = line.split_whitespace().last().unwrap();
    let words = old.refuses(&["join", token]);
    let needed = format!("level {LATEST}");
    for expected in [&needed, "level 1", "install merlin"] {
        assert!(words.contains(expected), "{words}");
    }
    old.env.clear();
    old.succeeds(&["join", token]);
    old.start();
    new.awaits_voters(2);
}

#[tokio::test]
async fn a_newer_version_joins_an_older_cluster_and_does_as_it_does() {
    let hosts = Hosts::new();
    let [old] = hosts.cluster_with(["old"], &[OLD]);
    let mut new = hosts.host("new");
    new.join(&old);
    new.start();
    old.awaits_voters(2);
    let words = newer(&new).await;
    assert!(words.contains("upgrade node 1 (old) first"), "{words}");
    assert_eq!(level(&new), 1);
    assert_eq!(new.status()["behind"][0], "node 1 (old)");
}
