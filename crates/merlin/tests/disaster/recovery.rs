//! The way back when the majority is lost for good, and what guards it.

use crate::node::{Hosts, catalog, declare, eventually_programmed, programmed_all};
use crate::support::eventually;

#[tokio::test]
async fn one_node_that_is_left_begins_the_clusters_next_life() {
    let hosts = Hosts::new();
    let [mut a, mut b, mut c] = hosts.cluster(["a", "b", "c"]);
    declare(&b, "web", 1).await;
    declare(&c, "mail", 2).await;
    eventually("all of it is everywhere", || a.status()["revision"] == 4);
    let table = programmed_all(&a, 2).await;
    c.lose();
    b.kill();
    eventually("the quorum is lost", || !a.takes_writes());

    let recover = ["recover", "--force-new-cluster"];
    let sure = ["recover", "--force-new-cluster", "--yes-i-know", "a"];
    let words = a.refuses(&sure);
    assert!(words.contains("another merlin uses"), "{words}");
    a.stop();
    let usage = a.cluster(&["recover"]);
    assert_eq!(usage.status.code(), Some(2));
    let words = a.refuses(&recover);
    assert!(words.contains("--yes-i-know a"), "{words}");
    let words = a.refuses(&["recover", "--force-new-cluster", "--yes-i-know", "b"]);
    assert!(words.contains("not the name"), "{words}");
    // Nobody recovers a cluster that another voter may yet bring back.
    b.spawn();
    eventually("b answers", || {
        std::net::TcpStream::connect(b.peer_addr()).is_ok()
    });
    let words = a.refuses(&sure);
    assert!(
        words.contains("(b)") && words.contains("nothing was changed"),
        "{words}"
    );
    b.kill();

    let said = a.succeeds(&sure);
    for expected in ["node 1 (a)", "Uncertain", "incarnation 2, revision 1000004"] {
        assert!(said.contains(expected), "{said}");
    }
    a.start();
    a.awaits_voters(1);
    eventually_programmed(&a, &table).await;
    let (revision, services) = catalog(&a).await;
    assert_eq!(
        (revision, services),
        (1_000_004, vec!["mail".into(), "web".into()])
    );
    declare(&a, "new", 3).await;

    // What comes back of the old life is not heard, keeps its rules, and can join anew.
    b.start_without_quorum();
    eventually_programmed(&b, &table).await;
    assert!(!b.takes_writes());
    let line = a.succeeds(&["token", "create"]);
    let token = line.split_whitespace().last().unwrap();
    b.succeeds(&["join", token, "--discard-local-state"]);
    c.join(&a);
    c.start();
    a.awaits_voters(3);
    assert_eq!(catalog(&c).await.1, ["mail", "new", "web"]);
}

#[test]
fn a_node_that_needs_no_recovery_is_left_alone() {
    let hosts = Hosts::new();
    let mut a = hosts.host("a");
    let sure = ["recover", "--force-new-cluster", "--yes-i-know", "a"];
    let words = a.refuses(&sure);
    assert!(words.contains("holds no node"), "{words}");
    a.start();
    a.stop();
    let words = a.refuses(&sure);
    assert!(words.contains("start the daemon"), "{words}");
    a.start();
    a.awaits_voters(1);
}
