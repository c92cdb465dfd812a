//! What each task runs.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::setup;

/// Shows the main job in a guest, with optimised binaries.
pub(crate) fn demo() -> Result<()> {
    setup::install(&[setup::BUILD, setup::GUEST])?;
    build_release(&["--bins", "-p", "merlin", "-p", "meradm"])?;
    build_release(&["--bins", "-p", "e2e"])?;
    run(
        "cargo",
        &["run", "--release", "--quiet", "-p", "e2e", "--bin", "demo"],
    )
}

/// The daemon that can be wrong on purpose, for the tests that must notice.
const MUTANTS: &[&str] = &[
    "build",
    "--package=merlin",
    "--package=jepsen-like",
    "--features=mutants",
    "--bin=merlin-mutants",
    "--bin=jepsen-like-mutants",
    "--quiet",
];

/// Hurts a cluster for as long as asked, and judges it.
pub(crate) fn jepsen(args: &[&str]) -> Result<()> {
    if let ["--fast", args @ ..] = args {
        setup::install(&[setup::BUILD])?;
        let run = [
            "run",
            "--profile",
            "fast-lane",
            "-p",
            "jepsen-like",
            "--",
            "fast",
        ];
        return step("the fast lane", "cargo", &[&run[..], args].concat());
    }
    setup::install(&[setup::BUILD, setup::LAB])?;
    let programs = ["build", "--bins", "-p", "merlin", "-p", "jepsen-like"];
    step("building", "cargo", &programs)?;
    let run = ["run", "--quiet", "-p", "jepsen-like", "--", "run"];
    self::run("cargo", &[&run[..], args].concat())
}

/// Every check there is, the cheap ones first. With a filter, only the tests it names.
pub(crate) fn test(filter: &[&str]) -> Result<()> {
    setup::install(&[setup::BUILD, setup::GUEST, setup::LAB, setup::TEST])?;
    if !filter.is_empty() {
        let mut args = vec!["test", "--workspace"];
        args.extend(filter);
        return step("tests", "cargo", &args);
    }
    step("format", "cargo", &["fmt", "--all", "--check"])?;
    let deny_warnings = ["--", "--deny", "warnings"];
    let clippy = ["clippy", "--workspace", "--all-targets", "--quiet"];
    step("lints", "cargo", &[&clippy[..], &deny_warnings].concat())?;
    // The end-to-end tests drive these programs, so they come before the tests.
    step(
        "programs",
        "cargo",
        &["build", "--workspace", "--bins", "--examples", "--quiet"],
    )?;
    step("programs that are wrong", "cargo", MUTANTS)?;
    step("tests", "cargo", &["test", "--workspace", "--no-fail-fast"])?;
    let rustdoc = ["doc", "--workspace", "--no-deps", "--quiet"];
    step("documentation", "cargo", &rustdoc)
}

/// Measures with optimised binaries, in a guest and on this machine.
pub(crate) fn bench(names: &[&str]) -> Result<()> {
    setup::install(&[setup::BUILD, setup::GUEST, setup::BENCH])?;
    build_release(&["--bins", "-p", "merlin", "-p", "meradm"])?;
    build_release(&["--bins", "-p", "e2e"])?;
    build_release(&["--example", "probes", "-p", "merlin-health"])?;
    let bench = [
        "run",
        "--release",
        "--quiet",
        "-p",
        "e2e",
        "--bin",
        "bench",
        "--",
    ];
    run("cargo", &[&bench, names].concat())
}

/// The programs apart from what drives them: together, features that only one of them asks for
/// would be in all.
fn build_release(what: &[&str]) -> Result<()> {
    step(
        "building",
        "cargo",
        &[&["build", "--release"], what].concat(),
    )
}

/// Runs a command and reports how long it took.
fn step(name: &str, program: &str, args: &[&str]) -> Result<()> {
    eprintln!("xtask: {name}: {program} {}", args.join(" "));
    let started = Instant::now();
    run(program, args)?;
    eprintln!("xtask: {name}: done in {:.0?}", started.elapsed());
    Ok(())
}

/// What cargo tells the program it runs about its package. Passed on, it would have build scripts
/// run again that look at it, and with them everything that depends on the cryptography built
/// again, whenever a task follows a build by hand.
const ABOUT_THIS_PACKAGE: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_PRIMARY_PACKAGE"];

fn run(program: &str, args: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name_bytes = name.as_encoded_bytes();
        let begins = |start: &&str| name_bytes.starts_with(start.as_bytes());
        if ABOUT_THIS_PACKAGE.iter().any(begins) {
            command.env_remove(&name);
        }
    }
    let status = command
        .args(args)
        .env("RUSTDOCFLAGS", "--deny warnings")
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("starting {program}"))?;
    ensure!(
        status.success(),
        "{program} {} failed: {status}",
        args.join(" ")
    );
    Ok(())
}
