//! Hands the leadership to another voter, without losing a write.
//!
//! ```text
//! gate closed ─▶ the successor has the whole log ─▶ no more heartbeats ─▶ take over!
//!   successor: waits until the others' loyalty to the old leader has run out, then stands
//! gate open again, whoever leads; what waited is decided here or forwarded
//! ```
//! Nothing is begun while the gate is closed, so no write is in doubt because of it. Heartbeats go
//! on when it did not work out.

use std::time::Duration;

use merlin_proto::peer::{TakeOverAnswer, TakeOverRequest};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::consensus::{Consensus, Leadership};
use crate::peers::{Peers, Target};
use crate::typ::NodeId;

/// Between two attempts to be elected: each costs a term.
const ATTEMPT: Duration = Duration::from_millis(250);

/// Clocks of timers are not that exact.
const MARGIN: Duration = Duration::from_millis(20);

#[derive(Clone, Debug)]
pub(crate) struct Handover {
    pub(crate) consensus: Consensus,
    pub(crate) peers: Peers,
    /// For how long followers are loyal to a leader that has fallen silent.
    pub(crate) lease: Duration,
}

/// Heartbeats stop as long as this is there.
struct Quiet<'a>(&'a Consensus);

impl<'a> Quiet<'a> {
    fn keep(consensus: &'a Consensus) -> Self {
        consensus.raft.runtime_config().heartbeat(false);
        Self(consensus)
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        self.0.raft.runtime_config().heartbeat(true);
    }
}

impl Handover {
    /// Makes another voter lead, and gives who leads then: somebody else may have been faster. This
    /// node leads now, and goes on leading on an error.
    pub(crate) async fn to(&self, successor: &Target) -> Result<NodeId, String> {
        let patience = self.consensus.isolation();
        let closed = timeout(patience, self.consensus.close()).await;
        let _closed = closed.map_err(|_| "writes that are under way do not finish".to_owned())?;
        timeout(patience, self.caught_up(successor.id))
            .await
            .map_err(|_| format!("{successor} does not catch up"))??;
        tracing::info!(to = successor.id, "handing the leadership over");
        let request = TakeOverRequest {
            lease_ms: millis(self.lease + MARGIN),
            timeout_ms: millis(self.lease + patience * 2),
        };
        let quiet = Quiet::keep(&self.consensus);
        let asked = self
            .peers
            .take_over(successor, &request, self.lease + patience * 3)
            .await;
        drop(quiet);
        let (reason, patience) = match asked {
            Ok(TakeOverAnswer { leads: true }) => {
                (format!("{successor} leads, but does not call"), patience)
            }
            Ok(TakeOverAnswer { leads: false }) => {
                (format!("{successor} was not elected"), Duration::ZERO)
            }
            Err(error) => (error.to_string(), Duration::ZERO),
        };
        // What waits at the gate is forwarded at once, and not refused for want of a leader.
        let follows = self.consensus.another_leads(self.consensus.me());
        timeout(patience, follows).await.map_err(|_| reason)
    }

    /// Whether the successor holds every entry that this node holds.
    async fn caught_up(&self, successor: NodeId) -> Result<(), String> {
        let mut metrics = self.consensus.raft.metrics();
        let reached = metrics.wait_for(|metrics| {
            let matching = metrics.replication.as_ref();
            let matching = matching.and_then(|all| all.get(&successor).copied().flatten());
            metrics.replication.is_none() || matching.map(|at| at.index) >= metrics.last_log_index
        });
        match reached.await {
            Ok(metrics) if metrics.replication.is_some() => Ok(()),
            _ => Err("this node does not lead any more".into()),
        }
    }
}

/// The successor's part: becomes the leader, or gives up in time.
pub(crate) async fn take_over(consensus: &Consensus, request: TakeOverRequest) -> TakeOverAnswer {
    let deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
    let elected = async {
        sleep(Duration::from_millis(request.lease_ms)).await;
        let mut metrics = consensus.raft.metrics();
        loop {
            if consensus.raft.trigger().elect().await.is_err() {
                return false;
            }
            // Once a quorum has confirmed it: what waits for the handover is decided then.
            let leads =
                metrics.wait_for(|metrics| consensus.leadership_in(metrics) == Leadership::Leading);
            match timeout(ATTEMPT, leads).await {
                Ok(leads) => return leads.is_ok(),
                Err(_) => tracing::debug!("not elected yet"),
            }
        }
    };
    TakeOverAnswer {
        leads: timeout_at(deadline, elected).await.unwrap_or(false),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
