//! Measures merlin beside its rivals: `bench [--quick] [apply|no-op|change|probes]`.
//!
//! On the host it boots a guest pinned to one CPU and runs itself there; probes are measured on
//! the host itself.

#![expect(clippy::print_stdout, reason = "its result is what it prints")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use e2e::bench::{Scale, apply, change};
use e2e::guest::{self, Guest};
use e2e::programs;
use merlin_model::Scheduler;
use nix::sys::utsname::uname;

/// What the part in the guest may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Measure, each figure beside its rival in the same run.
#[derive(Debug, Parser)]
struct Options {
    /// A small table and a single round: to see that everything runs
    #[arg(long)]
    quick: bool,

    /// Only this; all unless told
    name: Option<Name>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    Apply,
    NoOp,
    Change,
    Probes,
}

impl Options {
    fn wants(&self, name: Name) -> bool {
        self.name.is_none_or(|only| only == name)
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    if guest::inside() {
        return measure(&options);
    }
    print_machine("host")?;
    if options.name != Some(Name::Probes) {
        let exit = Guest::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .memory("2G")
            .timeout(LIMIT)
            .cpu(0)
            .run()?;
        ensure!(
            exit.code == 0,
            "measuring in the guest failed: {}",
            exit.code
        );
    }
    if options.wants(Name::Probes) {
        probes(options.quick)?;
    }
    Ok(())
}

/// The part in the guest. What fails is told, and the rest goes on.
fn measure(options: &Options) -> Result<()> {
    print_machine("guest, one CPU")?;
    let loaded = Command::new("modprobe")
        .args(["-a", "ip_vs", "ip_vs_rr", "ip_vs_mh"])
        .status()?;
    ensure!(loaded.success(), "cannot load IPVS");
    let scale = if options.quick {
        Scale::QUICK
    } else {
        Scale::FULL
    };
    let mut failed = 0;
    let mut show = |lines: Result<Vec<String>>| match lines {
        Ok(lines) => {
            failed += lines.iter().filter(|line| line.contains("FAILED")).count();
            lines.iter().for_each(|line| println!("{line}"));
        }
        Err(error) => {
            failed += 1;
            println!("FAILED: {error:#}");
        }
    };
    if options.wants(Name::Apply) {
        show(apply::cold(scale, Scheduler::Rr));
        show(apply::cold(scale, Scheduler::Mh));
    }
    if options.wants(Name::NoOp) {
        show(apply::unchanged(scale));
    }
    if options.wants(Name::Change) {
        show(change::single(scale));
    }
    ensure!(failed == 0, "{failed} measurements failed");
    Ok(())
}

fn probes(quick: bool) -> Result<()> {
    let (rate, seconds) = if quick { ("200", "1") } else { ("5000", "10") };
    println!("\nprobes of health checks, on the host:");
    let status = Command::new(programs::example("merlin-health", "probes")?)
        .args([rate, seconds])
        .status()?;
    ensure!(status.success(), "measuring probes failed: {status}");
    Ok(())
}

fn print_machine(which: &str) -> Result<()> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("reading about the CPU")?;
    let model = cpus.lines().find(|line| line.starts_with("model name"));
    let model = model
        .and_then(|line| line.split_once(": "))
        .map_or("CPU", |(_, name)| name);
    let kernel = uname()?;
    println!(
        "{which}: {model}, Linux {}",
        kernel.release().to_string_lossy()
    );
    Ok(())
}
