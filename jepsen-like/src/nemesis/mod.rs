//! Hurts the lab: one fault after the other, each installed, proved to have happened, held, and
//! healed. A fault that cannot be proved is a failure of this program, not a pass of merlin's.

mod clock;
mod damage;
mod disk;
mod links;
mod members;
mod members_of_etcd;
mod pair;
mod process;
mod upgrade;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::runtime::Handle;

use crate::checker::Law;
use crate::client::{Client, describe};
use crate::lab::Store;
use crate::lab::machine::Machine;
use crate::ops::{Hurt, Moment, Node};
use crate::workload::Shared;

/// What can be done to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Kind {
    /// The leader hears nobody, and nobody hears it
    PartitionLeader,
    /// Less than half of the nodes are cut off together
    PartitionMinority,
    /// Every node sees a majority, and no two see the same
    PartitionRing,
    /// A node, often the leader, speaks and hears nothing, or the other way round
    PartitionOneWay,
    /// Nodes are cut off and reconnected faster than elections end
    PartitionFlapping,
    /// A part of all packets between nodes is lost
    PacketLoss,
    /// What a node sends trickles
    SlowLinks,
    /// SIGKILL to one node
    Kill,
    /// SIGKILL to every node at once
    KillAll,
    /// SIGKILL to the leader, and to the next one, and so on
    KillLeader,
    /// SIGSTOP to one node, often the leader, and SIGCONT
    Pause,
    /// A node's clock is an hour ahead, or behind
    ClockJump,
    /// A node's disk has no room, often the leader's
    DiskFull,
    /// A node's disk takes no writes for a while, and then all of them
    DiskStall,
    /// A node's disk becomes read-only, as ext4 makes it after an error
    DiskReadOnly,
    /// What a node writes cannot be synced
    DiskSyncFails,
    /// A node loses what it had not synced
    PowerCut,
    /// Every node loses what it had not synced
    PowerCutAll,
    /// A node's newest snapshot is cut off in the middle while it is down
    SnapshotTorn,
    /// Some bytes of a node's log are flipped while it is down
    LogFlipped,
    /// Every node is stopped in order and started again, one after the other
    RollingRestart,
    /// Every node is replaced by a later version, one after the other; once in a run
    RollingUpgrade,
    /// The leader is told to hand over
    LeaderTransfer,
    /// A voter becomes a learner, and a voter again
    Demotion,
    /// Another certificate authority takes the place of the present one
    AuthorityRotation,
    /// A node loses its data directory while it is stopped, is removed, and joins as a new one,
    /// while the leader is killed
    Replacement,
    /// SIGKILL to one member of the etcd
    EtcdKill,
    /// SIGKILL to the member that leads
    EtcdKillLeader,
    /// SIGKILL to every member at once
    EtcdKillAll,
    /// SIGSTOP to one member, often the leader, and SIGCONT
    EtcdPause,
    /// A member loses its data, is removed, and another one takes its place
    EtcdReplacement,
    /// A member, often the leader, and the others do not hear each other; daemons reach them all
    EtcdPartition,
    /// A daemon, or every one, hears no member of the etcd; members hear each other
    EtcdUnreachable,
    /// The etcd forgets what a daemon that is cut off has not yet heard
    EtcdCompact,
}

/// The hand that hurts. It runs on a thread of its own.
pub(crate) struct Nemesis {
    shared: Arc<Shared>,
    runtime: Handle,
    dice: StdRng,
    hold: Duration,
    /// All is well again after so long, or never.
    patience: Duration,
    /// Nodes that something is being done to, which nothing else may be done to.
    taken: Arc<Mutex<BTreeSet<Node>>>,
    /// Whether what it does is done beside something else.
    is_companion: bool,
}

/// A fault that has begun.
struct Begun {
    kind: Kind,
    detail: String,
    from: Moment,
    /// Whose daemon may end by itself because of it, or stand still.
    hurt: Vec<Node>,
    /// False where there was nothing to hurt. That is told, and not counted.
    happened: bool,
}

/// A fault that is over.
struct Ended {
    begun: Begun,
    to: Moment,
}

impl Ended {
    fn words(&self) -> String {
        format!("{}: {}", self.begun.kind.name(), self.begun.detail)
    }
}

/// Goes through the kinds in random order, all of them before any comes again, and at least once.
pub(crate) fn run(
    shared: Arc<Shared>,
    runtime: Handle,
    (kinds, overlap): (&[Kind], bool),
    seed: u64,
    until: Instant,
    (hold, patience): (Duration, Duration),
    mut progress: impl FnMut(&str),
) -> Result<()> {
    let dice = StdRng::seed_from_u64(seed);
    let mut nemesis = Nemesis {
        shared,
        runtime,
        dice,
        hold,
        patience,
        taken: Arc::default(),
        is_companion: false,
    };
    let nodes = nemesis.nodes().len();
    let mut first_round = true;
    while (first_round || Instant::now() < until) && !kinds.is_empty() {
        let mut kinds = kinds.to_vec();
        kinds.shuffle(&mut nemesis.dice);
        // A snapshot has to be there before it can be torn, and every node be of a version that
        // can follow to another authority.
        if first_round {
            kinds.sort_by_key(|kind| matches!(kind, Kind::SnapshotTorn | Kind::AuthorityRotation));
        }
        for kind in kinds.clone() {
            if nemesis.stopped() || (!first_round && Instant::now() >= until) {
                return Ok(());
            }
            if !nemesis.has_left(kind) {
                continue;
            }
            let beside = match overlap {
                true => pair::companion(kind, &kinds, nodes, &mut nemesis.dice),
                false => None,
            };
            let (words, recovered) = nemesis.inflict(kind, beside)?;
            progress(&words);
            if !recovered {
                // Whatever came now would say nothing new.
                return Ok(());
            }
        }
        first_round = false;
    }
    Ok(())
}

impl Nemesis {
    fn stopped(&self) -> bool {
        self.shared.stop.is_cancelled()
    }

    /// Whether there is anything that this could be done to.
    fn has_left(&self, kind: Kind) -> bool {
        let is_earlier = |node| self.machine(node).is_earlier();
        kind != Kind::RollingUpgrade || self.shared.lab.nodes().any(is_earlier)
    }

    fn now(&self) -> Moment {
        self.shared.recorder.clock.now()
    }

    fn machine(&self, node: Node) -> &Arc<Machine> {
        self.shared.lab.machine(node)
    }

    /// A fault and perhaps another one beside it, from beginning to recovery. Says what they were,
    /// and whether all is well again.
    fn inflict(&mut self, kind: Kind, beside: Option<Kind>) -> Result<(String, bool)> {
        self.taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        let ended = match beside {
            Some(other) => self.happen_together(kind, other)?,
            None => vec![self.happen(kind)?],
        };
        let healed = self.now();
        let faults: Vec<_> = pair::faults(&ended)
            .into_iter()
            .map(|fault| self.shared.recorder.fault(fault))
            .collect();
        let words: Vec<_> = ended.iter().map(Ended::words).collect();
        let words = words.join(" + ");
        let recovered = self.recover(&words)?;
        let end = self.now();
        for fault in faults.into_iter().filter(|_| recovered) {
            self.shared.recorder.recovered(fault);
        }
        for Ended { begun, .. } in ended {
            for node in begun.hurt {
                let (from, to) = (begun.from, end);
                self.shared.recorder.hurt(Hurt { node, from, to });
            }
        }
        let seconds = Duration::from_micros(end - healed).as_secs_f32();
        let well = if recovered { "well again" } else { "NOT well" };
        Ok((format!("{words}; {well} after {seconds:.1} s"), recovered))
    }

    fn happen(&mut self, kind: Kind) -> Result<Ended> {
        let begun = self.perform(kind);
        let begun = begun.with_context(|| format!("nemesis {}", kind.name()))?;
        let to = self.now();
        Ok(Ended { begun, to })
    }

    fn perform(&mut self, kind: Kind) -> Result<Begun> {
        match kind {
            Kind::PartitionLeader
            | Kind::PartitionMinority
            | Kind::PartitionRing
            | Kind::PartitionOneWay
            | Kind::PartitionFlapping
            | Kind::PacketLoss
            | Kind::SlowLinks
            | Kind::EtcdPartition
            | Kind::EtcdUnreachable => self.hurt_links(kind),
            Kind::Kill | Kind::KillAll | Kind::KillLeader | Kind::Pause | Kind::RollingRestart => {
                self.hurt_processes(kind)
            }
            Kind::ClockJump => self.jump(),
            Kind::DiskFull
            | Kind::DiskStall
            | Kind::DiskReadOnly
            | Kind::DiskSyncFails
            | Kind::PowerCut
            | Kind::PowerCutAll => self.hurt_disks(kind),
            Kind::RollingUpgrade => self.upgrade_in_turn(kind),
            Kind::SnapshotTorn | Kind::LogFlipped => self.damage(kind),
            Kind::LeaderTransfer | Kind::Demotion | Kind::AuthorityRotation | Kind::Replacement => {
                self.change_members(kind)
            }
            Kind::EtcdKill
            | Kind::EtcdKillLeader
            | Kind::EtcdKillAll
            | Kind::EtcdPause
            | Kind::EtcdReplacement
            | Kind::EtcdCompact => self.hurt_members_of_etcd(kind),
        }
    }

    fn begin(&self, kind: Kind, detail: impl Into<String>, hurt: impl Into<Vec<Node>>) -> Begun {
        Begun {
            kind,
            detail: detail.into(),
            from: self.now(),
            hurt: hurt.into(),
            happened: true,
        }
    }

    /// Lets the fault last.
    fn hold(&mut self) {
        let time = self.hold.mul_f64(0.6 + 0.8 * self.dice.random::<f64>());
        let until = Instant::now() + time;
        while Instant::now() < until && !self.stopped() {
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn nodes(&self) -> Vec<Node> {
        self.shared.lab.nodes().collect()
    }

    fn any(&mut self) -> Node {
        let nodes = self.nodes();
        nodes[self.dice.random_range(0..nodes.len())]
    }

    /// Any node that nothing else is being done to.
    fn take_any(&mut self) -> Node {
        let wish = self.any();
        self.take(wish)
    }

    /// The leader as often as not, if nothing else is being done to it.
    fn take_victim(&mut self) -> Result<Node> {
        let wish = self.victim()?;
        Ok(self.take(wish))
    }

    fn take(&mut self, wish: Node) -> Node {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let free = |node: &Node| !taken.contains(node);
        let mut others: Vec<Node> = self.shared.lab.nodes().filter(free).collect();
        others.shuffle(&mut self.dice);
        let node = match others.first() {
            Some(other) if taken.contains(&wish) => *other,
            _ => wish,
        };
        taken.insert(node);
        node
    }

    /// The leader as often as not: that is where it hurts.
    fn victim(&mut self) -> Result<Node> {
        match self.dice.random_ratio(1, 2) {
            true => self.leader(),
            false => Ok(self.any()),
        }
    }

    /// Who leads, by the newest term that anybody knows of; with an etcd, whose member does.
    fn leader(&self) -> Result<Node> {
        if self
            .shared
            .lab
            .machines
            .iter()
            .any(|machine| machine.member.is_some())
        {
            return self.leading_member();
        }
        let deadline = Instant::now() + self.patience;
        loop {
            let known = self.descriptions().into_iter().filter(|d| d.leader != 0);
            if let Some(newest) = known.max_by_key(|description| description.term) {
                let id = newest.leader;
                let leader = newest.members.iter().find(|member| member.id == id);
                let name = leader
                    .map(|leader| leader.name.as_str())
                    .unwrap_or_default();
                let number = name.strip_prefix('n').and_then(|n| n.parse().ok());
                return number.with_context(|| format!("the leader is called {name:?}"));
            }
            if Instant::now() > deadline {
                bail!("nobody leads");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn descriptions(&self) -> Vec<merlin_proto::v1::DescribeResponse> {
        let machines = &self.shared.lab.machines;
        let up = machines.iter().filter(|machine| machine.is_up());
        let ask = up.map(|machine| describe(machine, Duration::from_secs(1)));
        let answers = self.runtime.block_on(futures::future::join_all(ask));
        answers.into_iter().filter_map(Result::ok).collect()
    }

    /// Waits until writes are accepted and every node has them. When that never happens, merlin
    /// has failed, and this says so.
    fn recover(&self, what: &str) -> Result<bool> {
        let healed = self.now();
        let deadline = Instant::now() + self.patience;
        let mut revision = None;
        let mut left: BTreeMap<Node, String> = self
            .nodes()
            .into_iter()
            .map(|n| (n, "not asked".into()))
            .collect();
        while !self.stopped() {
            if revision.is_none() {
                let last = self.shared.recorder.last_done();
                revision = last
                    .filter(|record| record.start > healed)
                    .and_then(|record| match record.outcome {
                        crate::ops::Outcome::Done { revision, .. } => Some(revision),
                        _ => None,
                    });
            }
            if let Some(revision) = revision {
                for node in left.clone().into_keys() {
                    match self.catalog_of(node) {
                        Ok(reached) if reached >= revision => _ = left.remove(&node),
                        Ok(reached) => _ = left.insert(node, format!("at revision {reached}")),
                        Err(why) => _ = left.insert(node, why),
                    }
                }
                if left.is_empty() {
                    return Ok(true);
                }
            }
            if Instant::now() > deadline {
                let what = format!(
                    "{what} was healed at {healed} us, and {:?} later {}",
                    self.patience,
                    match revision {
                        None => "no write had been accepted".to_owned(),
                        Some(revision) => format!("not all were at revision {revision}: {left:?}"),
                    }
                );
                self.shared.recorder.violation(Law::Convergence, what);
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(true)
    }

    fn catalog_of(&self, node: Node) -> Result<u64, String> {
        let machine = Arc::clone(self.machine(node));
        let patience = Duration::from_secs(2);
        self.runtime.block_on(async {
            let client = Client::new(&machine);
            let asked = client.status(patience);
            match tokio::time::timeout(patience, asked).await {
                Ok(Ok(status)) => match status.store {
                    Some(store) if !store.available => Err(store.error),
                    _ => Ok(status.catalog_revision),
                },
                Ok(Err(status)) => Err(status.message().to_owned()),
                Err(_) => Err("it does not answer".to_owned()),
            }
        })
    }
}

impl Kind {
    #[must_use]
    pub fn name(self) -> String {
        crate::name_of(self)
    }

    /// All that can be done to a cluster with this store.
    #[must_use]
    pub fn all(store: Store) -> Vec<Self> {
        let kinds = Self::value_variants().iter().copied();
        kinds.filter(|kind| kind.suits(store)).collect()
    }

    /// Whether it means something to a cluster with this store. Files, members and leaders of
    /// merlin's own store are not there without it. With an etcd a disk is its member's too.
    #[must_use]
    pub fn suits(self, store: Store) -> bool {
        match self {
            Self::PartitionLeader
            | Self::PartitionMinority
            | Self::PartitionRing
            | Self::PartitionOneWay
            | Self::PartitionFlapping
            | Self::PacketLoss
            | Self::SlowLinks
            | Self::Kill
            | Self::KillAll
            | Self::Pause
            | Self::ClockJump
            | Self::DiskFull
            | Self::DiskStall
            | Self::DiskReadOnly
            | Self::DiskSyncFails
            | Self::PowerCut
            | Self::PowerCutAll
            | Self::RollingRestart => true,
            Self::EtcdKill
            | Self::EtcdKillLeader
            | Self::EtcdKillAll
            | Self::EtcdPause
            | Self::EtcdReplacement
            | Self::EtcdPartition
            | Self::EtcdUnreachable => store != Store::Raft,
            // What etcd 2 remembers of its events ends by itself.
            Self::EtcdCompact => store == Store::Etcd3,
            Self::KillLeader
            | Self::SnapshotTorn
            | Self::LogFlipped
            | Self::RollingUpgrade
            | Self::LeaderTransfer
            | Self::Demotion
            | Self::AuthorityRotation
            | Self::Replacement => store == Store::Raft,
        }
    }
}
