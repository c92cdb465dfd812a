//! Being a client of a cluster on other hosts: contexts, and what a node refuses a client.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use merlin_client::Context;
use merlin_client::context::Parts;
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use support::{Fault, Node, Ran, meradm};

/// A user's home with context files in it, as administrators hand them out.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, line: &str) -> Ran {
        let mut command = meradm(line);
        command
            .current_dir(self.0.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("MERLIN_CONTEXT")
            .env("HOME", self.0.path());
        Ran::of(command.output().unwrap())
    }

    fn ok(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "{line}: {}", ran.stderr);
        ran.stdout
    }

    /// Writes a file that is good for some days, which may be over.
    fn file(&self, client: &str, cluster: &str, nodes: &[&str], days: i64) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_before = OffsetDateTime::now_utc() - Duration::days(9);
        params.not_after = OffsetDateTime::now_utc() + Duration::days(days);
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        let context = Context::new(Parts {
            client: client.to_owned(),
            role: "operator".to_owned(),
            cluster_id: cluster.to_owned(),
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            ca_certificates: vec![certificate.clone()],
            certificate,
            private_key: key.serialize_der(),
        });
        let path = self.path(&format!("{client}.toml"));
        let _ = fs::remove_file(&path);
        context.write(&path, false).unwrap();
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn contexts_are_kept_for_their_owner_and_one_is_in_use() {
    let home = Home::new();
    assert_eq!(home.ok("contexts -o json"), "[]\n");
    home.file("ana", "c1", &["192.0.2.1:4282"], 9);
    let ran = home.run("login ana.toml");
    assert_eq!((ran.code, &*ran.stdout), (0, ""));
    assert!(
        ran.stderr.contains("ana (operator) of cluster c1"),
        "{}",
        ran.stderr
    );
    // The file has done its duty.
    fs::remove_file(home.path("ana.toml")).unwrap();
    let kept = home.path(".config/merlin/contexts/ana.toml");
    assert_eq!(mode(&kept), 0o600);
    assert_eq!(mode(&home.path(".config/merlin")), 0o700);

    home.file("ana", "c2", &[], 9);
    let ran = home.run("login ana.toml");
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("another cluster (c1)"),
        "{}",
        ran.stderr
    );
    home.ok("login ana.toml --name test");
    let table = home.ok("contexts");
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[1].starts_with("   ana "), "{table}");
    assert!(lines[1].ends_with("192.0.2.1:4282"), "{table}");
    assert!(lines[2].starts_with("*  test "), "{table}");
    let table = home.ok("contexts --use ana");
    assert!(table.contains("*  ana "), "{table}");

    home.ok("logout");
    assert!(!kept.exists());
    let ran = home.run("logout ana");
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("no context \"ana\" (there is test)"),
        "{}",
        ran.stderr
    );
    assert!(home.run("logout").stderr.contains("no context is in use"));
}

#[test]
fn a_file_that_is_no_context_is_refused_in_words() {
    let home = Home::new();
    fs::write(home.path("x.toml"), "port = 4282").unwrap();
    for (file, words) in [
        ("none.toml", "cannot read none.toml"),
        ("x.toml", "x.toml is not a context"),
    ] {
        let ran = home.run(&format!("login {file}"));
        assert_eq!((ran.code, &*ran.stdout), (1, ""), "{file}");
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    assert_eq!(home.ok("contexts -o json"), "[]\n");
}

#[test]
fn a_context_of_no_use_says_what_to_do() {
    let home = Home::new();
    home.file("ana", "c1", &["127.0.0.1:1"], -1);
    home.ok("login ana.toml");
    let ran = home.run("list --context ana");
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("has expired"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("merlin cluster client create"),
        "{}",
        ran.stderr
    );
    assert!(home.ok("contexts").contains("the certificate has expired"));
    home.file("ana", "c1", &[], 9);
    home.ok("login ana.toml");
    let ran = home.run("list --context ana");
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("lists no nodes: name one with -H"),
        "{}",
        ran.stderr
    );
    let ran = home.run("list --context bob");
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("(there is ana)"), "{}", ran.stderr);
}

#[test]
fn a_node_without_tls_is_told_apart_and_can_be_talked_to_all_the_same() {
    let home = Home::new();
    home.file("ana", "c1", &[], 9);
    home.ok("login ana.toml");
    let node = Node::start();
    let port = node.address.port();
    let ran = home.run(&format!("list --context ana -H 127.0.0.1 -P {port}"));
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("--plaintext"), "{}", ran.stderr);
    home.ok(&format!("list --plaintext -H 127.0.0.1 -P {port}"));
    // This host is spoken to as before there were contexts.
    home.ok(&format!("list -H 127.0.0.1 -P {port}"));
    home.ok(&format!("list --socket {}", node.socket().display()));
}

#[test]
fn what_a_role_does_not_allow_is_rejected_at_once() {
    let node = Node::start();
    node.store.fail_with(&[Fault::Denied]);
    let ran = node.run("service add web tcp 10.0.0.1:80 -s rr");
    assert_eq!(ran.code, 4);
    assert!(ran.stderr.contains("needs role admin"), "{}", ran.stderr);
    assert_eq!(node.store.faults_left(), 0);
    assert_eq!(
        node.store.catalog().revision().0,
        0,
        "it was not tried again"
    );
}
