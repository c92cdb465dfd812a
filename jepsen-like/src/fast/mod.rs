//! The fast lane: the store of every node in this process, a simulated network and simulated disks
//! ([`merlin_raft::simulation`]), and a clock that only moves when nothing else does. The clients and
//! the judgement are those of the slow lane.
//!
//! A seed decides the load, the faults and the timers. Tokio and openraft throw dice of their own, so
//! that the same seed goes much the same way again, not exactly: a violation is kept with all that
//! was seen of it, and a seed is worth trying several times.
//!
//! What it leaves out is for the slow lane: sled and real disks, TLS, the API, the data plane, and
//! clocks that differ.

mod nemesis;
mod site;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use merlin_raft::Timers;
use merlin_raft::simulation::{self, Machine};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, timeout_at};

use crate::checker::{self, Law};
use crate::client;
use crate::lab::Clock;
use crate::ops::{Frame, Led, Node, Outcome, Revision, Watch};
use crate::recorder::Recorder;
use crate::report::Report;
use crate::workload::{Shared, Site as _, writer};
use site::{Asked, Cluster};

/// Few enough that snapshots are made and sent in a short life.
const SNAPSHOT_EVERY: NonZeroU64 = NonZeroU64::new(40).unwrap();

const TIMERS: Timers = Timers {
    heartbeat: Duration::from_millis(50),
    election_min: Duration::from_millis(450),
    election_max: Duration::from_millis(600),
    promote_after: Duration::from_millis(100),
};

/// How long a cluster is hurt, by its own clock.
const LIFE: Duration = Duration::from_secs(5);
/// How long it may take to be well again, by its own clock.
const CONVALESCENCE: Duration = Duration::from_secs(20);
const WRITERS: u32 = 3;
/// Between two operations of a writer, on average.
const PAUSE: Duration = Duration::from_millis(60);

#[derive(Clone, Debug)]
pub struct Plan {
    pub first_seed: u64,
    /// No seed begins after so many of them, or after so long.
    pub seeds: u64,
    pub time: Duration,
    pub nodes: Node,
    /// Ends at the first violation.
    pub until_broken: bool,
    /// Where what was seen of violations goes.
    pub folder: PathBuf,
}

/// What all seeds came to.
#[derive(Debug, Default)]
pub struct Tally {
    pub time: Duration,
    pub seeds: u64,
    pub writes: usize,
    pub done: usize,
    pub unknown: usize,
    pub reads: usize,
    pub frames: usize,
    pub faults: BTreeMap<String, usize>,
    pub broken: Vec<Report>,
}

/// Tries one seed after another, as many at a time as there are processors.
pub fn run(plan: &Plan, progress: impl Fn(&str) + Sync) -> Result<Tally> {
    ensure!((1..=9).contains(&plan.nodes), "--nodes: 1 to 9");
    let files = in_memory()?;
    let machines = runtime()?.block_on(simulation::found(
        plan.nodes.into(),
        TIMERS,
        SNAPSHOT_EVERY,
        files.path(),
    ))?;
    let tally = Mutex::new(Tally::default());
    let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let begun = Instant::now();
    let work = || {
        while !over.load(Ordering::Relaxed) && begun.elapsed() < plan.time {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= plan.seeds {
                break;
            }
            let seed = plan.first_seed.wrapping_add(number);
            let report = life(&machines, seed).with_context(|| format!("seed {seed}"));
            let report = report.inspect_err(|_| over.store(true, Ordering::Relaxed))?;
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            if !report.judgement.violations.is_empty() {
                progress(&format!("seed {seed} is broken"));
                report.save(&plan.folder.join(seed.to_string()))?;
                over.fetch_or(plan.until_broken, Ordering::Relaxed);
            }
            tally.add(report);
            tally.time = begun.elapsed();
            if tally.seeds.is_multiple_of(1000) {
                progress(&tally.pace());
            }
        }
        anyhow::Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(ended) => ended?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        anyhow::Ok(())
    })?;
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    ensure!(tally.done > 0, "no write was acknowledged");
    Ok(tally)
}

impl Tally {
    fn pace(&self) -> String {
        let rate = self.seeds as f64 / self.time.as_secs_f64() * 60.0;
        format!("{} seeds, {rate:.0} per minute", self.seeds)
    }

    fn add(&mut self, report: Report) {
        let history = &report.history;
        let writes = history.writes.iter();
        self.seeds += 1;
        self.writes += writes.len();
        for write in writes {
            self.done += usize::from(matches!(write.outcome, Outcome::Done { .. }));
            self.unknown += usize::from(write.outcome == Outcome::Unknown);
        }
        self.reads += history.reads.len();
        let frames = history.watches.iter().map(|watch| watch.frames.len());
        self.frames += frames.sum::<usize>();
        for fault in &report.faults {
            *self.faults.entry(fault.name.clone()).or_default() += 1;
        }
        if !report.judgement.violations.is_empty() {
            self.broken.push(report);
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}; writes: {}, {} done, {} of unknown outcome; reads: {}; frames of watches: {}",
            self.pace(),
            self.writes,
            self.done,
            self.unknown,
            self.reads,
            self.frames
        )?;
        writeln!(f, "faults: {}", self.faults.values().sum::<usize>())?;
        for (name, times) in &self.faults {
            writeln!(f, "  {name:36} {times} x")?;
        }
        for report in &self.broken {
            for violation in &report.judgement.violations {
                writeln!(f, "BROKEN: seed {}: {violation}", report.seed)?;
            }
        }
        f.write_str(if self.broken.is_empty() {
            "clean: merlin kept every promise"
        } else {
            "BROKEN: merlin broke a promise"
        })
    }
}

/// A directory that costs no disk where there is such a thing.
fn in_memory() -> Result<TempDir> {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    made.context("a directory for files of the simulated nodes")
}

/// One in which time passes when everybody waits for it.
fn runtime() -> Result<Runtime> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build();
    runtime.context("a runtime for a simulation")
}

/// One cluster, from its start to its judgement.
fn life(machines: &[Machine], seed: u64) -> Result<Report> {
    let files = in_memory()?;
    let runtime = runtime()?;
    let recorder = runtime.block_on(async {
        let recorder = Arc::new(Recorder::new(Clock::new()));
        ordeal(machines, seed, files.path(), Arc::clone(&recorder)).await?;
        anyhow::Ok(recorder)
    })?;
    // Nobody waits for what is left of it.
    runtime.shutdown_background();
    let (history, faults, violations) = recorder.take();
    let mut judgement = checker::check(&history);
    judgement.violations.splice(0..0, violations);
    Ok(Report {
        seed,
        history,
        faults,
        judgement,
        revisions: Vec::new(),
        failure: None,
    })
}

async fn ordeal(
    machines: &[Machine],
    seed: u64,
    files: &Path,
    recorder: Arc<Recorder>,
) -> Result<()> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut prepared = Vec::new();
    for machine in machines {
        let copy = machine.copy(files.join(format!("{}-0", machine.id)))?;
        // More the seed's choice than that of consensus, which throws dice of its own.
        let election = Duration::from_millis(350 + 2 * dice.random_range(0..100));
        let timers = Timers {
            election_min: election,
            election_max: election + Duration::from_millis(50),
            ..TIMERS
        };
        prepared.push((copy, timers));
    }
    let files = files.join("lives");
    let cluster = Arc::new(Cluster::new(prepared, files));
    nemesis::mend(&cluster).await?;
    let shared = Arc::new(Shared::new(Arc::clone(&cluster), recorder, seed));
    let mut clients = JoinSet::new();
    for _ in 0..WRITERS {
        let dice = StdRng::seed_from_u64(dice.random());
        clients.spawn(writer::run(Arc::clone(&shared), PAUSE, dice));
    }
    for node in cluster.nodes() {
        let dice = StdRng::seed_from_u64(dice.random());
        clients.spawn(watch(Arc::clone(&shared), dice));
        clients.spawn(monitor(Arc::clone(&shared), node));
    }
    nemesis::run(&cluster, &shared.recorder, dice, LIFE).await?;
    shared.stop.cancel();
    while let Some(ended) = clients.join_next().await {
        ended.context("a client panicked")??;
    }
    settle(&shared).await;
    Ok(())
}

/// Follows the changes at one node and another, from where it was.
async fn watch(shared: Arc<Shared<Cluster>>, mut dice: StdRng) -> Result<()> {
    let mut reached: Option<Revision> = None;
    while !shared.stop.is_cancelled() {
        let node = shared.any_node(&mut dice);
        let mut watch = Watch {
            start: shared.recorder.clock.now(),
            node,
            life: shared.lab.life(node),
            from: reached,
            frames: Vec::new(),
        };
        let time = Duration::from_millis(dice.random_range(100..1500));
        let until = tokio::time::Instant::now() + time;
        let (frames, recorder) = (&mut watch.frames, &shared.recorder);
        let follow = |store: merlin_raft::RaftStore| async move {
            let mut events = store.events();
            loop {
                let ring = events.borrow_and_update().clone();
                let at = recorder.clock.now();
                let Some(from) = reached else {
                    let revision = ring.newest().0;
                    let events = Vec::new();
                    reached = Some(revision);
                    frames.push(Frame {
                        at,
                        revision,
                        events,
                    });
                    continue;
                };
                let Ok(groups) = ring.after(merlin_model::Revision(from)) else {
                    // As it is told to: from now on. Others have seen what is missed.
                    return Ok(None);
                };
                for group in groups {
                    let told = merlin_proto::listing::watch_response(group, "");
                    let (revision, events) = (told.revision, client::events(&told)?);
                    reached = Some(revision);
                    frames.push(Frame {
                        at,
                        revision,
                        events,
                    });
                }
                let changed = timeout_at(until, events.changed()).await;
                if !matches!(changed, Ok(Ok(()))) {
                    return Ok::<_, client::Odd>(reached);
                }
            }
        };
        let followed = shared.lab.client(node).ask(follow).await;
        // What it was told counts, however that ended.
        reached = watch.frames.last().map(|f| f.revision).or(watch.from);
        match followed {
            Asked::Answered(Ok(end)) => reached = end,
            Asked::Answered(Err(odd)) => shared.odd(node, &odd),
            Asked::CutOff => {}
            Asked::Refused => sleep(Duration::from_millis(50)).await,
        }
        shared.recorder.watch(watch);
    }
    Ok(())
}

/// Notes what a node says of who leads, and whether it gives up.
async fn monitor(shared: Arc<Shared<Cluster>>, node: Node) -> Result<()> {
    let session = shared.lab.client(node);
    while !shared.stop.is_cancelled() {
        let look = |store: merlin_raft::RaftStore| async move {
            let failed = timeout(Duration::from_millis(50), store.failed()).await;
            (store.status(), failed.ok())
        };
        let Asked::Answered((status, failed)) = session.ask(look).await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        if let Some(failed) = failed {
            let what = format!("n{node}: {failed}");
            shared.recorder.violation(Law::DaemonsStayUp, what);
            return Ok(());
        }
        if let Some(leader) = status.leader {
            shared.recorder.led(Led {
                at: shared.recorder.clock.now(),
                node,
                term: status.term,
                leader,
            });
        }
    }
    Ok(())
}

/// Waits until every node holds the same, and takes a last look at all of them.
async fn settle(shared: &Shared<Cluster>) {
    let cluster = &shared.lab;
    let well = async {
        while !is_well(cluster) {
            nemesis::promote(cluster).await;
            sleep(Duration::from_millis(50)).await;
        }
    };
    if timeout(CONVALESCENCE, well).await.is_err() {
        let state = |node| match cluster.store(node) {
            Some(store) => format!("n{node}: {:?}", store.status()),
            None => format!("n{node} is down"),
        };
        let states: Vec<_> = cluster.nodes().map(state).collect();
        let what = format!(
            "{CONVALESCENCE:?} after the last fault: {}",
            states.join("; ")
        );
        shared.recorder.violation(Law::Convergence, what);
        return;
    }
    let stores: Vec<_> = cluster.nodes().filter_map(|n| cluster.store(n)).collect();
    for pair in stores.windows(2) {
        for part in simulation::differences(&pair[0], &pair[1]) {
            let (a, b) = (pair[0].node_id(), pair[1].node_id());
            let what = format!("n{a} and n{b} applied the same log and hold a different {part}");
            shared.recorder.violation(Law::Convergence, what);
        }
    }
    shared.last_reads(CONVALESCENCE).await;
}

/// Whether all nodes run, vote, and have applied the same.
fn is_well(cluster: &Cluster) -> bool {
    let statuses: Option<Vec<_>> = cluster
        .nodes()
        .map(|node| Some(cluster.store(node)?.status()))
        .collect();
    let Some(statuses) = statuses else {
        return false;
    };
    let first = &statuses[0];
    statuses.iter().all(|status| {
        let votes = status
            .members
            .iter()
            .all(|m| m.role != merlin_raft::Role::Learner);
        votes
            && !status.changing
            && status.unavailable.is_none()
            && status.applied == status.last_log
            && status.applied == first.applied
            && status.leader.is_some()
            && status.leader == first.leader
    })
}
