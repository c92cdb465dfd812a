//! Filling an empty table, and finding that a full one needs nothing.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use merlin_ipvs::{Dataplane, Kernel};
use merlin_model::{Catalog, HealthView, Scheduler};
use merlin_reconcile::desired::desired;
use merlin_reconcile::plan::{Foreign, plan};

use super::workload::Workload;
use super::{Contender, Scale, compete, fresh_namespace};

const RULES: &str = "/run/bench.rules";
const CONFIG: &str = "/run/bench-keepalived.conf";
const LIMIT: Duration = Duration::from_secs(20);

/// Filling an empty table.
pub fn cold(scale: Scale, scheduler: Scheduler) -> Result<Vec<String>> {
    let workload = workload(scale, scheduler);
    let catalog = workload.catalog()?;
    fs::write(RULES, workload.restore()?)?;
    fs::write(CONFIG, workload.keepalived()?)?;
    let complete = |time| ensure_complete(&workload).map(|()| time);
    let mut contenders = [
        Contender::new("merlin", || reconcile(&catalog).and_then(complete)),
        Contender::new("ipvsadm --restore", || restore().and_then(complete)),
        Contender::new("keepalived", || keepalived(&workload)),
    ];
    let title = format!("apply {} x {} {scheduler}", scale.services, scale.servers);
    Ok(compete(
        &title,
        scale.rounds,
        &mut contenders,
        fresh_namespace,
    ))
}

/// Looking at a full table that is as it should be.
pub fn unchanged(scale: Scale) -> Result<Vec<String>> {
    let workload = workload(scale, Scheduler::Rr);
    let catalog = workload.catalog()?;
    let mut contenders = [
        Contender::new("merlin fingerprint", || {
            let mut kernel = Kernel::open()?;
            let started = Instant::now();
            kernel.fingerprint()?;
            Ok(started.elapsed())
        }),
        Contender::new("merlin whole comparison", || {
            let mut kernel = Kernel::open()?;
            let started = Instant::now();
            let actual = kernel.dump()?;
            let wanted = desired(&catalog, &HealthView::default());
            let plan = plan(&wanted, &actual, Foreign::Delete);
            let took = started.elapsed();
            ensure!(plan.operations.is_empty(), "it found something to do");
            Ok(took)
        }),
        Contender::new("ipvsadm -Ln", || {
            let started = Instant::now();
            let status = Command::new("ipvsadm")
                .arg("-Ln")
                .stdout(Stdio::null())
                .status()?;
            ensure!(status.success(), "{status}");
            Ok(started.elapsed())
        }),
    ];
    let prepare = || {
        fresh_namespace()?;
        reconcile(&catalog)?;
        ensure_complete(&workload)
    };
    let title = format!("no-op {} x {} rr", scale.services, scale.servers);
    Ok(compete(&title, scale.rounds, &mut contenders, prepare))
}

fn workload(scale: Scale, scheduler: Scheduler) -> Workload {
    Workload {
        services: scale.services,
        servers: scale.servers,
        scheduler,
    }
}

/// From a catalog in hand to the last acknowledgement, looking at the table first as a pass does.
fn reconcile(catalog: &Catalog) -> Result<Duration> {
    let started = Instant::now();
    let mut kernel = Kernel::open()?;
    let actual = kernel.dump()?;
    let wanted = desired(catalog, &HealthView::default());
    let plan = plan(&wanted, &actual, Foreign::Delete);
    let answers = kernel.apply(&plan.operations)?;
    let took = started.elapsed();
    for answer in answers {
        answer?;
    }
    Ok(took)
}

fn restore() -> Result<Duration> {
    let rules = File::open(RULES)?;
    let started = Instant::now();
    let status = Command::new("ipvsadm")
        .arg("--restore")
        .stdin(rules)
        .status()?;
    let took = started.elapsed();
    ensure!(status.success(), "{status}");
    Ok(took)
}

/// From the start of the program until the last service has all its servers.
fn keepalived(workload: &Workload) -> Result<Duration> {
    let log = File::create("/run/bench-keepalived.log")?;
    let mut command = Command::new("keepalived");
    command
        .args([
            "--dont-fork",
            "--log-console",
            "--check",
            "--use-file",
            CONFIG,
        ])
        .args(["--pid", "/run/bench-keepalived.pid"])
        .args(["--checkers_pid", "/run/bench-checkers.pid"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let last = {
        let id = merlin_model::ServiceId::new(&format!("s{}", workload.services - 1))?;
        let catalog = workload.catalog()?;
        let service = catalog.service(&id).context("the workload is empty")?;
        merlin_model::table::Key::from(&service.key)
    };
    let mut kernel = Kernel::open()?;
    let started = Instant::now();
    let mut program = command.spawn().context("starting keepalived")?;
    let loaded = loop {
        let table = kernel.read(&[last])?;
        let full = |entry: &merlin_model::table::Entry| {
            entry.destinations.len() == usize::from(workload.servers)
        };
        if table.services.get(&last).is_some_and(full) {
            break Ok(started.elapsed());
        }
        if started.elapsed() > LIMIT {
            let log = fs::read_to_string("/run/bench-keepalived.log").unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(3).collect();
            break Err(anyhow::anyhow!("not loaded within {LIMIT:?}: {tail:?}"));
        }
        thread::sleep(Duration::from_millis(5));
    };
    let loaded = loaded.and_then(|time| ensure_complete(workload).map(|()| time));
    let ended = end(&mut program);
    loaded.and_then(|time| ended.map(|()| time))
}

/// Asks a program to end, so that it ends its children, and sees that it does.
fn end(program: &mut Child) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(program.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    let asked = Instant::now();
    while program.try_wait()?.is_none() {
        if asked.elapsed() > LIMIT {
            program.kill()?;
            program.wait()?;
            bail!("it did not end within {LIMIT:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn ensure_complete(workload: &Workload) -> Result<()> {
    let table = fs::read_to_string("/proc/thread-self/net/ip_vs")?;
    let lines = table.lines().skip(3);
    let (servers, services): (Vec<_>, Vec<_>) =
        lines.partition(|line| line.trim_start().starts_with("->"));
    ensure!(
        (services.len(), servers.len()) == (usize::from(workload.services), workload.rules()),
        "the table holds {} services and {} servers",
        services.len(),
        servers.len()
    );
    Ok(())
}
