//! What a node of the store can be told.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use crate::level::Level;

#[derive(Clone, Debug)]
pub struct Config {
    /// Belongs to this node alone and holds all it must not lose.
    pub data_dir: PathBuf,
    /// What operators call the node.
    pub node_name: String,
    /// Where the other nodes reach this one, `IP:PORT`.
    pub advertise: String,
    /// Nobody said so, it is an address that this host has. Does not replace one that it still has.
    pub advertise_guessed: bool,
    /// Where to listen for the other nodes.
    pub peer_addr: SocketAddr,
    pub timers: Timers,
    /// The commands that this node makes use of: the latest there are, or fewer, as an earlier
    /// version would.
    pub level: Level,
    /// Entries between two snapshots; none for what is usual. Fewer are for tests.
    pub snapshot_every: Option<NonZeroU64>,
}

/// How patient the nodes of a cluster are with each other. They should agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// How often a leader shows itself.
    pub heartbeat: Duration,
    /// A follower that has not heard from its leader for some time between these two, at random,
    /// looks for another. Half of the longer one must outlast the slowest write to the disk: for so
    /// long nobody votes for another leader than the one it has heard.
    pub election_min: Duration,
    pub election_max: Duration,
    /// How long a new node has to keep up before it gets its vote.
    pub promote_after: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            election_min: Duration::from_millis(1500),
            election_max: Duration::from_millis(2000),
            promote_after: Duration::from_secs(10),
        }
    }
}

/// The timers contradict each other.
#[derive(Debug, thiserror::Error)]
#[error(
    "timers of {0:?} cannot work: the heartbeat must be at least 10 ms, and the shorter election time \
     more than the heartbeat above half the longer one, and less than the longer one"
)]
pub struct InvalidTimers(Timers);

/// Entries between two snapshots, where nothing else is asked for.
pub(crate) const SNAPSHOT_EVERY: NonZeroU64 = NonZeroU64::new(2000).unwrap();

impl Timers {
    /// What consensus is told, with so many entries between two snapshots.
    pub(crate) fn raft(&self, every: NonZeroU64) -> Result<openraft::Config, InvalidTimers> {
        let sane = self.heartbeat >= Duration::from_millis(10)
            && self.lease() + self.heartbeat < self.election_min
            && self.election_min < self.lease() * 2;
        if !sane {
            return Err(InvalidTimers(*self));
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Ok(openraft::Config {
            cluster_name: "merlin".into(),
            heartbeat_interval: millis(self.heartbeat),
            // A follower waits for the lease, which is the longer of these, and then for something
            // between the two.
            election_timeout_min: millis(self.election_min.saturating_sub(self.lease())),
            election_timeout_max: millis(self.lease()),
            install_snapshot_timeout: 10_000,
            max_payload_entries: 64,
            // Only decides when a new learner counts as caught up.
            replication_lag_threshold: 64,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(every.get()),
            // Back to the snapshot before the last, with some to spare for those that arrive while
            // a snapshot is written.
            max_in_snapshot_log_to_keep: every.get().saturating_add(every.get() / 2),
            purge_batch_size: 256,
            ..openraft::Config::default()
        })
    }

    /// For how long a follower that heard its leader votes for nobody else.
    pub(crate) fn lease(&self) -> Duration {
        self.election_max / 2
    }

    /// For how long a leader that hears nothing from a quorum still takes commands. By then the
    /// others look for another.
    pub(crate) fn isolation(&self) -> Duration {
        self.election_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_daemon_ships_is_valid_and_nonsense_is_not() {
        let shipped = Timers::default().raft(SNAPSHOT_EVERY).unwrap();
        shipped.validate().unwrap();
        let hasty = Timers {
            election_min: Timers::default().lease() + Timers::default().heartbeat,
            ..Timers::default()
        };
        assert!(hasty.raft(SNAPSHOT_EVERY).is_err());
    }

    #[test]
    fn a_follower_waits_as_long_as_is_said() {
        let timers = Timers::default();
        let told = timers.raft(SNAPSHOT_EVERY).unwrap();
        // The lease is the longer one (openraft's `EngineConfig`), and is waited for first.
        let wait = |after| Duration::from_millis(told.election_timeout_max + after);
        assert_eq!(wait(told.election_timeout_min), timers.election_min);
        assert_eq!(wait(told.election_timeout_max), timers.election_max);
    }
}
