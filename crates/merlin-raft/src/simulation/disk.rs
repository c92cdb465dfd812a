//! A log on a simulated disk, which takes its time to sync, and whose power can be cut.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::log::{Ack, Ballot, Engine, Position, ReadError, Record, WriteError};
use crate::mutants::{self, Mutant};

/// What a disk holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    records: BTreeMap<u64, Record>,
    purged: Option<Position>,
    vote: Option<Ballot>,
    committed: Option<Position>,
}

#[derive(Clone, Debug)]
enum Step {
    Append(Record),
    Truncate(u64),
    Purge(Position),
    Vote(Ballot),
    Committed(Option<Position>),
}

/// Handle of the disk; all clones are the same disk.
#[derive(Clone, Debug)]
pub(crate) struct SimulatedDisk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    /// As the running process sees it.
    live: Contents,
    /// As it is found when the power has been cut.
    synced: Contents,
    /// What is between the two, oldest first.
    pending: VecDeque<Step>,
    /// Steps that ever began to be pending.
    taken: u64,
    /// How long a sync takes.
    latency: Duration,
    off: bool,
}

impl Contents {
    fn take(&mut self, step: Step) {
        match step {
            Step::Append(record) => {
                let index = record.position.index;
                if self.purged.is_none_or(|purged| purged.index < index) {
                    self.records.insert(index, record);
                }
            }
            Step::Truncate(from) => drop(self.records.split_off(&from)),
            Step::Purge(upto) => {
                self.records = self.records.split_off(&(upto.index + 1));
                self.purged = Some(upto);
            }
            Step::Vote(vote) => self.vote = Some(vote),
            Step::Committed(position) => self.committed = position,
        }
    }
}

impl Inner {
    fn sync(&mut self, upto: u64) {
        while self.taken - (self.pending.len() as u64) < upto
            && let Some(step) = self.pending.pop_front()
        {
            self.synced.take(step);
        }
    }

    fn begin(&mut self, step: Step) {
        self.live.take(step.clone());
        self.pending.push_back(step);
        self.taken += 1;
    }
}

impl SimulatedDisk {
    pub(crate) fn holding(contents: Contents, latency: Duration) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            live: contents.clone(),
            synced: contents,
            pending: VecDeque::new(),
            taken: 0,
            latency,
            off: false,
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn slow(&self, latency: Duration) {
        self.inner().latency = latency;
    }

    /// Ends the process's use of the disk and tells what is on it: what was synced, and as many of
    /// the steps that were not as `kept` says of their number.
    pub(crate) fn cut(&self, kept: impl FnOnce(usize) -> usize) -> Contents {
        let mut inner = self.inner();
        inner.off = true;
        let kept = kept(inner.pending.len()).min(inner.pending.len());
        let upto = inner.taken - (inner.pending.len() - kept) as u64;
        inner.sync(upto);
        inner.synced.clone()
    }

    fn submit(&self, steps: impl IntoIterator<Item = Step>) -> Ack {
        let (done, ack) = oneshot::channel();
        let (upto, latency) = {
            let mut inner = self.inner();
            if inner.off {
                // The sender is dropped, and that is the answer.
                return Ack::of(ack);
            }
            steps.into_iter().for_each(|step| inner.begin(step));
            (inner.taken, inner.latency)
        };
        let disk = self.clone();
        tokio::spawn(async move {
            if mutants::active(Mutant::AckBeforeFlush) {
                let _ = done.send(Ok(()));
                disk.sync_in(upto, latency).await;
            } else if disk.sync_in(upto, latency).await {
                // Nobody need wait for it.
                let _ = done.send(Ok(()));
            }
        });
        Ack::of(ack)
    }

    /// False when the power was cut before.
    async fn sync_in(&self, upto: u64, latency: Duration) -> bool {
        tokio::time::sleep(latency).await;
        let mut inner = self.inner();
        if !inner.off {
            inner.sync(upto);
        }
        !inner.off
    }
}

impl Engine for SimulatedDisk {
    fn append(&self, records: Vec<Record>) -> Ack {
        self.submit(records.into_iter().map(Step::Append))
    }

    fn truncate(&self, from: u64) -> Ack {
        self.submit([Step::Truncate(from)])
    }

    fn purge(&self, upto: Position) -> Ack {
        self.submit([Step::Purge(upto)])
    }

    fn save_vote(&self, vote: Ballot) -> Ack {
        self.submit([Step::Vote(vote)])
    }

    fn save_committed(&self, committed: Option<Position>) -> Result<(), WriteError> {
        let mut inner = self.inner();
        if inner.off {
            return Err(WriteError::Closed);
        }
        inner.begin(Step::Committed(committed));
        Ok(())
    }

    fn last(&self) -> Option<Position> {
        let inner = self.inner();
        let last = inner.live.records.last_key_value();
        last.map(|(_, record)| record.position)
            .or(inner.live.purged)
    }

    fn purged(&self) -> Option<Position> {
        self.inner().live.purged
    }

    fn committed(&self) -> Option<Position> {
        self.inner().live.committed
    }

    fn vote(&self) -> Option<Ballot> {
        self.inner().live.vote
    }

    fn read(&self, indices: Range<u64>, limit: usize) -> Result<Vec<Record>, ReadError> {
        let inner = self.inner();
        let mut records = Vec::new();
        let mut bytes = 0;
        for (_, record) in inner.live.records.range(indices) {
            bytes += record.bytes.len();
            if bytes > limit && !records.is_empty() {
                break;
            }
            records.push(record.clone());
        }
        Ok(records)
    }

    fn close(&self) {
        self.inner().off = true;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use openraft::testing::{StoreBuilder, Suite};

    use super::*;
    use crate::level::Level;
    use crate::log::LogStore;
    use crate::snapshot::Snapshots;
    use crate::state::{State, StateMachine};
    use crate::typ::{StorageError, TypeConfig};

    struct Simulated;

    impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Simulated {
        async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError> {
            let dir = tempfile::tempdir().unwrap();
            let disk = SimulatedDisk::holding(Contents::default(), Duration::ZERO);
            let snapshots = Snapshots::open(dir.path().join("snapshots")).unwrap();
            let (machine, _views) =
                StateMachine::new(State::default(), Arc::new(snapshots), Level::LATEST);
            Ok((dir, LogStore::on(disk), machine))
        }
    }

    #[test]
    fn it_is_what_consensus_expects_of_a_log() {
        Suite::test_all(Simulated).unwrap();
    }

    fn record(index: u64) -> Record {
        let position = Position { term: 1, index };
        let bytes = Bytes::new();
        Record { position, bytes }
    }

    #[tokio::test(start_paused = true)]
    async fn without_power_what_was_acknowledged_stays_and_of_the_rest_a_beginning() {
        let disk = SimulatedDisk::holding(Contents::default(), Duration::from_millis(5));
        disk.append(vec![record(1)]).await.unwrap();
        let late = disk.append(vec![record(2), record(3), record(4)]);
        assert_eq!(disk.last(), Some(record(4).position));
        let found = disk.cut(|pending| pending - 1);
        assert_eq!(found.records.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
        assert!(late.await.is_err());
        assert!(disk.append(vec![record(5)]).await.is_err());
    }
}
