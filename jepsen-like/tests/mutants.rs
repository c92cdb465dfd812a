//! Daemons that are wrong on purpose, each in its own way: a run must notice.
//!
//! They are in one program, which only these tests build and use.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests too"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// What each run is told, beside what is particular to the mutant.
const BRIEF: [&str; 8] = [
    "--nodes",
    "3",
    "--minutes",
    "0.12",
    "--hold",
    "0.5",
    "--patience",
    "8",
];

/// Beside the daemon, where cargo puts programs.
fn mutants() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_jepsen-like")).with_file_name("merlin-mutants");
    assert!(
        program.exists(),
        "build it first: cargo build -p merlin --features mutants --bin merlin-mutants"
    );
    program
}

/// Whether a fault meets the moment in which a mutant is wrong is chance, so that there are more
/// runs than one.
const SEEDS: [&str; 3] = ["7", "8", "9"];

/// Runs the mutant, which must be found to break one of these laws.
fn assert_caught(mutant: &str, nemesis: &str, laws: &[&str]) {
    let caught = |seed: &&str| is_caught(mutant, nemesis, laws, seed);
    assert!(
        SEEDS.iter().any(caught),
        "{mutant} broke none of {laws:?} that anybody saw"
    );
}

fn is_caught(mutant: &str, nemesis: &str, laws: &[&str], seed: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_jepsen-like"))
        .arg("run")
        .args(["--seed", seed])
        .args(BRIEF)
        .args(["--nemesis", nemesis])
        .args(["--env", &format!("MERLIN_MUTANT={mutant}")])
        .arg("--merlin")
        .arg(mutants())
        .arg("--folder")
        .arg(folder.path())
        .args(["--pause", "8"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    let broke = |law: &str| said.contains(&format!("BROKEN: {law}"));
    output.status.code() == Some(1) && laws.iter().any(|law| broke(law))
}

/// What a lost write shows as depends on what comes after it: its revision is another write's then.
const LOST: [&str; 6] = [
    "linearizable reads are fresh",
    "a revision belongs to one write",
    "revisions follow real time",
    "a watch tells everything once, in order",
    "everything converges",
    "daemons stay up",
];

#[test]
fn acknowledging_before_the_flush_is_caught() {
    assert_caught("ack-before-flush", "kill-all", &LOST);
}

#[test]
fn flushing_without_a_sync_is_caught() {
    assert_caught("flush-without-sync", "power-cut-all", &LOST);
}

#[test]
fn serving_stale_reads_as_linearizable_is_caught() {
    assert_caught("stale-read", "none", &["linearizable reads are fresh"]);
}

#[test]
fn carrying_repeated_requests_out_again_is_caught() {
    assert_caught("no-dedup", "none", &["a write happens at most once"]);
}

#[test]
fn losing_events_of_a_watch_is_caught() {
    let law = "a watch tells everything once, in order";
    assert_caught("lost-event", "none", &[law]);
}

#[test]
fn applying_in_the_order_of_a_hash_map_is_caught() {
    let laws = [
        "a read shows one revision, whole",
        "a watch tells everything once, in order",
        "answers follow from the writes before them",
        "only what was written is there",
    ];
    assert_caught("hash-order", "none", &laws);
}

#[test]
fn deleting_what_should_be_drained_is_caught() {
    assert_caught(
        "delete-sick",
        "none",
        &["no rule of a live service vanishes"],
    );
}
