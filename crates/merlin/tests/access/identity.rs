//! Nodes that are not who they should be, and certificates that change under a running daemon.

use std::time::{SystemTime, UNIX_EPOCH};

use merlin_model::Timestamp;
use merlin_raft::identity::{Ca, ClusterId, IdentityDir, NodeIdentity, PeerName};
use nix::sys::signal::Signal;

use crate::node::{Hosts, Node};
use crate::support::eventually;

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(since.as_millis().try_into().unwrap())
}

fn identity(node: &Node) -> (IdentityDir, NodeIdentity) {
    let dir = IdentityDir::open(node.data().join("identity")).unwrap();
    let identity = dir.load().unwrap().unwrap();
    (dir, identity)
}

#[test]
fn a_node_with_another_authoritys_certificate_stays_out_and_both_say_why() {
    let hosts = Hosts::new();
    let [one, mut two, three] = hosts.cluster(["n1", "n2", "n3"]);
    two.stop();
    let (dir, held) = identity(&two);
    // Of the right name: only the authority differs.
    let other = Ca::create(held.name().cluster, now()).unwrap();
    dir.save(&NodeIdentity::found(&other, held.name(), now()).unwrap())
        .unwrap();
    two.spawn();
    eventually("node 1 or 3 says what is wrong with node 2", || {
        let said = |node: &Node| node.log().contains("belongs to another cluster");
        said(&one) || said(&three)
    });
    eventually("node 2 says what is wrong with it", || {
        let log = two.log();
        log.contains("another authority") || log.contains("does not trust this node's certificate")
    });
    // The others go on.
    one.awaits_voters(3);

    // The right one brings it back.
    two.kill();
    dir.save(&held).unwrap();
    two.start();
}

#[test]
fn the_certificate_of_another_node_is_not_used() {
    let hosts = Hosts::new();
    let [one, mut two] = hosts.cluster(["n1", "n2"]);
    two.stop();
    let (theirs, mine) = (one.data().join("identity"), two.data().join("identity"));
    std::fs::copy(theirs.join("node.pem"), mine.join("node.pem")).unwrap();
    let words = two.fails_to_start();
    assert!(
        words.contains("node-1.") && words.contains("node-2."),
        "{words}"
    );
}

#[test]
fn a_certificate_that_is_put_there_is_taken_on_sighup() {
    let hosts = Hosts::new();
    let mut node = hosts.host("n1");
    node.start();
    let (dir, held) = identity(&node);
    // Somebody restores a file that is not this cluster's: the one in use stays.
    let stranger = PeerName {
        cluster: ClusterId::random(),
        ..held.name()
    };
    let other = Ca::create(stranger.cluster, now()).unwrap();
    dir.save(&NodeIdentity::found(&other, stranger, now()).unwrap())
        .unwrap();
    node.signal(Signal::SIGHUP);
    eventually("it is refused", || {
        node.log().contains("certificate kept as it was")
    });
    dir.save(&held).unwrap();
    node.signal(Signal::SIGHUP);
    eventually("it is taken", || {
        node.log().contains("certificate read again")
    });
}
