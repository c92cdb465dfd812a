//! The one thread that changes the log. It takes every change that waits, writes them as one
//! batch, makes the batch durable, and answers in the order of arrival.

use std::cmp::Reverse;
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::batch::Batch;
use super::engine::Shared;
use super::error::WriteError;
use super::journal::Journal;
use super::layout::{
    Ballot, Header, MAX_PAYLOAD, Meta, Position, Record, Write, chunk_key, entry_key,
    parse_entry_key,
};
use super::recover::Opened;
use super::tip::{Tip, TipFile};
use crate::mutants::{self, Mutant};

/// Bytes written between two syncs. sled re-uses a segment (512 KiB) of its file once what
/// replaces its contents was *written* one segment further on, and writes about three bytes for
/// one of ours: below this limit the replacement is also *synced* by then.
const BATCH: usize = 128 << 10;

/// How long sled may lack what the journal has, in memory.
const SETTLE_EVERY: Duration = Duration::from_secs(1);

/// How old the tip may become. It only limits what a damaged file can lose unnoticed, so it need
/// not cost a sync for each write.
const TIP_EVERY: Duration = Duration::from_secs(1);

/// How long the mark of what is committed waits for a change to travel with.
const LAZY: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) enum Change {
    Append(Vec<Record>),
    /// Removes this index and all above.
    Truncate(u64),
    /// Removes this index and all below.
    Purge(Position),
    Vote(Ballot),
}

type Done = oneshot::Sender<Result<(), WriteError>>;

#[derive(Debug)]
pub(super) enum Job {
    Change {
        change: Change,
        done: Done,
    },
    /// There is something to see to soon; nobody waits for it.
    Wake,
    Close,
}

/// Which part of the log there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where the log began, if nothing is purged.
    pub(super) start: u64,
    pub(super) purged: Option<Position>,
    /// The last entry; if there is none, where the purged ones end.
    pub(super) last: Option<Position>,
}

impl Extent {
    pub(super) fn first(&self) -> u64 {
        self.purged.map_or(self.start, |purged| purged.index + 1)
    }

    /// All indices that there are entries for; empty if end < start.
    pub(super) fn end(&self) -> u64 {
        self.last.map_or(self.start, |last| last.index + 1)
    }
}

/// A chunk of an entry in the database.
#[derive(Debug)]
struct Stored {
    index: u64,
    chunk: u16,
    length: usize,
}

#[derive(Debug)]
pub(super) struct Writer {
    db: sled::Db,
    disk: File,
    journal: Journal,
    tip: TipFile,
    _lock: File,
    shared: Arc<Shared>,
    extent: Extent,
    vote: Option<Ballot>,
    /// Of the last entry; zero where the log begins.
    checksum: u32,
    batch: Batch,
    weight: usize,
    /// Of what only the journal makes durable, and since when.
    unsettled: usize,
    unsettled_since: Option<Instant>,
    /// Complete changes whose last write is in `batch` or before.
    waiting: Vec<Done>,
    /// What is committed, as the batch or the disk has it.
    committed: Option<Position>,
    /// When to look whether more is, though nothing changes.
    lazy: Option<Instant>,
    tip_written: Instant,
    /// Set once: after a failed write nobody knows what is on disk.
    failure: Option<WriteError>,
}

impl Writer {
    pub(super) fn new(opened: Opened, shared: Arc<Shared>) -> Self {
        Self {
            db: opened.db,
            disk: opened.disk,
            journal: opened.journal,
            committed: opened.committed,
            tip: opened.tip,
            _lock: opened.lock,
            shared,
            extent: opened.extent,
            vote: opened.vote,
            checksum: opened.checksum,
            batch: Batch::default(),
            weight: 0,
            unsettled: 0,
            unsettled_since: None,
            waiting: Vec::new(),
            lazy: None,
            tip_written: Instant::now(),
            failure: None,
        }
    }

    /// Says at the end whether every write succeeded.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) -> bool {
        loop {
            self.lie_down();
            let job = match self.deadline() {
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => jobs.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            self.shared.state().sleeps = false;
            let mut next = match job {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            while let Some(job) = next {
                match job {
                    Job::Change { change, done } => self.take(change, done),
                    Job::Wake => {}
                    Job::Close => return self.close(),
                }
                next = jobs.try_recv().ok();
            }
            let due = self.lazy.is_some_and(|at| at <= Instant::now());
            if due || !self.waiting.is_empty() {
                self.lazy = (!due).then(|| Instant::now() + LAZY);
                self.attempt(|writer| {
                    writer.save_committed()?;
                    writer.commit()
                });
            }
            if self
                .unsettled_since
                .is_some_and(|since| since.elapsed() >= SETTLE_EVERY)
            {
                self.attempt(Self::settle);
            }
            if self.tip_is_old() && self.tip_written.elapsed() >= TIP_EVERY {
                self.attempt(Self::raise_tip);
            }
        }
        self.close()
    }

    fn close(mut self) -> bool {
        // Whoever has something to say now is told that nobody listens.
        self.shared.state().sleeps = true;
        self.attempt(|writer| {
            writer.save_committed()?;
            writer.commit()?;
            writer.settle()?;
            writer.raise_tip()
        });
        if self.failure.is_some() {
            // sled syncs its file when it goes, and panics where that fails. It may stay open
            // instead: a store that has failed ends with the process.
            std::mem::forget(self.db.clone());
        }
        self.failure.is_none()
    }

    /// To be called before waiting for a job.
    fn lie_down(&mut self) {
        let mut state = self.shared.state();
        if self.lazy.is_none() && self.failure.is_none() && state.committed != self.committed {
            self.lazy = Some(Instant::now() + LAZY);
        }
        state.sleeps = self.lazy.is_none();
    }

    /// When to act without being asked to.
    fn deadline(&self) -> Option<Instant> {
        let tip = self.tip_is_old().then(|| self.tip_written + TIP_EVERY);
        let settle = self.unsettled_since.map(|since| since + SETTLE_EVERY);
        [self.lazy, tip, settle].into_iter().flatten().min()
    }

    fn take(&mut self, change: Change, done: Done) {
        let result = match &self.failure {
            Some(failure) => Err(failure.clone()),
            None => self.change(change),
        };
        match result {
            Ok(()) => self.waiting.push(done),
            Err(error) => {
                if !matches!(
                    error,
                    WriteError::TooLarge { .. } | WriteError::NotNext { .. }
                ) {
                    self.fail(&error);
                }
                let _ = done.send(Err(error));
            }
        }
    }

    fn attempt(&mut self, work: impl FnOnce(&mut Self) -> Result<(), WriteError>) {
        if self.failure.is_none()
            && let Err(error) = work(self)
        {
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &WriteError) {
        if self.failure.is_none() {
            tracing::error!(%error, "the raft log takes no more writes");
            self.failure = Some(error.clone());
        }
        self.lazy = None;
        self.unsettled_since = None;
        for done in self.waiting.drain(..) {
            let _ = done.send(Err(error.clone()));
        }
    }

    // === Changes ===

    fn change(&mut self, change: Change) -> Result<(), WriteError> {
        match change {
            Change::Append(records) => self.append(&records),
            Change::Truncate(from) => self.truncate(from),
            Change::Purge(upto) => self.purge(upto),
            Change::Vote(vote) => self.save_vote(vote),
        }
    }

    fn append(&mut self, records: &[Record]) -> Result<(), WriteError> {
        // What is purged was there once, and need not be there again.
        let purged = self.extent.purged.map_or(0, |purged| purged.index + 1);
        let known = records.partition_point(|record| record.position.index < purged);
        let records = &records[known..];
        let Some(first) = records.first() else {
            return Ok(());
        };
        // A log that never held anything may begin anywhere; it is remembered where.
        let begins = self.extent.last.is_none();
        let start = if begins {
            first.position.index
        } else {
            self.extent.end()
        };
        for (expected, record) in (start..).zip(records) {
            let index = record.position.index;
            if index != expected {
                return Err(WriteError::NotNext { index, expected });
            }
            if record.is_too_large() {
                let (size, limit) = (record.bytes.len(), MAX_PAYLOAD);
                return Err(WriteError::TooLarge { index, size, limit });
            }
        }
        if begins && start != self.extent.start {
            self.put(Meta::Start, start.to_be_bytes().to_vec())?;
            self.extent.start = start;
        }
        for record in records {
            let checksum = record.checksum(self.checksum);
            for write in record.writes(self.checksum, checksum) {
                self.write(write)?;
            }
            self.checksum = checksum;
            self.extent.last = Some(record.position);
        }
        Ok(())
    }

    fn truncate(&mut self, from: u64) -> Result<(), WriteError> {
        if from >= self.extent.end() {
            return Ok(());
        }
        self.commit()?;
        let from = from.max(self.extent.first());
        let (last, checksum) = if from == self.extent.first() {
            (self.extent.purged, 0)
        } else {
            let before = self.db.get(entry_key(from - 1))?;
            let before = before.and_then(|chunk| Header::decode(from - 1, &chunk));
            let before = before.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
            (Some(before.position), before.checksum)
        };
        // Before the first entry goes: a crash in between must not look like a loss.
        if self.tip.tip().last > last {
            self.write_tip(last)?;
        }
        self.extent.last = last;
        self.checksum = checksum;
        self.shared.shrink(self.extent);
        let mut found = self.stored(from..=u64::MAX)?;
        found.sort_by_key(|stored| (Reverse(stored.index), stored.chunk));
        self.remove(&found)
    }

    fn purge(&mut self, upto: Position) -> Result<(), WriteError> {
        if self.extent.purged.is_some_and(|purged| purged >= upto) {
            return Ok(());
        }
        self.commit()?;
        let first = self.extent.first();
        self.put(Meta::Purged, upto.encode())?;
        self.extent.purged = Some(upto);
        if self.extent.last.is_none_or(|last| last.index <= upto.index) {
            self.extent.last = Some(upto);
        }
        self.shared.shrink(self.extent);
        let found = self.stored(first..=upto.index)?;
        self.remove(&found)
    }

    fn save_vote(&mut self, vote: Ballot) -> Result<(), WriteError> {
        self.put(Meta::Vote, vote.encode())?;
        self.vote = Some(vote);
        self.commit()?;
        // Votes are rare, and forgetting one can elect two leaders.
        self.raise_tip()?;
        self.shared.state().vote = Some(vote);
        Ok(())
    }

    fn save_committed(&mut self) -> Result<(), WriteError> {
        let committed = self.shared.state().committed;
        if committed == self.committed {
            return Ok(());
        }
        match committed {
            Some(committed) => self.put(Meta::Committed, committed.encode())?,
            None => self.write((Meta::Committed.key(), None))?,
        }
        self.committed = committed;
        Ok(())
    }

    // === Writing ===

    fn put(&mut self, meta: Meta, value: Vec<u8>) -> Result<(), WriteError> {
        self.write((meta.key(), Some(value)))
    }

    /// Adds to the batch; a full one is made durable first.
    fn write(&mut self, write: Write) -> Result<(), WriteError> {
        let (key, value) = &write;
        let weight = key.len() + value.as_ref().map_or(0, Vec::len);
        self.make_room(weight)?;
        self.batch.add(write);
        Ok(())
    }

    /// Removing a value makes sled write its neighbours again, so it weighs what it holds.
    fn remove(&mut self, found: &[Stored]) -> Result<(), WriteError> {
        for stored in found {
            self.make_room(2 * stored.length)?;
            self.batch
                .add((chunk_key(stored.index, stored.chunk), None));
        }
        Ok(())
    }

    fn make_room(&mut self, weight: usize) -> Result<(), WriteError> {
        // What sled adds to each item.
        let weight = weight + 64;
        if self.weight + weight > BATCH {
            self.commit()?;
        }
        self.weight += weight;
        Ok(())
    }

    /// Makes durable what is in the batch, and tells those whose changes are complete with it.
    fn commit(&mut self) -> Result<(), WriteError> {
        if self.weight > 0 {
            let weight = std::mem::take(&mut self.weight);
            let batch = std::mem::take(&mut self.batch);
            if self.unsettled + weight > BATCH {
                self.settle()?;
            }
            self.journal(&batch)?;
            batch.apply(&self.db)?;
            self.unsettled += weight;
            self.unsettled_since.get_or_insert_with(Instant::now);
            // What is durable in a file without a name is gone with this process.
            if self.journal.is_removed()? {
                return Err(WriteError::Removed);
            }
        }
        self.shared.state().extent = self.extent;
        for done in self.waiting.drain(..) {
            // A receiver that is gone has lost interest, which is its right.
            let _ = done.send(Ok(()));
        }
        Ok(())
    }

    /// Returns when the batch would survive a power cut.
    fn journal(&mut self, batch: &Batch) -> Result<(), WriteError> {
        if mutants::active(Mutant::AckBeforeFlush) || self.journal.append(batch)? {
            return Ok(());
        }
        self.settle()?;
        match self.journal.append(batch)? {
            true => Ok(()),
            // It is far smaller than the journal.
            false => Err(io::Error::from(io::ErrorKind::StorageFull).into()),
        }
    }

    /// Makes durable in sled what the journal has.
    fn settle(&mut self) -> Result<(), WriteError> {
        if self.unsettled == 0 {
            return Ok(());
        }
        let generation = self.journal.generation();
        let mut batch = Batch::default();
        batch.add((Meta::Journal.key(), Some(generation.to_be_bytes().to_vec())));
        batch.persist(&self.db, &self.disk)?;
        if self.disk.metadata()?.nlink() == 0 {
            return Err(WriteError::Removed);
        }
        self.journal.begin_anew();
        self.unsettled = 0;
        self.unsettled_since = None;
        Ok(())
    }

    /// Keys and length of what is stored of these entries.
    fn stored(&self, indices: RangeInclusive<u64>) -> Result<Vec<Stored>, WriteError> {
        let to = chunk_key(*indices.end(), u16::MAX);
        let mut found = Vec::new();
        for item in self.db.range(entry_key(*indices.start())..=to) {
            let (key, value) = item?;
            if let Some((index, chunk)) = parse_entry_key(&key) {
                let length = value.len();
                found.push(Stored {
                    index,
                    chunk,
                    length,
                });
            }
        }
        Ok(found)
    }

    // === The tip ===

    fn acknowledged(&self) -> Tip {
        Tip {
            last: self.extent.last,
            vote: self.vote,
        }
    }

    fn tip_is_old(&self) -> bool {
        self.failure.is_none() && *self.tip.tip() != self.acknowledged()
    }

    fn raise_tip(&mut self) -> Result<(), WriteError> {
        self.write_tip(self.extent.last)
    }

    fn write_tip(&mut self, last: Option<Position>) -> Result<(), WriteError> {
        let vote = self.vote;
        self.tip.write(Tip { last, vote })?;
        self.tip_written = Instant::now();
        Ok(())
    }
}
