//! Becoming a node of a cluster.

use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::node::{Hosts, Node};
use crate::support::{eventually, service};

/// A token of a member, and nothing around it.
fn token(member: &Node, role: &str) -> String {
    let line = member.succeeds(&["token", "create", "--role", role]);
    line.split_whitespace().last().unwrap().to_owned()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

#[test]
fn two_commands_on_each_host_make_three_nodes_of_one() {
    let hosts = Hosts::new();
    let [mut n1, mut n2, mut n3] = ["n1", "n2", "n3"].map(|name| hosts.host(name));
    // Every daemon runs already, each as a cluster of its own.
    for node in [&mut n1, &mut n2, &mut n3] {
        node.start();
    }
    assert!(n1.succeeds(&["init"]).contains("as node 1"));
    let said = n2.succeeds(&["join", &token(&n1, "voter")]);
    assert_eq!(
        said,
        "joined as learner 2, caught up, promoted to voter (2/2)\n"
    );
    // A member that does not lead lets nodes in as well.
    let said = n3.succeeds(&["join", &token(&n2, "learner")]);
    assert_eq!(said, "joined as learner 3, caught up\n");
    let said = n3.succeeds(&["join", &token(&n1, "voter")]);
    assert_eq!(said, "already a member: node 3, caught up\n");
    n2.succeeds(&["promote", "n3"]);
    n1.awaits_voters(3);

    let said = n3.succeeds(&["status"]);
    assert!(
        said.contains("Quorum    2 of 3 - tolerates 1 failure\n"),
        "{said}"
    );
    assert!(!said.contains("Warning"), "{said}");
    let status = n3.status();
    for member in status["members"].as_array().unwrap() {
        assert_eq!(member["reachable"], Value::Bool(true), "{member}");
        assert_eq!(member["version"], env!("CARGO_PKG_VERSION"), "{member}");
        assert!(member["certificateExpires"].is_string(), "{member}");
    }
    // One voter away is a warning, two are no quorum.
    n1.kill();
    eventually("another leads", || n2.takes_writes());
    let said = n2.cluster(&["status"]);
    assert_eq!(code(&said), Some(1), "{said:?}");
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("node 1 (n1) does not answer"), "{said}");
    n2.kill();
    eventually("nothing can be written", || {
        code(&n3.cluster(&["status"])) == Some(2)
    });
    n3.kill();
    assert_eq!(code(&n3.cluster(&["status"])), Some(3));
}

#[tokio::test]
async fn a_node_that_holds_something_joins_only_when_told_to_give_it_up() {
    let hosts = Hosts::new();
    let [mut n1, mut n2] = ["n1", "n2"].map(|name| hosts.host(name));
    n1.start();
    n2.start();
    n2.client()
        .await
        .create_service(service("web", 80))
        .await
        .unwrap();
    let token = token(&n1, "voter");
    let refused = n2.cluster(&["join", &token]);
    assert_eq!(code(&refused), Some(4));
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(words.contains("--discard-local-state"), "{words}");
    // Nothing has changed on either side.
    assert_eq!(n2.status()["nodeId"], 1);
    assert_eq!(n1.voters(), 1);
    let listed = n2.client().await.list(()).await.unwrap().into_inner();
    assert_eq!(listed.items.len(), 1);

    let said = n2.succeeds(&["join", "--discard-local-state", &token]);
    assert!(said.ends_with("promoted to voter (2/2)\n"), "{said}");
    let listed = n2.client().await.list(()).await.unwrap().into_inner();
    assert_eq!(listed.items.len(), 0);
    let kept = std::fs::read_dir(n2.data()).unwrap().flatten();
    let mut kept = kept.map(|entry| entry.file_name().into_string().unwrap());
    assert!(kept.any(|name| name.starts_with("discarded-")));
}

#[test]
fn a_bad_token_is_refused_in_words_and_leaves_the_daemon_alone() {
    let hosts = Hosts::new();
    let [mut n1, mut n2, mut other] = ["n1", "n2", "other"].map(|name| hosts.host(name));
    for node in [&mut n1, &mut n2, &mut other] {
        node.start();
    }
    let good = token(&n1, "voter");
    let mut mistyped = good.clone();
    let last = if mistyped.pop() == Some('A') {
        'B'
    } else {
        'A'
    };
    mistyped.push(last);
    let refused = n2.cluster(&["join", &mistyped]);
    assert_eq!(
        code(&refused),
        Some(2),
        "a mistyped token fails before anybody is asked"
    );

    let created = n1.succeeds(&["token", "create", "-o", "json"]);
    let created: Value = serde_json::from_str(&created).unwrap();
    let [id, revoked] = ["id", "token"].map(|field| created[field].as_str().unwrap());
    n1.succeeds(&["token", "revoke", id]);
    let words = n2.refuses(&["join", revoked]);
    assert!(words.contains("revoked"), "{words}");

    n2.succeeds(&["join", &token(&n1, "voter")]);
    let used = token(&n1, "voter");
    let mut late = hosts.host("late");
    late.start();
    late.succeeds(&["join", &used]);
    let words = other.refuses(&["join", &used]);
    assert!(words.contains("used already, by another node"), "{words}");
    // A token of another cluster, on a member that holds something.
    let words = n2.refuses(&["join", &token(&other, "voter")]);
    assert!(words.contains("--discard-local-state"), "{words}");
    assert_eq!(n1.voters(), 3);
    assert!(other.takes_writes());
}

#[test]
fn a_node_that_cannot_be_called_back_is_told_so_and_mends_it_by_a_restart() {
    let hosts = Hosts::new();
    let [mut n1, mut n2] = ["n1", "n2"].map(|name| hosts.host(name));
    n1.start();
    // Nobody listens there.
    let nowhere = std::net::SocketAddr::new(n2.peer_addr().ip(), 4999).to_string();
    n2.env
        .push(("MERLIN_ADVERTISE_ADDR".into(), nowhere.clone()));
    n2.start();
    let given_up = n2.cluster(&["join", "--wait", "4s", &token(&n1, "voter")]);
    assert_eq!(code(&given_up), Some(3));
    let words = String::from_utf8(given_up.stderr).unwrap();
    assert!(
        words.contains(&nowhere) && words.contains("--advertise-addr"),
        "{words}"
    );
    // The members know as much.
    let said = String::from_utf8(n1.cluster(&["status"]).stdout).unwrap();
    assert!(said.contains("was let in and is no member yet"), "{said}");
    assert!(said.contains(&nowhere), "{said}");

    n2.stop();
    n2.env.pop();
    n2.spawn();
    n1.awaits_voters(2);
    n2.awaits_voters(2);
}

#[test]
fn a_join_that_is_killed_at_any_moment_can_be_run_again() {
    let hosts = Hosts::new();
    let mut n1 = hosts.host("n1");
    n1.start();
    let mut expected = 1;
    for running in [false, true] {
        let mut pause = Duration::ZERO;
        // Later and later, until it is through once.
        loop {
            let mut node = hosts.host(&format!("{running}-{}", pause.as_micros()));
            if running {
                node.start();
            }
            let token = token(&n1, "learner");
            expected += 1;
            let mut joining = node.command();
            let mut joining = joining
                .args(["cluster", "join", "--wait", "0s", &token])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(pause);
            let through = joining.try_wait().unwrap().is_some();
            joining.kill().unwrap();
            joining.wait().unwrap();
            if running {
                // And the daemon with it, wherever it was.
                node.kill();
                node.start_without_quorum();
            }
            let said = node.succeeds(&["join", &token]);
            assert!(
                said.contains(&format!(" {expected}")),
                "{said}, not {expected}"
            );
            if !running {
                node.start_without_quorum();
                let said = node.succeeds(&["join", "--wait", "60s", &token]);
                assert!(said.contains("caught up"), "{said}");
            }
            node.succeeds(&["leave"]);
            node.kill();
            if through {
                break;
            }
            pause = (pause * 2).max(Duration::from_millis(10));
        }
    }
    let status = n1.status();
    assert_eq!(status["members"].as_array().unwrap().len(), 1, "{status}");
}

#[test]
fn a_node_with_a_token_that_does_not_work_begins_no_cluster_of_its_own() {
    let hosts = Hosts::new();
    let [mut n1, mut n2] = ["n1", "n2"].map(|name| hosts.host(name));
    n1.start();
    let mut file = hosts.file("token").display().to_string();
    n2.env.push(("MERLIN_JOIN_TOKEN_FILE".into(), file.clone()));
    let words = n2.fails_to_start();
    assert!(
        words.contains("--join-token-file") && words.contains(&file),
        "{words}"
    );
    std::fs::write(&file, "mjt1.nonsense").unwrap();
    let words = n2.fails_to_start();
    assert!(words.contains("--join-token-file"), "{words}");
    // A good one, and nobody there.
    std::fs::write(&file, token(&n1, "voter")).unwrap();
    n1.stop();
    let words = n2.fails_to_start();
    assert!(
        words.contains("no member of the cluster could let this node in"),
        "{words}"
    );
    assert!(!n2.data().join("node.json").exists());

    n1.start();
    n2.start();
    n1.awaits_voters(2);
    // It is a member now, and needs none any more.
    file = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(hosts.file("token")).unwrap();
    n2.stop();
    n2.start();
    n2.stop();
    n2.env.pop();
    n2.env.push(("MERLIN_JOIN_TOKEN".into(), file));
    n2.start();
    assert_eq!(n1.voters(), 2);
}

#[test]
fn the_environment_can_carry_the_token() {
    let hosts = Hosts::new();
    let [mut n1, mut n2] = ["n1", "n2"].map(|name| hosts.host(name));
    n1.start();
    n2.env
        .push(("MERLIN_JOIN_TOKEN".into(), token(&n1, "learner")));
    n2.start();
    let status = n2.status();
    assert_eq!(status["clusterId"], n1.status()["clusterId"]);
    assert_eq!(n1.voters(), 1);
}
