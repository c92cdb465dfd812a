//! Measures merlin beside its rivals: `bench [--quick] [NAME]`.
//!
//! What needs an IPVS kernel is measured in a guest pinned to one CPU, in which this program runs
//! itself; stores and probes are measured on the host.

#![expect(clippy::print_stdout, reason = "its result is what it prints")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use e2e::bench::{Scale, apply, catchup, change, failover, followed, writes};
use e2e::guest::{self, Guest};
use e2e::programs;
use merlin_model::Scheduler;
use nix::sys::utsname::uname;

/// What the part in the guest may take.
const LIMIT: Duration = Duration::from_secs(900);

/// Measure, each figure beside its rival in the same run.
#[derive(Debug, Parser)]
struct Options {
    /// A small table and a single round: to see that everything runs
    #[arg(long)]
    quick: bool,

    /// Only this; all unless told
    name: Option<Name>,

    /// Of the writes, only those to so many nodes
    #[arg(long)]
    nodes: Option<usize>,

    /// Of the writes, only those by so many clients
    #[arg(long)]
    clients: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Filling an empty table, beside ipvsadm and keepalived
    Apply,
    /// Finding that a full table needs nothing, beside ipvsadm
    NoOp,
    /// One change, until the kernels of three nodes have it
    Change,
    /// A catalog in etcd: changes by anybody, requests, and a start
    Etcd,
    /// Health probes per second and core
    Probes,
    /// Committed writes per second, beside etcd
    Writes,
    /// From a leader's death to the next accepted write, beside etcd
    Failover,
    /// What a large catalog costs a node that joins, and one that starts
    Join,
    /// Resident memory, idle and with a large catalog
    Memory,
}

const IN_GUEST: [Name; 4] = [Name::Apply, Name::NoOp, Name::Change, Name::Etcd];

impl Options {
    fn wants(&self, name: Name) -> bool {
        self.name.is_none_or(|only| only == name)
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    if guest::inside() {
        return measure_in_guest(&options);
    }
    print_machine("host")?;
    let runtime = tokio::runtime::Runtime::new()?;
    let measured = runtime.block_on(measure_on_host(&options));
    if options.wants(Name::Probes) {
        probes(options.quick)?;
    }
    if IN_GUEST.iter().any(|name| options.wants(*name)) {
        let exit = Guest::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .memory("3G")
            .timeout(LIMIT)
            .cpu(0)
            .run()?;
        ensure!(
            exit.code == 0,
            "measuring in the guest failed: {}",
            exit.code
        );
    }
    measured
}

/// Prints tables. What fails is told, and the rest goes on.
#[derive(Debug, Default)]
struct Tables {
    failed: usize,
}

impl Tables {
    fn show(&mut self, lines: Result<Vec<String>>) {
        match lines {
            Ok(lines) => {
                let failed = |line: &&String| line.contains("FAILED");
                self.failed += lines.iter().filter(failed).count();
                lines.iter().for_each(|line| println!("{line}"));
            }
            Err(error) => {
                self.failed += 1;
                println!("FAILED: {error:#}");
            }
        }
    }

    fn end(self) -> Result<()> {
        ensure!(self.failed == 0, "{} measurements failed", self.failed);
        Ok(())
    }
}

async fn measure_on_host(options: &Options) -> Result<()> {
    let mut tables = Tables::default();
    if options.wants(Name::Writes) {
        let mut scale = match options.quick {
            true => writes::Scale::quick(),
            false => writes::Scale::full(),
        };
        scale
            .clients
            .retain(|n| options.clients.is_none_or(|only| only == *n));
        for nodes in [1, 3] {
            if options.nodes.is_none_or(|only| only == nodes) {
                tables.show(writes::compare(nodes, &scale).await);
            }
        }
    }
    if options.wants(Name::Failover) {
        let runs = if options.quick { 2 } else { 30 };
        tables.show(failover::compare(runs).await);
    }
    let scale = match options.quick {
        true => catchup::Scale::QUICK,
        false => catchup::Scale::FULL,
    };
    if options.wants(Name::Join) {
        tables.show(catchup::join(scale).await);
    }
    if options.wants(Name::Memory) {
        tables.show(catchup::memory(scale).await);
    }
    tables.end()
}

fn measure_in_guest(options: &Options) -> Result<()> {
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
    let mut tables = Tables::default();
    if options.wants(Name::Apply) {
        tables.show(apply::cold(scale, Scheduler::Rr));
        tables.show(apply::cold(scale, Scheduler::Mh));
    }
    if options.wants(Name::NoOp) {
        tables.show(apply::unchanged(scale));
    }
    if options.wants(Name::Change) {
        let scales = match options.quick {
            true => &change::QUICK[..],
            false => &change::FULL[..],
        };
        for scale in scales {
            tables.show(change::three_nodes(*scale));
        }
    }
    if options.wants(Name::Etcd) {
        let scales = match options.quick {
            true => &followed::QUICK[..],
            false => &followed::FULL[..],
        };
        for scale in scales {
            tables.show(followed::three_nodes(*scale));
        }
    }
    tables.end()
}

fn probes(quick: bool) -> Result<()> {
    let (rate, seconds) = if quick { ("200", "1") } else { ("5000", "10") };
    println!("\nprobes of health checks:");
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
