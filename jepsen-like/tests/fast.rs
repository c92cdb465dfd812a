//! The fast lane finds merlin clean and every mutant that it can see broken.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::path::Path;
use std::process::{Command, Output};

fn run(program: &Path, mutant: &str, args: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(program)
        .args(["fast", "--seed", "1"])
        .args(args)
        .arg("--folder")
        .arg(folder.path())
        .env("MERLIN_MUTANT", mutant)
        .output()
        .unwrap()
}

#[test]
fn many_clusters_keep_their_promises() {
    for (nodes, seeds) in [("3", "40"), ("5", "10")] {
        let args = ["--nodes", nodes, "--seeds", seeds];
        let output = run(Path::new(env!("CARGO_BIN_EXE_jepsen-like")), "", &args);
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{told}{output:?}");
        assert!(told.contains("clean: merlin kept every promise"), "{told}");
        for fault in ["partition-leader", "power-cut-all", "demotion", "slow-disk"] {
            assert!(told.contains(fault), "no {fault} in {told}");
        }
    }
}

/// Each is found by the law it breaks, and not because the harness fails.
#[test]
fn what_is_wrong_with_the_store_is_found() {
    let program = Path::new(env!("CARGO_BIN_EXE_jepsen-like"));
    let program = program.with_file_name("jepsen-like-mutants");
    assert!(
        program.exists(),
        "build it first: cargo build -p jepsen-like --features mutants --bin jepsen-like-mutants"
    );
    // What a lost write shows as depends on what comes after it.
    let lost: &[&str] = &[
        "answers follow",
        "leaders succeed",
        "linearizable reads",
        "a revision belongs",
        "a watch tells everything once",
        "everything converges",
    ];
    let mutants: [(&str, &[&str]); 6] = [
        ("ack-before-flush", lost),
        ("commit-before-flush", lost),
        ("stale-read", &["linearizable reads are fresh"]),
        ("no-dedup", &["a write happens at most once"]),
        ("lost-event", &["a watch tells everything once"]),
        ("hash-order", &["everything converges", "answers follow"]),
    ];
    for (mutant, laws) in mutants {
        let output = run(&program, mutant, &["--seeds", "2000", "--until-broken"]);
        let told = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{mutant}: {told}{output:?}");
        let named = |law: &&str| told.contains(&format!(": {law}"));
        assert!(
            laws.iter().any(named),
            "{mutant} broke none of {laws:?}: {told}"
        );
    }
}
