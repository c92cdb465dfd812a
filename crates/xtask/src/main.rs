//! Development tasks: `cargo xtask demo | test | bench | jepsen`.
//!
//! Each sets up what it needs first, so that a fresh Debian machine with a Rust toolchain is
//! enough. This crate depends on next to nothing, so that it builds before anything is set up.

#![expect(
    clippy::print_stderr,
    reason = "a task reports its progress to the terminal"
)]

mod setup;
mod tasks;

use std::process::ExitCode;

use anyhow::Result;

const USAGE: &str = "\
Usage: cargo xtask TASK

Tasks:
  demo            show the main job on a real IPVS kernel: three nodes, traffic, failures
  test [FILTER]   run every check: format, lints, unit tests, end-to-end tests, documentation
  bench [NAME]    measure, each figure beside its rival in the same run
  jepsen [OPTION] hurt a cluster in every way for a while, and judge it: --help tells how
  setup           install what the other tasks need and do nothing else
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["demo"] => tasks::demo(),
        ["test", rest @ ..] => tasks::test(rest),
        ["bench", rest @ ..] => tasks::bench(rest),
        ["jepsen", rest @ ..] => tasks::jepsen(rest),
        ["setup"] => setup::install(setup::ALL),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    report(done)
}

fn report(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
