//! The procedures of the README, typed as they are written there.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use merlin_model::Timestamp;
use merlin_proto::log;
use merlin_raft::identity::{Ca, IdentityDir, NodeIdentity};
use prost::Message;

use crate::node::{Hosts, Node, catalog, declare, eventually_programmed, programmed_all, spoken};
use crate::support::{SOON, eventually, workspace};

/// The lines of the code blocks under a heading: which host, and what is typed there.
fn procedure(heading: &str) -> Vec<(String, String)> {
    let readme = std::fs::read_to_string(workspace().join("README.md")).unwrap();
    let (_, section) = readme.split_once(&format!("\n{heading}\n")).unwrap();
    let section = section.split("\n#").next().unwrap();
    let blocks = section.split("```").skip(1).step_by(2);
    let lines = blocks.flat_map(str::lines);
    let typed: Vec<_> = lines
        .filter_map(|line| line.split_once("# "))
        .map(|(host, typed)| (host.to_owned(), typed.to_owned()))
        .collect();
    assert!(!typed.is_empty(), "{heading} has no commands");
    typed
}

/// Somebody who types what is written, on the host where it is to be typed.
struct Operator {
    // Their logs are in the hosts' files.
    nodes: Vec<Node>,
    hosts: Hosts,
    /// What was printed last that another host needs.
    token: String,
}

impl Operator {
    fn of(hosts: Hosts, nodes: impl IntoIterator<Item = Node>) -> Self {
        Self {
            hosts,
            nodes: nodes.into_iter().collect(),
            token: String::new(),
        }
    }

    fn node(&mut self, name: &str) -> &mut Node {
        let mut nodes = self.nodes.iter_mut();
        nodes.find(|node| node.name == name).unwrap()
    }

    fn follows(&mut self, heading: &str) {
        for (host, typed) in procedure(heading) {
            self.types(&host, &typed);
        }
    }

    fn types(&mut self, host: &str, typed: &str) {
        let (copy, token) = (self.hosts.file("merlin.snapshot"), self.token.clone());
        let node = self.node(host);
        match typed {
            "systemctl stop merlin" => node.stop(),
            "systemctl start merlin" => node.start_as_a_service(),
            _ => {
                let typed = typed
                    .replace("mjt1....", &token)
                    .replace("/backup/merlin.snapshot", copy.to_str().unwrap());
                let said = run(node, &typed);
                if let Some(line) = said.strip_prefix("merlin cluster join ") {
                    self.token = line.trim().to_owned();
                }
            }
        }
    }
}

/// At a terminal, where the name of the node is typed when it is asked for.
fn run(node: &Node, typed: &str) -> String {
    // A busy machine may lose its leader: then what is typed is typed again.
    let patient = |code| code == Some(3) || typed == "merlin cluster status";
    let deadline = Instant::now() + SOON;
    let output = loop {
        let output = once(node, typed);
        let again = !output.status.success() && patient(output.status.code());
        if !again || Instant::now() > deadline {
            break output;
        }
    };
    let (said, error) = spoken(&output);
    assert!(output.status.success(), "{typed}: {said}{error}");
    // What is typed is echoed first, and a terminal ends its lines in its own way.
    let said = said.replace("\r\n", "\n");
    let echo = format!("{}\n", node.name);
    said.strip_prefix(&echo).unwrap_or(&said).to_owned()
}

fn once(node: &Node, typed: &str) -> Output {
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_merlin"));
    let mut command = Command::new("/usr/bin/script");
    node.environment(&mut command);
    let mut child = command
        .env("PATH", binary.parent().unwrap())
        .env("SHELL", "/bin/sh")
        .args(["--quiet", "--return", "--command", typed, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("script: apt-get install bsdutils");
    let mut keyboard = child.stdin.take().unwrap();
    writeln!(keyboard, "{}", node.name).unwrap();
    child.wait_with_output().unwrap()
}

const COPY: &str = "## When things go wrong";

#[tokio::test]
async fn a_lost_disk_is_replaced_by_a_new_node() {
    let hosts = Hosts::new();
    let nodes = hosts.cluster(["lb1", "lb2", "lb3"]);
    declare(&nodes[0], "web", 1).await;
    let mut operator = Operator::of(hosts, nodes);
    operator.node("lb2").lose();
    operator.follows("### One node's disk is lost");
    operator.node("lb1").awaits_voters(3);
    let lb2 = operator.node("lb2");
    assert_eq!(catalog(lb2).await.1, ["web"]);
    assert_eq!(lb2.status()["nodeId"], 4);
}

#[tokio::test]
async fn a_copied_key_is_of_no_use_any_more() {
    let hosts = Hosts::new();
    let nodes = hosts.cluster(["lb1", "lb2", "lb3"]);
    declare(&nodes[0], "web", 1).await;
    let mut operator = Operator::of(hosts, nodes);
    let copied = std::fs::read(operator.node("lb3").data().join("identity/node.pem")).unwrap();
    operator.follows("### Somebody may have copied a node's data directory");
    for name in ["lb1", "lb2"] {
        let node = operator.node(name);
        node.awaits_voters(2);
        assert_eq!(catalog(node).await.1, ["web"]);
        let present = std::fs::read(node.data().join("identity/node.pem")).unwrap();
        // The last part is the authority's certificate.
        let authority = |text: &[u8]| pem::parse_many(text).unwrap().pop().unwrap();
        assert_ne!(authority(&present), authority(&copied));
    }
}

#[tokio::test]
async fn a_lost_majority_is_left_behind() {
    let hosts = Hosts::new();
    let nodes = hosts.cluster(["lb1", "lb2", "lb3"]);
    declare(&nodes[1], "web", 1).await;
    eventually("it is on lb1", || nodes[0].status()["revision"] == 2);
    let table = programmed_all(&nodes[0], 1).await;
    let mut operator = Operator::of(hosts, nodes);
    for lost in ["lb2", "lb3"] {
        operator.node(lost).lose();
    }
    operator.follows("### The majority is lost");
    operator.node("lb1").awaits_voters(2);
    eventually_programmed(operator.node("lb1"), &table).await;
    eventually_programmed(operator.node("lb2"), &table).await;
}

#[tokio::test]
async fn a_lost_cluster_is_begun_anew_from_its_copy() {
    let hosts = Hosts::new();
    let nodes = hosts.cluster(["lb1", "lb2", "lb3"]);
    declare(&nodes[2], "web", 1).await;
    let table = programmed_all(&nodes[2], 1).await;
    let mut operator = Operator::of(hosts, nodes);
    operator.follows(COPY);
    for lost in ["lb1", "lb2", "lb3"] {
        operator.node(lost).lose();
    }
    operator.follows("### All nodes are lost, and there is a snapshot");
    operator.node("lb1").awaits_voters(2);
    eventually_programmed(operator.node("lb1"), &table).await;
    eventually_programmed(operator.node("lb2"), &table).await;
}

#[tokio::test]
async fn nodes_whose_certificates_expired_while_they_slept_find_each_other() {
    let hosts = Hosts::new();
    let nodes = hosts.cluster(["lb1", "lb2", "lb3"]);
    declare(&nodes[0], "web", 1).await;
    let mut operator = Operator::of(hosts, nodes);
    operator.follows(COPY);
    let copy = operator.hosts.file("merlin.snapshot");
    let authority = authority(&std::fs::read(copy).unwrap());
    for node in &mut operator.nodes {
        node.stop();
        expire(node, &authority);
    }
    operator.follows("### Everything was off until the certificates had expired");
    operator.node("lb1").awaits_voters(3);
    for node in &operator.nodes {
        assert!(identity(node).load().unwrap().unwrap().expires() > now());
        eventually(&format!("{} takes writes", node.name), || {
            node.takes_writes()
        });
        assert_eq!(catalog(node).await.1, ["web"]);
    }
}

/// The cluster's authority, which every snapshot holds.
fn authority(snapshot: &[u8]) -> Ca {
    const HEADER: usize = 69;
    const CHECKSUM: usize = 32;
    let body = &snapshot[HEADER..snapshot.len() - CHECKSUM];
    let cluster = log::Snapshot::decode(body).unwrap().cluster.unwrap();
    let founding = cluster.founding.unwrap();
    Ca::load(&founding.ca_certificate, &founding.ca_key).unwrap()
}

/// Makes the certificate of a stopped node one that ended ten days ago.
fn expire(node: &Node, authority: &Ca) {
    let dir = identity(node);
    let name = dir.load().unwrap().unwrap().name();
    let long_ago = Timestamp(now().0 - 100 * 24 * 3600 * 1000);
    let old = NodeIdentity::found(authority, name, long_ago).unwrap();
    assert!(old.expires() < now());
    dir.save(&old).unwrap();
}

fn identity(node: &Node) -> IdentityDir {
    IdentityDir::open(node.data().join("identity")).unwrap()
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(since.as_millis().try_into().unwrap())
}
