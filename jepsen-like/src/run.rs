//! A whole run: cluster, clients, faults, judgement.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;

use crate::checker::{self, Law, Violation};
use crate::client::{Client, describe};
use crate::lab::machine::{End, Machine};
use crate::lab::{Lab, Shape, Store, enclosure};
use crate::nemesis::{self, Kind};
use crate::ops::{History, Led, Sample};
use crate::recorder::Recorder;
use crate::report::Report;
use crate::workload::{self, Load, Shared, monitor};

/// What a run is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub nodes: u8,
    pub store: Store,
    pub time: Duration,
    /// How long a fault lasts, on average.
    pub hold: Duration,
    pub kinds: Vec<Kind>,
    /// Whether two faults may be there at a time.
    pub overlap: bool,
    pub load: Load,
    /// How long after a fault all has to be well again.
    pub patience: Duration,
    /// Where logs, history and picture go.
    pub folder: PathBuf,
    pub merlin: PathBuf,
    pub environment: Vec<(String, String)>,
}

const SUPERVISION: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the plan, inside an enclosure. An error is this program's failure, never merlin's.
pub fn run(plan: &Plan, progress: impl Fn(&str) + Send + Sync) -> Result<Report> {
    enclosure::settle().context("settling in the enclosure")?;
    std::fs::create_dir_all(&plan.folder)?;
    let folder = plan.folder.canonicalize()?;
    let lab = Arc::new(Lab::build(&Shape {
        nodes: plan.nodes,
        store: plan.store,
        merlin: plan.merlin.clone(),
        environment: plan.environment.clone(),
        folder,
        movable_clocks: plan.kinds.contains(&Kind::ClockJump) && Machine::has_movable_clock(),
        earlier: plan.kinds.contains(&Kind::RollingUpgrade),
    })?);
    lab.form_cluster().context("forming the cluster")?;
    progress(&format!("a cluster of {} nodes", plan.nodes));

    let mut dice = StdRng::seed_from_u64(plan.seed);
    let recorder = Arc::new(Recorder::new(lab.clock.clone()));
    let shared = Shared::new(Arc::clone(&lab), Arc::clone(&recorder), plan.seed);
    let shared = Arc::new(shared);
    let runtime = Runtime::new()?;
    let over = AtomicBool::new(false);
    let ran = thread::scope(|scope| {
        scope.spawn(|| supervise(&lab, &recorder, &over));
        let ran = ordeal(plan, &shared, &runtime, &mut dice, &progress);
        let settled = ran.map(|()| runtime.block_on(settle(&shared, plan.patience)));
        over.store(true, Ordering::Relaxed);
        settled
    });
    collect(&shared, &runtime, &recorder)?;
    for machine in &lab.machines {
        // Whatever stopped the run may have left it standing still.
        machine.resume()?;
        if ran.is_ok()
            && let Err(error) = machine.stop()
        {
            let what = format!("{} on SIGTERM: {error:#}", machine.name());
            recorder.violation(Law::DaemonsStayUp, what);
        }
        machine.kill()?;
    }
    let (history, faults, mut violations) = recorder.take();
    violations.extend(unexcused(&lab, &history));
    progress("judging");
    let (mut judgement, revisions) = match plan.store {
        Store::Raft => (checker::check(&history), Vec::new()),
        Store::Etcd3 | Store::Etcd2 => {
            let (dense, revisions) = checker::dense(history.clone());
            (checker::check(&dense), revisions)
        }
    };
    judgement.violations.splice(0..0, violations);
    let report = Report {
        seed: plan.seed,
        history,
        faults,
        judgement,
        revisions,
        failure: ran.err().map(|error| format!("{error:#}")),
    };
    report.check_harness(plan).map(|()| report)
}

/// Load and faults until the time is over.
fn ordeal(
    plan: &Plan,
    shared: &Arc<Shared>,
    runtime: &Runtime,
    dice: &mut StdRng,
    progress: &(impl Fn(&str) + Sync),
) -> Result<()> {
    let until = Instant::now() + plan.time;
    let seed = dice.random();
    let mut clients = {
        let _inside = runtime.enter();
        workload::start(shared, plan.load, dice)
    };
    let hurt = nemesis::run(
        Arc::clone(shared),
        runtime.handle().clone(),
        (&plan.kinds, plan.overlap),
        seed,
        until,
        (plan.hold, plan.patience),
        |line| progress(&format!("{:7.1} s  {line}", seconds(shared))),
    );
    while hurt.is_ok() && Instant::now() < until {
        thread::sleep(SUPERVISION);
    }
    shared.stop.cancel();
    runtime.block_on(async {
        while let Some(ended) = clients.join_next().await {
            ended.context("a client panicked")??;
        }
        anyhow::Ok(())
    })?;
    hurt
}

fn seconds(shared: &Shared) -> f64 {
    Duration::from_micros(shared.recorder.clock.now()).as_secs_f64()
}

/// Starts daemons again that end by themselves.
fn supervise(lab: &Lab, recorder: &Recorder, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        for machine in &lab.machines {
            if let Err(error) = machine.supervise() {
                let what = format!("{} cannot be started: {error:#}", machine.name());
                recorder.violation(Law::DaemonsStayUp, what);
            }
        }
        thread::sleep(SUPERVISION);
    }
}

/// Waits until every node holds and has programmed the same, and takes a last look at all of them.
async fn settle(shared: &Shared, patience: Duration) {
    let deadline = Instant::now() + patience;
    loop {
        let mut samples = Vec::new();
        for machine in &shared.lab.machines {
            let client = Client::new(machine);
            samples.extend(monitor::sample(shared, &client, machine.number).await);
        }
        let first = samples.first().map(|sample| sample.catalog);
        // By now every server is well.
        let drained = |s: &Sample| {
            let mut services = s.table.services.values();
            services.any(|service| service.servers.values().any(|weight| *weight == 0))
        };
        let same = samples
            .iter()
            .all(|s| Some(s.catalog) == first && s.programmed == s.catalog && !drained(s));
        if same && samples.len() == shared.lab.machines.len() {
            samples
                .into_iter()
                .for_each(|sample| shared.recorder.sample(sample));
            shared.last_reads(PATIENCE).await;
            return;
        }
        if Instant::now() > deadline {
            let states: Vec<_> = samples
                .iter()
                .map(|s| {
                    let drained = if drained(s) {
                        ", some of it drained"
                    } else {
                        ""
                    };
                    let (node, catalog, programmed) = (s.node, s.catalog, s.programmed);
                    format!("n{node} holds {catalog} and programmed {programmed}{drained}")
                })
                .collect();
            let what = format!("{patience:?} after the last fault: {}", states.join(", "));
            shared.recorder.violation(Law::Convergence, what);
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Daemons that ended by themselves although nothing was wrong with their machine.
fn unexcused(lab: &Lab, history: &History) -> Vec<Violation> {
    let machines = lab.machines.iter();
    let ends_of = |machine: &Arc<Machine>| {
        let machine = Arc::clone(machine);
        let ends = machine.ends().into_iter();
        ends.map(move |end| (Arc::clone(&machine), end))
    };
    let ends = machines.flat_map(ends_of);
    let unexcused = ends.filter(|(machine, end)| {
        let mut hurts = history.hurts.iter();
        !hurts.any(|hurt| hurt.node == machine.number && (hurt.from..=hurt.to).contains(&end.at))
    });
    let violation = |(machine, end): (Arc<Machine>, End)| {
        let (name, at, status) = (machine.name(), end.at, end.status);
        let what = format!(
            "{name} ended by itself at {at} us: {status}\n{}",
            machine.log_tail()
        );
        Violation::new(Law::DaemonsStayUp, what)
    };
    unexcused.take(3).map(violation).collect()
}

/// What the logs tell: who led when, and whether anything panicked.
fn collect(shared: &Shared, runtime: &Runtime, recorder: &Recorder) -> Result<()> {
    for machine in &shared.lab.machines {
        let log = machine.log();
        let panics = log.lines().filter(|line| line.contains("panicked at"));
        for line in panics.take(3) {
            recorder.violation(Law::DaemonsStayUp, format!("{}: {line}", machine.name()));
        }
        let described = runtime.block_on(describe(machine, PATIENCE));
        let own_id = described.ok().map(|described| described.node_id);
        for line in log.lines() {
            if let Some((term, leader)) = leadership(line, own_id) {
                let node = machine.number;
                recorder.logged(Led {
                    at: 0,
                    node,
                    term,
                    leader,
                });
            }
        }
    }
    Ok(())
}

/// Term and leader, from a line of the log that tells them.
fn leadership(line: &str, own_id: Option<u64>) -> Option<(u64, u64)> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let term = line["term"].as_u64()?;
    match line["message"].as_str()? {
        "this node leads the cluster" => Some((term, own_id?)),
        "following the leader" => Some((term, line["leader"].as_u64()?)),
        _ => None,
    }
}

impl Plan {
    pub fn check(&self) -> Result<()> {
        ensure!((1..=9).contains(&self.nodes), "--nodes: 1 to 9");
        for kind in &self.kinds {
            ensure!(
                kind.suits(self.store),
                "--nemesis: {} does not go with this --store",
                kind.name()
            );
        }
        Ok(())
    }
}
