//! Keeps the replica up with etcd: one task, for as long as the daemon runs.
//!
//! ```text
//!            ┌────────── lost: next member, after a while ──────────┐
//!            ▼                                                      │
//! connect ──▶ watch after the horizon ──▶ follow ───────────────────┤
//!    │               ▲                      │ compacted, restored,  │
//!    │ never listed  │                      ▼ doubted               │
//!    └───────────▶ list ◀───────────────────┘ ──────────────────────┘
//! ```
//!
//! Whatever happens, the views keep the last good state.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, WatchResponse, WatchStream};
use merlin_model::Revision;
use rand::Rng;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::error::CallError;
use super::session::{Session, header, record, revision};
use super::tail::{Body, End, Event, Message, Tail};
use crate::config::Config;
use crate::publish::{Heed, Publisher};
use crate::replica::{History, Replica};

/// How often etcd is asked how far a quiet watch has come. Keeps the horizon ahead of compaction,
/// and finds a watch that hangs on a connection that does not.
const PROGRESS: Duration = Duration::from_secs(30);
/// An answer to that, or to a suspicion, takes no longer.
const PATIENCE: Duration = Duration::from_secs(2);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// Follows etcd until told to stop.
pub(crate) async fn run(
    config: Config,
    publisher: Publisher,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let replica = shared.views.replica.borrow().clone();
    let mut follower = Follower {
        members: Members::new(config.endpoints.len()),
        replica,
        tail: None,
        epoch: 0,
        config,
        publisher,
        shared,
    };
    // Dropped wherever it is: the views are always in a good state.
    stop.run_until_cancelled(follower.run()).await;
    follower.shared.session.send_replace(None);
}

/// Whether there are any records. For finding out which of etcd's stores is in use.
pub(crate) async fn holds_records(config: &Config) -> Result<bool, String> {
    let mut reasons = Vec::new();
    for endpoint in &config.endpoints {
        let count = async {
            let session = Session::connect(endpoint, config).await?;
            session.newer(&config.layout, Revision::ZERO).await
        };
        match count.await {
            Ok(newer) => return Ok(newer.count > 0),
            Err(error) => reasons.push(format!("{endpoint}: {error}")),
        }
    }
    Err(reasons.join("; "))
}

struct Follower {
    config: Config,
    members: Members,
    replica: Replica,
    /// None before the first list.
    tail: Option<Tail>,
    /// How often the history changed under one cluster id.
    epoch: u64,
    publisher: Publisher,
    shared: Arc<Shared>,
}

impl Follower {
    async fn run(&mut self) -> ! {
        loop {
            let endpoint = self.config.endpoints[self.members.present()].clone();
            let reason = match self.follow(&endpoint).await {
                Ok(never) => match never {},
                Err(error) => format!("etcd at {endpoint}: {error}"),
            };
            self.shared.session.send_replace(None);
            self.publisher.away(&reason);
            let pause = self.members.next();
            tokio::time::sleep(pause).await;
        }
    }

    /// Follows etcd on one connection until that is lost.
    async fn follow(&mut self, endpoint: &str) -> Result<std::convert::Infallible, CallError> {
        let session = Session::connect(endpoint, &self.config).await?;
        let mut history = self.tail.is_none().then_some(History::Same);
        loop {
            if let Some(hint) = history.take() {
                self.list(&session, hint).await?;
            }
            let end = match self.watch(&session).await {
                Err(error) if error.is_compacted() => End::Relist {
                    history: History::Same,
                    reason: error.to_string(),
                },
                end => end?,
            };
            match end {
                End::Lost(reason) => return Err(CallError::Unknown(reason)),
                End::Relist {
                    history: hint,
                    reason,
                } => {
                    tracing::info!(endpoint, reason, "listing the records anew");
                    history = Some(hint);
                }
            }
        }
    }

    /// Takes over everything there is, and looks again at what is hard to believe.
    async fn list(&mut self, session: &Session, hint: History) -> Result<(), CallError> {
        let mut heed = self.list_once(session, hint).await?;
        while heed == Heed::ListAgain {
            heed = self.list_once(session, History::Same).await?;
        }
        Ok(())
    }

    async fn list_once(&mut self, session: &Session, hint: History) -> Result<Heed, CallError> {
        let listing = session.list(&self.config.layout).await?;
        let history = match &self.tail {
            Some(_) if hint == History::Another => History::Another,
            Some(tail) => tail.history_of(listing.cluster, listing.revision),
            None => History::Same,
        };
        if history == History::Another {
            self.epoch += 1;
        }
        let changes = self.replica.relist(history, listing.records);
        self.tail = Some(Tail::new(listing.cluster, listing.revision));
        let heed = self.publisher.jump(&self.replica, &changes);
        self.shared.set_horizon(listing.revision);
        Ok(heed)
    }

    /// Watches from the horizon on until that cannot go on.
    async fn watch(&mut self, session: &Session) -> Result<End, CallError> {
        let Some(tail) = &mut self.tail else {
            return Ok(End::Relist {
                history: History::Same,
                reason: "nothing was listed".to_owned(),
            });
        };
        tail.resumed();
        let mut stream = session
            .watch(&self.config.layout, tail.horizon.next())
            .await?;
        let mut progress = interval_at(Instant::now() + PROGRESS, PROGRESS);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut overdue = Instant::now() + PROGRESS + PATIENCE;
        let mut begun = false;
        loop {
            let shared = Arc::clone(&self.shared);
            // Every arm can be dropped at any await without losing something: messages are taken
            // one by one, and notifications leave their permit.
            tokio::select! {
                message = stream.message() => {
                    let message = message?.ok_or_else(|| ended("etcd ended the watch"))?;
                    overdue = Instant::now() + PROGRESS + PATIENCE;
                    if let Err(end) = self.hear(&message) {
                        return Ok(end);
                    }
                    if !std::mem::replace(&mut begun, true) {
                        self.begin(session);
                    }
                }
                _ = progress.tick() => ask(&mut stream).await?,
                () = tokio::time::sleep_until(overdue) => {
                    return Err(ended("the watch does not answer"));
                }
                () = shared.suspicion.notified() => self.probe(session).await?,
                () = shared.doubt.notified() => return Ok(End::Relist {
                    history: History::Same,
                    reason: "the records differ from what was followed".to_owned(),
                }),
            }
        }
    }

    /// Takes in one message of the watch.
    fn hear(&mut self, response: &WatchResponse) -> Result<(), End> {
        let message = message(response).map_err(|error| End::Lost(error.to_string()))?;
        let Some(tail) = &mut self.tail else {
            return Ok(());
        };
        for step in tail.hear(message)? {
            let changes = self.replica.step(step.revision, step.updates);
            if self.publisher.step(&self.replica, changes) == Heed::ListAgain {
                return Err(End::Relist {
                    history: History::Same,
                    reason: "much is gone at once".to_owned(),
                });
            }
        }
        self.shared.set_horizon(tail.horizon);
        Ok(())
    }

    /// The connection is good: commands may use it.
    fn begin(&mut self, session: &Session) {
        let history = match (&self.tail, self.epoch) {
            (Some(tail), 0) => format!("{:x}", tail.cluster),
            (Some(tail), epoch) => format!("{:x}.{epoch}", tail.cluster),
            (None, _) => return,
        };
        self.members.good();
        self.publisher.connected(&session.endpoint, &history);
        self.shared.session.send_replace(Some(session.clone()));
    }

    async fn probe(&self, session: &Session) -> Result<(), CallError> {
        let probe = timeout(PATIENCE, session.revision(&self.config.layout)).await;
        probe.map_err(|_| CallError::Timeout(PATIENCE))??;
        Ok(())
    }
}

async fn ask(stream: &mut WatchStream) -> Result<(), CallError> {
    // The queue to the connection takes a hundred; it is stuck long before.
    let asked = timeout(PATIENCE, stream.request_progress()).await;
    Ok(asked.map_err(|_| CallError::Timeout(PATIENCE))??)
}

fn ended(reason: &str) -> CallError {
    CallError::Unknown(reason.to_owned())
}

fn message(response: &WatchResponse) -> Result<Message, CallError> {
    let header = header(response.header())?;
    let body = if response.compact_revision() > 0 {
        Body::Compacted
    } else if response.canceled() {
        Body::Canceled(match response.cancel_reason() {
            "" => "etcd canceled the watch".to_owned(),
            reason => reason.to_owned(),
        })
    } else if response.created() {
        Body::Created
    } else if response.events().is_empty() {
        // Answers to requests are about no watch in particular.
        Body::Progress {
            asked_for: response.watch_id() < 0,
        }
    } else {
        Body::Events(response.events().iter().filter_map(event).collect())
    };
    Ok(Message {
        cluster: header.cluster_id(),
        revision: revision(header.revision()),
        body,
    })
}

fn event(event: &etcd_client::Event) -> Option<Event> {
    let (key, stored) = record(event.kv()?);
    Some(Event {
        revision: stored.changed,
        key,
        stored: (event.event_type() == EventType::Put).then_some(stored),
    })
}

/// Which member to turn to, and how soon.
#[derive(Debug)]
struct Members {
    count: usize,
    present: usize,
    failures: u32,
}

impl Members {
    /// Nodes begin with different members.
    fn new(count: usize) -> Self {
        Self {
            count,
            present: rand::rng().random_range(0..count),
            failures: 0,
        }
    }

    fn present(&self) -> usize {
        self.present
    }

    fn good(&mut self) {
        self.failures = 0;
    }

    /// Turns to the next member: for how long to wait before that. Longer with every round, and
    /// never the same for every node.
    fn next(&mut self) -> Duration {
        self.present = (self.present + 1) % self.count;
        let rounds = self.failures / u32::try_from(self.count).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        let pause = FIRST_RETRY
            .saturating_mul(2_u32.saturating_pow(rounds))
            .min(LAST_RETRY);
        pause.mul_f64(rand::rng().random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_is_tried_before_waiting_longer() {
        let mut members = Members::new(3);
        let first = members.present();
        let mut seen = Vec::new();
        for _ in 0..3 {
            assert!(members.next() <= FIRST_RETRY);
            seen.push(members.present());
        }
        assert_eq!(seen[2], first);
        assert!(members.next() > FIRST_RETRY / 2);
        for _ in 0..200 {
            assert!(members.next() <= LAST_RETRY);
        }
        assert!(members.next() >= LAST_RETRY / 2);
        members.good();
        assert!(members.next() <= FIRST_RETRY);
    }
}
