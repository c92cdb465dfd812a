//! A short run with every nemesis.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests too"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Prints what the run says, which is what there is to know of a failure.
fn run(args: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_jepsen-like"))
        .arg("run")
        .arg("--folder")
        .arg(folder.path())
        // Other tests run beside this one: daemons that wait for the processor must not take each
        // other for dead.
        .args(["--env", "MERLIN_ELECTION_TIMEOUT=800ms"])
        .args(args)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}");
    let code = output.status.code();
    if code != Some(0) {
        // The logs are worth more than the space they take.
        println!("kept: {}", folder.keep().display());
    }
    (code, said)
}

#[test]
fn a_catalog_in_etcd_is_kept_under_every_nemesis() {
    let args = ["--store", "etcd3", "--nodes", "3", "--seed", "6"];
    let length = ["--minutes", "0.1", "--hold", "0.5"];
    let (code, said) = run(&[&args[..], &length].concat());
    assert_eq!(code, Some(0));
    assert!(said.contains("etcd-compact"), "all were there");
    assert!(said.contains("clean: merlin kept every promise"));
}

/// Less is promised there, and the rest is kept as well.
#[test]
fn so_is_one_that_is_kept_by_the_api_of_etcd_2() {
    let nemeses = "partition-leader,kill-all,etcd-kill-leader,etcd-unreachable,power-cut-all";
    let args = ["--store", "etcd2", "--nodes", "3", "--seed", "6"];
    let length = ["--minutes", "0.1", "--hold", "0.5", "--nemesis", nemeses];
    let (code, said) = run(&[&args[..], &length].concat());
    assert_eq!(code, Some(0));
    assert!(said.contains("clean: merlin kept every promise"));
}

/// The first write that such a disk refuses may be an entry, a snapshot, or the last one of a log
/// that is closed. None of them may end in a panic, and no node may lose what it needs to start.
#[test]
fn disks_that_fail_end_daemons_in_their_own_words() {
    let args = [
        "--nodes",
        "3",
        "--seed",
        "14",
        "--nemesis",
        "disk-sync-fails",
    ];
    let often = ["--env", "MERLIN_SNAPSHOT_EVERY=20"];
    let length = ["--minutes", "0.3", "--hold", "0.5"];
    let (code, said) = run(&[&args[..], &often, &length].concat());
    assert_eq!(code, Some(0));
    assert!(said.contains("clean: merlin kept every promise"));
}

#[test]
fn members_of_seven_come_and_go_while_writes_are_taken() {
    let nemeses = "replacement,demotion,leader-transfer,kill,kill-leader,rolling-upgrade";
    let args = ["--nodes", "7", "--seed", "8", "--nemesis", nemeses];
    let length = ["--minutes", "0.3", "--hold", "0.5"];
    let (code, said) = run(&[&args[..], &length].concat());
    assert_eq!(code, Some(0));
    assert!(said.contains("clean: merlin kept every promise"));
}

/// A version that is as new as the rest before anybody upgraded it.
#[test]
fn what_is_new_before_the_last_upgrade_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let eager = folder.path().join("merlin");
    let merlin = Path::new(env!("CARGO_BIN_EXE_jepsen-like")).with_file_name("merlin");
    let script = format!(
        "#!/bin/sh\nunset MERLIN_COMMAND_LEVEL\nexec '{}' \"$@\"\n",
        merlin.display()
    );
    std::fs::write(&eager, script).unwrap();
    std::fs::set_permissions(&eager, std::fs::Permissions::from_mode(0o755)).unwrap();
    let args = [
        "--nodes",
        "3",
        "--seed",
        "8",
        "--nemesis",
        "rolling-upgrade",
    ];
    let length = ["--minutes", "0.05", "--merlin", eager.to_str().unwrap()];
    let (code, said) = run(&[&args[..], &length].concat());
    assert_eq!(code, Some(1));
    assert!(said.contains("BROKEN: what is new waits for the last upgrade"));
}

#[test]
fn what_does_not_go_with_a_store_is_refused() {
    for args in [
        ["--store", "etcd3", "--nemesis", "snapshot-torn"],
        ["--store", "raft", "--nemesis", "etcd-kill"],
    ] {
        let (code, said) = run(&args);
        assert_eq!(code, Some(3));
        assert!(said.contains("does not go with this --store"), "{said}");
    }
}

#[test]
fn merlin_keeps_every_promise_under_every_nemesis() {
    let args = ["--seed", "20", "--minutes", "0.5", "--hold", "1"];
    let (code, said) = run(&args);
    assert_eq!(code, Some(0));
    assert!(said.contains("clean: merlin kept every promise"));
}
