//! The machines under test: each a network namespace, a disk of its own and a daemon on it.
//!
//! ```text
//!  this program 10.99.0.254 ── bridge ─┬─ n1 10.99.0.1   /run/jepsen/n1/disk   loop image on a
//!                                      ├─ n2 10.99.0.2                         tmpfs of its own
//!                                      └─ ...
//! ```
//!
//! The whole lab lives in namespaces of [`enclosure`]: processes, mounts and networks. So parallel
//! runs cannot meet, the names above need not be unique, and nothing is left of a run that is
//! killed: the kernel takes the namespaces down with their first process.

pub mod disk;
pub mod enclosure;
pub mod etcd;
pub mod machine;
pub mod network;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::time::Instant;

use crate::ops::{Moment, Node};
use disk::Disk;
use machine::Machine;

/// Where everything of a run is that need not outlive it. A file system of the enclosure.
pub(crate) const PRIVATE: &str = "/run/jepsen";

/// The one clock of a run: it never says the same twice, so that whatever happened is before or
/// after whatever else did. All clones are the same clock.
#[derive(Clone, Debug)]
pub struct Clock {
    /// By tokio's time, which a test may stop.
    begun: Instant,
    last: Arc<AtomicU64>,
}

/// What the catalog is kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Store {
    /// merlin's own store, replicated among its nodes
    #[default]
    Raft,
    /// An etcd with a member beside every node
    Etcd3,
    /// The same, by the API of etcd 2: without transactions, so that less is promised and judged
    Etcd2,
}

/// How the lab is made.
#[derive(Clone, Debug)]
pub struct Shape {
    pub nodes: Node,
    pub store: Store,
    /// The daemon's program.
    pub merlin: PathBuf,
    /// What else is said in the daemon's environment.
    pub environment: Vec<(String, String)>,
    /// Where logs go, which outlive the lab.
    pub folder: PathBuf,
    /// Whether the machines' clocks can be moved.
    pub movable_clocks: bool,
    /// Whether the daemons do only what an earlier version could, until they are upgraded.
    pub earlier: bool,
}

#[derive(Debug)]
pub struct Lab {
    pub clock: Clock,
    pub store: Store,
    pub machines: Vec<Arc<Machine>>,
}

impl Clock {
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a clock begins when it is made")]
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            last: Arc::default(),
        }
    }

    #[must_use]
    pub fn now(&self) -> Moment {
        let elapsed = Moment::try_from(self.begun.elapsed().as_micros()).unwrap_or(Moment::MAX);
        let later = |last| elapsed.max(last + 1);
        let told = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(later(last))
            });
        // It never declines.
        later(told.unwrap_or_else(|last| last))
    }
}

impl Lab {
    /// Builds networks and disks. No daemon runs yet.
    pub fn build(shape: &Shape) -> Result<Self> {
        ensure!(
            enclosure::inside(),
            "a lab is only built inside its enclosure"
        );
        network::build(shape.nodes).context("building the network")?;
        let clock = Clock::new();
        let machine = |number| {
            let disk = Disk::create(&Path::new(PRIVATE).join(format!("n{number}")))
                .with_context(|| format!("making a disk for n{number}"))?;
            Ok(Arc::new(Machine::new(number, shape, disk, clock.clone())?))
        };
        let machines = (1..=shape.nodes).map(machine).collect::<Result<_>>()?;
        let store = shape.store;
        Ok(Self {
            clock,
            store,
            machines,
        })
    }

    /// Makes the machines one cluster: the first founds it, the others join with its tokens; or
    /// all of them find each other in an etcd.
    pub fn form_cluster(&self) -> Result<()> {
        let members = || {
            self.machines
                .iter()
                .filter_map(|machine| machine.member.as_ref())
        };
        members().try_for_each(etcd::Member::start)?;
        members().try_for_each(etcd::Member::await_ready)?;
        if members().next().is_some() {
            self.machines
                .iter()
                .try_for_each(|machine| machine.start())?;
            return self
                .machines
                .iter()
                .try_for_each(|machine| await_ready(machine));
        }
        let (first, others) = self.machines.split_first().context("a lab without nodes")?;
        first.start()?;
        await_ready(first)?;
        for machine in others {
            let token = first.create_token(&machine.name())?;
            machine.set_token(&token)?;
            machine.start()?;
            await_ready(machine)?;
        }
        let voters = || {
            let members = first.cluster(&["members", "-o", "json"])?;
            let members: serde_json::Value = serde_json::from_str(&members)?;
            let members = members["members"].as_array().context("no members")?;
            let voters = members.iter().filter(|member| member["voter"] == true);
            ensure!(voters.count() == self.machines.len(), "not all have a vote");
            Ok(())
        };
        e2e::poll::eventually(START, voters).context("waiting for votes")
    }

    #[must_use]
    pub fn machine(&self, node: Node) -> &Arc<Machine> {
        &self.machines[usize::from(node) - 1]
    }

    pub fn nodes(&self) -> impl Iterator<Item = Node> + '_ {
        self.machines.iter().map(|machine| machine.number)
    }
}

/// How long a first start may take.
const START: Duration = Duration::from_secs(40);

fn await_ready(machine: &Machine) -> Result<()> {
    let deadline = Instant::now() + START;
    loop {
        match machine.http("/ready") {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => return Ok(()),
            answer if Instant::now() > deadline => {
                let name = machine.name();
                bail!("{name} is not ready: {answer:?}\n{}", machine.log_tail());
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn even_a_clock_that_stands_tells_what_was_first() {
        let clock = Clock::new();
        let other = clock.clone();
        let first = clock.now();
        assert!(other.now() > first);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(clock.now() >= 1_000_000);
    }
}
