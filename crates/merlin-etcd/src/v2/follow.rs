//! Keeps the replica up with etcd, whatever happens to either side.
//!
//! ```text
//!          ┌────────── answers ◀────────── pause ◀──────────┐
//!          ▼                                                │
//!   list ──▶ watch from the next index ── no answer ──▶ away ┤
//!     ▲        │ cleared, another cluster, somebody doubts   │
//!     └────────┘                                            │
//!     └────────────────────── no answer ────────────────────┘
//! ```
//!
//! While etcd is away the views keep the last good state.

use std::sync::Arc;
use std::time::Duration;

use merlin_model::Revision;
use rand::Rng;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::client::{CallError, Client, Waiting};
use super::protocol::{Event, Index, Record, Refusal};
use crate::config::Config;
use crate::layout::Layout;
use crate::publish::{Heed, Publisher};
use crate::replica::{History, Replica, Stored};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Steps worth going one by one to what a list shows, and how long etcd may take to tell one.
const STEPS: usize = 32;
const STEP: Duration = Duration::from_millis(200);
/// What a member has it tells with the head of its answer, so nothing is what comes no sooner.
const SOON: Duration = Duration::from_millis(50);

/// Follows etcd until told to stop.
pub(crate) async fn run(
    config: Config,
    publisher: Publisher,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let replica = shared.views.replica.borrow().clone();
    let mut follower = Follower {
        prefix: config.layout.prefix().to_owned(),
        config,
        publisher,
        shared,
        replica,
        cluster: String::new(),
        history: History::Same,
        confirmed: 0,
        pause: FIRST_PAUSE,
    };
    // Dropped wherever it waits: what it has done is published.
    stop.run_until_cancelled_owned(follower.follow()).await;
}

/// Whether there are any records. For finding out which of etcd's stores is in use.
pub(crate) async fn holds_records(config: &Config) -> Result<bool, String> {
    let client = Client::new(config).map_err(|error| chain(&error))?;
    let records = match client.list(config.layout.prefix()).await {
        Ok(listing) => listing.records,
        // Where the API is not served nobody keeps records with it.
        Err(CallError::NoApi(_)) => return Ok(false),
        Err(error) => return Err(error.to_string()),
    };
    let is_record = |record: &Record| config.layout.place(record.key.as_bytes()).is_some();
    Ok(records.iter().any(is_record))
}

struct Follower {
    config: Config,
    prefix: String,
    publisher: Publisher,
    shared: Arc<Shared>,
    replica: Replica,
    /// Empty until the first watch tells.
    cluster: String,
    /// Whether the next list continues what is known.
    history: History,
    /// Index of the last list.
    confirmed: Index,
    pause: Duration,
}

/// Why watching ended.
enum Ended {
    /// The records have to be listed.
    List,
    Away(String),
}

impl Follower {
    async fn follow(&mut self) {
        loop {
            let client = match Client::new(&self.config) {
                Ok(client) => Arc::new(client),
                Err(error) => {
                    self.away(chain(&error)).await;
                    continue;
                }
            };
            let reason = self.with(&client).await;
            self.shared.client.send_replace(None);
            self.away(reason).await;
        }
    }

    /// Follows with one client until etcd does not answer, and says why.
    async fn with(&mut self, client: &Arc<Client>) -> String {
        for directory in directories(&self.config.layout) {
            if let Err(error) = client.make_directory(&directory).await {
                match error {
                    // Whoever may only read has nothing to make, and may follow all the same.
                    CallError::Refused(reason) => {
                        tracing::warn!(directory, %reason, "making the directory");
                    }
                    lost => return lost.to_string(),
                }
            }
        }
        loop {
            if let Err(error) = self.list(client).await {
                return error.to_string();
            }
            match self.watch(client).await {
                Ended::List => {}
                Ended::Away(reason) => return reason,
            }
        }
    }

    /// Takes over everything there is, and looks again at what is hard to believe.
    async fn list(&mut self, client: &Arc<Client>) -> Result<(), CallError> {
        while self.list_once(client).await? == Heed::ListAgain {}
        Ok(())
    }

    async fn list_once(&mut self, client: &Arc<Client>) -> Result<Heed, CallError> {
        // Who asks from now on asks for another list.
        let wanted = *self.shared.lists_wanted.borrow();
        let listing = client.list(&self.prefix).await?;
        let horizon = *self.shared.horizon.borrow();
        let history = match listing.index < horizon {
            true => History::Another,
            false => std::mem::replace(&mut self.history, History::Same),
        };
        let is_first = std::mem::replace(&mut self.confirmed, listing.index) == 0;
        let index = listing.index;
        let mut records: Vec<_> = listing.records.into_iter().map(stored).collect();
        if history == History::Same && !is_first {
            self.catch_up(client, index, &records).await;
            if self.history == History::Another {
                return Ok(Heed::ListAgain);
            }
        }
        let followed = match history == History::Same && !is_first {
            true => *self.shared.horizon.borrow(),
            false => 0,
        };
        if let Some(deletion) = self.last_deletion(client, followed, &records, index).await {
            records.push(deletion);
        }
        let changes = self.replica.relist(history, records);
        let heed = self.publisher.jump(&self.replica, &changes);
        self.shared.horizon.send_replace(index);
        self.shared.lists_made.send_replace(wanted);
        Ok(heed)
    }

    /// Goes the steps that a list is ahead by, as long as etcd still knows them: watches of ours
    /// have to begin anew where steps are missing.
    async fn catch_up(&mut self, client: &Arc<Client>, index: Index, list: &[(Vec<u8>, Stored)]) {
        for _ in 0..STEPS {
            let next = *self.shared.horizon.borrow() + 1;
            let ahead = next <= index && {
                let mut replica = self.replica.clone();
                !replica
                    .relist(History::Same, list.iter().cloned())
                    .is_empty()
            };
            if !ahead {
                return;
            }
            // What has happened is told at once.
            let turn = timeout(STEP, self.turn(client, next)).await;
            match turn {
                Ok(Ok(Some(event))) if event.index() <= index => {
                    if self.step(event) == Heed::ListAgain {
                        return;
                    }
                }
                _ => return,
            }
        }
    }

    /// A record that is gone has no index, so a list does not tell when the last one went, and a
    /// catalog made of it would be older than what a deletion was acknowledged with. The events after
    /// the newest record, and after what was followed, tell. Where etcd has forgotten them, this much
    /// is certain: nothing was deleted after the list was made.
    async fn last_deletion(
        &self,
        client: &Client,
        followed: Index,
        list: &[(Vec<u8>, Stored)],
        index: Index,
    ) -> Option<(Vec<u8>, Stored)> {
        let layout = &self.config.layout;
        let records = list.iter().filter(|(key, _)| layout.place(key).is_some());
        let newest = records.map(|(_, stored)| stored.changed.0).max();
        let known = newest.unwrap_or(0).max(followed);
        let last = self.last_deletion_after(client, known, index).await?;
        let deletion = Stored {
            value: Default::default(),
            created: Revision(last),
            changed: Revision(last),
        };
        Some((layout.deleted().into_bytes(), deletion))
    }

    async fn last_deletion_after(
        &self,
        client: &Client,
        known: Index,
        index: Index,
    ) -> Option<Index> {
        let mut last = None;
        let mut seen = known;
        for _ in 0..STEPS {
            if seen >= index {
                return last;
            }
            let waiting = client.watch(&self.prefix, seen + 1).await.ok();
            let Some(waiting) = waiting.filter(|waiting| waiting.index >= index) else {
                return Some(index);
            };
            match timeout(SOON, waiting.event()).await {
                Err(_) => return last,
                Ok(Ok(Some(event))) if event.index() > index => return last,
                Ok(Ok(Some(event))) => {
                    seen = event.index();
                    if let Event::Deleted { key, .. } = event
                        && self.config.layout.place(key.as_bytes()).is_some()
                    {
                        last = Some(seen);
                    }
                }
                Ok(_) => return Some(index),
            }
        }
        Some(index)
    }

    /// Takes over one change after the other.
    async fn watch(&mut self, client: &Arc<Client>) -> Ended {
        let shared = Arc::clone(&self.shared);
        let mut wanted = shared.lists_wanted.subscribe();
        let listed = *shared.lists_made.borrow();
        let listed_is_not_enough = wanted.wait_for(|wanted| *wanted > listed);
        tokio::pin!(listed_is_not_enough);
        loop {
            let next = *shared.horizon.borrow() + 1;
            // Cancel safe: a change that was on its way is there again for the next watch.
            let turn = tokio::select! {
                turn = self.turn(client, next) => turn,
                _ = &mut listed_is_not_enough => return Ended::List,
            };
            match turn {
                Ok(Some(event)) => {
                    if self.step(event) == Heed::ListAgain {
                        return Ended::List;
                    }
                }
                Ok(None) => {}
                Err(ended) => return ended,
            }
        }
    }

    async fn turn(&mut self, client: &Arc<Client>, next: Index) -> Result<Option<Event>, Ended> {
        let waiting = match client.watch(&self.prefix, next).await {
            Ok(waiting) => waiting,
            Err(CallError::Refused(Refusal::Cleared)) => return Err(Ended::List),
            Err(error) => return Err(Ended::Away(error.to_string())),
        };
        self.greet(client, &waiting, next)?;
        waiting
            .event()
            .await
            .map_err(|e| Ended::Away(e.to_string()))
    }

    /// A member has taken up a watch: etcd is there, and it is the one that was listed.
    fn greet(&mut self, client: &Arc<Client>, waiting: &Waiting, next: Index) -> Result<(), Ended> {
        let is_other = waiting.cluster != self.cluster;
        if is_other {
            let first = self.cluster.is_empty();
            self.cluster.clone_from(&waiting.cluster);
            if !first {
                tracing::warn!(cluster = self.cluster, "etcd is another cluster now");
                self.history = History::Another;
                return Err(Ended::List);
            }
        }
        // A member that lags, or a store that was wiped: a list through the quorum tells which.
        if waiting.index + 1 < next && self.confirmed + 1 < next {
            return Err(Ended::List);
        }
        self.pause = FIRST_PAUSE;
        if self.shared.client.borrow().is_none() {
            self.publisher.connected(&waiting.endpoint, &self.cluster);
            self.shared.client.send_replace(Some(Arc::clone(client)));
        }
        Ok(())
    }

    fn step(&mut self, event: Event) -> Heed {
        let index = event.index();
        let updates = match event {
            Event::Put(record) => {
                let (key, stored) = stored(record);
                vec![(key, Some(stored))]
            }
            Event::Deleted { key, .. } => self.deleted(&key),
            Event::Directory { .. } => Vec::new(),
        };
        let changes = self.replica.step(Revision(index), updates);
        let heed = self.publisher.step(&self.replica, changes);
        self.shared.horizon.send_replace(index);
        heed
    }

    /// A key that is gone, and everything below it if it was a directory.
    fn deleted(&self, key: &str) -> Vec<(Vec<u8>, Option<Stored>)> {
        let below = format!("{key}/");
        let is_gone = |at: &String| at == key || at.starts_with(&below);
        let gone = self.replica.keys().filter(is_gone);
        gone.map(|key| (key.into_bytes(), None)).collect()
    }

    async fn away(&mut self, reason: String) {
        self.publisher.away(&reason);
        // Not all nodes of a fleet at once.
        let share = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(self.pause.mul_f64(share)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

/// The earlier system makes these when it starts.
fn directories(layout: &Layout) -> [String; 3] {
    let bare = |directory: String| directory.trim_end_matches('/').to_owned();
    [
        layout.prefix().to_owned(),
        bare(layout.services()),
        bare(layout.servers()),
    ]
}

fn stored(record: Record) -> (Vec<u8>, Stored) {
    let stored = Stored {
        value: record.value.into(),
        created: Revision(record.created),
        changed: Revision(record.modified),
    };
    (record.key.into_bytes(), stored)
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
