//! Snapshots: saved through any node, looked at, and begun from.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use futures::StreamExt;
use merlin_proto::v1::WatchRequest;
use serde_json::Value;
use tonic::Code;

use crate::node::{Hosts, catalog, declare, eventually_programmed, programmed_all};
use crate::support::eventually;

#[tokio::test]
async fn a_copy_from_any_node_has_every_acknowledged_change() {
    let hosts = Hosts::new();
    let nodes = hosts.cluster(["a", "b", "c"]);
    for (n, writer) in (1..).zip(&nodes) {
        declare(writer, &format!("web{n}"), n).await;
        for saver in &nodes {
            let file = hosts.file("copy");
            saver.succeeds(&["snapshot", "save", file.to_str().unwrap()]);
            let shown = inspect(saver, &file);
            assert_eq!(shown["revision"], u64::from(n) * 2, "{shown}");
            assert_eq!(shown["services"], n, "{shown}");
            assert_eq!(shown["checksum"], "ok");
            assert_eq!(shown["members"].as_array().unwrap().len(), 3);
            let mode = std::fs::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}

fn inspect(node: &crate::node::Node, file: &Path) -> Value {
    let shown = node.succeeds(&["snapshot", "inspect", file.to_str().unwrap(), "-o", "json"]);
    serde_json::from_str(&shown).unwrap()
}

#[tokio::test]
async fn without_a_quorum_only_a_local_copy_is_to_be_had() {
    let hosts = Hosts::new();
    let [a, mut b] = hosts.cluster(["a", "b"]);
    declare(&a, "web", 1).await;
    b.kill();
    let file = hosts.file("copy");
    let save = [
        "snapshot",
        "save",
        file.to_str().unwrap(),
        "--timeout",
        "2s",
    ];
    let words = a.refuses(&save);
    assert!(!file.exists(), "{words}");
    assert_eq!(std::fs::read_dir(hosts.root.path()).unwrap().count(), 2);
    a.succeeds(&[&save[..], &["--local"]].concat());
    assert_eq!(inspect(&a, &file)["services"], 1);
}

#[tokio::test]
async fn a_restored_cluster_is_the_old_one_in_a_new_life() {
    let hosts = Hosts::new();
    let mut old = hosts.host("old");
    old.start();
    declare(&old, "web", 1).await;
    declare(&old, "mail", 2).await;
    let table = programmed_all(&old, 2).await;
    let file = hosts.file("copy");
    let file = file.to_str().unwrap();
    old.succeeds(&["snapshot", "save", file]);
    let mut watch = watch(&old, Some(4), "").await.unwrap();
    let life = watch.next().await.unwrap().unwrap().incarnation;
    declare(&old, "later", 3).await;

    let mut new = hosts.host("new");
    let said = new.succeeds(&["snapshot", "restore", file]);
    assert!(said.contains("incarnation 2, revision 1000004"), "{said}");
    new.start();
    new.awaits_voters(1);
    let (revision, services) = catalog(&new).await;
    assert_eq!(
        (revision, services),
        (1_000_004, vec!["mail".into(), "web".into()])
    );
    eventually_programmed(&new, &table).await;
    assert_ne!(new.status()["nodeId"], old.status()["nodeId"]);
    assert_eq!(new.status()["clusterId"], old.status()["clusterId"]);

    // Whoever watched the old life is told to read everything again, whatever it remembers.
    for (from, life) in [(Some(4), &*life), (Some(4), ""), (None, &*life)] {
        let refused = self::watch(&new, from, life).await.err().unwrap();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    }

    // The new life grows like any other, and survives a restart.
    let mut second = hosts.host("second");
    second.join(&new);
    second.start();
    new.awaits_voters(2);
    declare(&second, "more", 4).await;
    new.stop();
    new.start();
    assert_eq!(catalog(&new).await.1, ["mail", "more", "web"]);
}

/// Whoever has such a file can admit nobody, and nobody of before is trusted afterwards.
#[tokio::test]
async fn a_copy_without_keys_begins_a_cluster_with_keys_of_its_own() {
    let hosts = Hosts::new();
    let mut old = hosts.host("old");
    old.start();
    declare(&old, "web", 1).await;
    let client = hosts.file("ana.toml");
    let client = client.to_str().unwrap();
    old.succeeds(&[
        "client", "create", "ana", "--role", "admin", "--out", client,
    ]);
    old.succeeds(&["ca", "rotate"]);
    let (with, without) = (hosts.file("with"), hosts.file("without"));
    let (with, without) = (with.to_str().unwrap(), without.to_str().unwrap());
    old.succeeds(&["snapshot", "save", with]);
    old.succeeds(&["snapshot", "save", without, "--no-ca-in-snapshot"]);
    let shown = old.succeeds(&["snapshot", "inspect", with]);
    assert!(!shown.contains("Authority"), "{shown}");
    let shown = old.succeeds(&["snapshot", "inspect", without]);
    assert!(shown.contains("left out"), "{shown}");
    // Both keys are EC keys of the same kind, and so begin with the same bytes.
    let keys = |file: &str| {
        let bytes = std::fs::read(file).unwrap();
        let beginning =
            b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x04\x6d";
        let found = bytes.windows(beginning.len());
        found.filter(|window| window == beginning).count()
    };
    assert_eq!((keys(with), keys(without)), (1, 0));

    let mut new = hosts.host("new");
    new.succeeds(&["snapshot", "restore", without]);
    new.start();
    new.awaits_voters(1);
    assert_eq!(catalog(&new).await.1, ["web"]);
    let listed = new.succeeds(&["client", "list"]);
    assert!(!listed.contains("ana"), "{listed}");
    let mut second = hosts.host("second");
    second.join(&new);
    second.start();
    new.awaits_voters(2);
    new.succeeds(&["ca", "rotate"]);
    new.succeeds(&["ca", "rotate", "--finish"]);
}

async fn watch(
    node: &crate::node::Node,
    from_revision: Option<u64>,
    incarnation: &str,
) -> Result<tonic::Streaming<merlin_proto::v1::WatchResponse>, tonic::Status> {
    let request = WatchRequest {
        from_revision,
        incarnation: incarnation.to_owned(),
    };
    let mut stream = node
        .node_client()
        .await
        .watch(request.clone())
        .await?
        .into_inner();
    // A refusal may come with the first answer.
    stream.next().await.unwrap()?;
    Ok(node.node_client().await.watch(request).await?.into_inner())
}

#[tokio::test]
async fn a_member_of_the_old_life_is_not_heard_in_the_new_one() {
    let hosts = Hosts::new();
    let [mut a, mut b] = hosts.cluster(["a", "b"]);
    declare(&a, "web", 1).await;
    let file = hosts.file("copy");
    let file = file.to_str().unwrap();
    a.succeeds(&["snapshot", "save", file]);
    // The same host, and so the address that b knows.
    a.lose();
    a.succeeds(&["snapshot", "restore", file]);
    a.start();
    a.awaits_voters(1);
    eventually("b is refused", || !b.takes_writes());
    declare(&a, "new", 2).await;
    assert_eq!(a.status()["members"].as_array().unwrap().len(), 1);
    // Its catalog is of no use any more, and it is asked for before it is given up.
    b.stop();
    let line = a.succeeds(&["token", "create"]);
    let token = line.split_whitespace().last().unwrap();
    let said = b.succeeds(&["join", token]);
    assert!(said.contains("--discard-local-state"), "{said}");
    b.succeeds(&["join", token, "--discard-local-state"]);
    b.start();
    a.awaits_voters(2);
    assert_eq!(catalog(&b).await.1, ["new", "web"]);
}

#[test]
fn a_bad_file_is_refused_in_words_and_nothing_is_touched() {
    let hosts = Hosts::new();
    let mut node = hosts.host("a");
    node.start();
    let good = hosts.file("good");
    node.succeeds(&["snapshot", "save", good.to_str().unwrap()]);
    let bytes = std::fs::read(&good).unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        bytes
    };
    let bad = [
        ("short", with(&|b| b.truncate(b.len() / 2)), "incomplete"),
        ("flipped", with(&|b| b[200] ^= 1), "checksum"),
        ("future", with(&|b| b[11] = 9), "newer merlin"),
        ("format0", with(&|b| b[11] = 0), "format 0"),
        (
            "junk",
            b"PK\x03\x04 not a snapshot at all".to_vec(),
            "not a merlin snapshot",
        ),
        ("empty", Vec::new(), "not a merlin snapshot"),
    ];
    let other = hosts.host("other");
    for (name, bytes, word) in bad {
        let file = hosts.file(name);
        std::fs::write(&file, &bytes).unwrap();
        let path = file.to_str().unwrap();
        for command in ["inspect", "restore"] {
            let words = other.refuses(&["snapshot", command, path]);
            assert!(words.contains(word) && words.contains(path), "{words}");
        }
        assert!(!other.data().exists(), "{name}");
        assert_eq!(std::fs::read(&file).unwrap(), bytes);
    }
    let missing = hosts.file("missing");
    let words = other.refuses(&["snapshot", "inspect", missing.to_str().unwrap()]);
    assert!(words.contains("missing"), "{words}");

    // Something precious under the name of a copy is not replaced by one.
    let precious = hosts.file("junk");
    let words = node.refuses(&["snapshot", "save", precious.to_str().unwrap()]);
    assert!(words.contains("not a snapshot"), "{words}");
    node.succeeds(&["snapshot", "save", good.to_str().unwrap()]);
}

#[test]
fn a_snapshot_is_restored_into_an_empty_directory_only() {
    let hosts = Hosts::new();
    let mut node = hosts.host("a");
    node.start();
    let file = hosts.file("copy");
    let file = file.to_str().unwrap();
    node.succeeds(&["snapshot", "save", file]);
    let words = node.refuses(&["snapshot", "restore", file]);
    assert!(words.contains("not empty"), "{words}");
    node.stop();
    let before = std::fs::read(node.data().join("node.json")).unwrap();
    let words = node.refuses(&["snapshot", "restore", file]);
    assert!(words.contains("not empty"), "{words}");
    assert_eq!(
        std::fs::read(node.data().join("node.json")).unwrap(),
        before
    );
    node.start();

    // What an interrupted restore left is nobody's until it is run again.
    let mut half = hosts.host("half");
    half.succeeds(&["snapshot", "restore", file]);
    std::fs::write(half.data().join("restoring"), "").unwrap();
    std::fs::remove_file(half.data().join("node.json")).unwrap();
    let words = half.fails_to_start();
    assert!(words.contains("snapshot restore"), "{words}");
    half.succeeds(&["snapshot", "restore", file]);
    half.start();
}
