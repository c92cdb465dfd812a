//! Watching: every change once and in order, whatever happens to the node.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use support::Node;

/// A running `meradm watch`; killed when dropped.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(node: &Node, line: &str) -> Self {
        let mut child = node.command(line).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(20)).unwrap()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn changes_are_printed_one_per_line_as_they_happen() {
    let node = Node::start();
    node.ok("service add web tcp 10.0.0.1:80 -s sh -b sh-port -p 300");
    let watch = Watch::start(&node, "watch --from 0");
    assert_eq!(
        watch.line(),
        "1 put service web TCP 10.0.0.1:80 sh (flag-2) persistent 300 netmask 32"
    );
    node.ok(
        "server add web 10.1.0.1:80 -w 2 -f masq --health-endpoint http://:80/ --health-period 5s \
         --health-timeout 1s --health-up 2 --health-down 1",
    );
    assert_eq!(
        watch.line(),
        "2 put server web 10.1.0.1:80 MASQ 2 http://:80/ 5s 1s 2/1"
    );
    node.ok("service del web");
    assert_eq!(watch.line(), "3 del server web 10.1.0.1:80");
    assert_eq!(watch.line(), "3 del service web TCP 10.0.0.1:80");
}

#[test]
fn programs_watch_in_json() {
    let node = Node::start();
    let watch = Watch::start(&node, "watch --from 0 -o json");
    node.ok("service add web tcp 10.0.0.1:80 -s rr");
    assert_eq!(
        watch.line(),
        concat!(
            r#"{"revision":1,"servicePut":{"id":"web","#,
            r#""key":{"ip":"10.0.0.1","port":80,"protocol":"TCP"},"#,
            r#""config":{"scheduler":"rr"},"createdRevision":1,"changedRevision":1}}"#
        )
    );
}

#[test]
fn a_watch_goes_on_where_it_was_when_the_node_comes_back() {
    let node = Node::start();
    let watch = Watch::start(&node, "watch --from 0");
    node.ok("service add a tcp 10.0.0.1:80 -s rr");
    assert!(watch.line().starts_with("1 put service a"));

    let (store, address) = (node.store.clone(), node.address);
    drop(node);
    let node = Node::serving(store, address);
    node.ok("service add b tcp 10.0.0.2:80 -s rr");
    node.ok("service add c tcp 10.0.0.3:80 -s rr");
    assert!(watch.line().starts_with("2 put service b"));
    assert!(watch.line().starts_with("3 put service c"));
}
