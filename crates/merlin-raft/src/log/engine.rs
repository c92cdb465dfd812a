//! The log as its users see it: changes that are acknowledged once durable, and reads.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;

use super::compact;
use super::error::{OpenError, ReadError, WriteError};
use super::layout::{Assembler, Ballot, Flaw, Position, Record, entry_key, parse_entry_key};
use super::mark::CommitMark;
use super::recover;
use super::tip;
use super::writer::{Change, Extent, Job, Writer};
use crate::contain::contain;

/// The durable log of one node. Changes happen in the order of the calls.
#[derive(Debug)]
pub struct LogEngine {
    dir: PathBuf,
    shared: Arc<Shared>,
    /// Unbounded: consensus waits for each change before it makes the next.
    jobs: Sender<Job>,
    mark: Mutex<CommitMark>,
    writer: Mutex<Option<JoinHandle<bool>>>,
}

/// Reads entries; cheap to clone, usable from any thread that may block.
#[derive(Clone, Debug)]
pub struct LogReader(Arc<Shared>);

/// Becomes ready when the change is durable.
#[derive(Debug)]
#[must_use = "the change may still fail"]
pub struct Ack(oneshot::Receiver<Result<(), WriteError>>);

#[derive(Debug)]
pub(super) struct Shared {
    /// Gone once the log is closed.
    db: RwLock<Option<sled::Db>>,
    state: Mutex<State>,
}

/// What the log holds, as far as it is durable.
#[derive(Debug)]
pub(super) struct State {
    pub(super) extent: Extent,
    pub(super) vote: Option<Ballot>,
    pub(super) committed: Option<Position>,
    /// Whether the writer looks at the mark of what is committed only when it is woken.
    pub(super) sleeps: bool,
    /// Counts removals: a reader that was overtaken by one starts again.
    removals: u64,
}

// === impl LogEngine ===

impl LogEngine {
    /// Whether there is a log in the directory, or something of one.
    pub(crate) fn exists(dir: &Path) -> bool {
        dir.join(tip::NAME).exists() || dir.join("sled").exists() || compact::is_between(dir)
    }

    /// Opens the log in `dir`, or makes a new one. Reads all of it once; blocks.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let opened = recover::open(dir)?;
        let (mark, marked) = CommitMark::open(dir).map_err(|source| OpenError::Io {
            action: "open the mark of what is committed in",
            path: dir.to_owned(),
            source,
        })?;
        // A mark beyond the log is one that outlived a power cut.
        let marked = marked.filter(|mark| {
            let last = opened.extent.last;
            last.is_some_and(|last| last >= *mark && last.index >= mark.index)
        });
        let shared = Arc::new(Shared {
            db: RwLock::new(Some(opened.db.clone())),
            state: Mutex::new(State {
                extent: opened.extent,
                vote: opened.vote,
                committed: opened.committed.max(marked),
                sleeps: false,
                removals: 0,
            }),
        });
        let (jobs, queue) = mpsc::channel();
        let writer = Writer::new(opened, Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(|source| OpenError::Io {
                action: "start the writer thread of",
                path: dir.to_owned(),
                source,
            })?;
        Ok(Self {
            dir: dir.to_owned(),
            shared,
            jobs,
            mark: Mutex::new(mark),
            writer: Mutex::new(Some(thread)),
        })
    }

    /// Adds entries after the last one; those that are purged already are passed over. A log that
    /// never held an entry takes any first index. After a crash a beginning of them may be there.
    pub fn append(&self, records: Vec<Record>) -> Ack {
        self.submit(Change::Append(records))
    }

    /// Removes the entries from `from` on.
    pub fn truncate(&self, from: u64) -> Ack {
        self.submit(Change::Truncate(from))
    }

    /// Removes the entries up to and including `upto`, which may be beyond the last one.
    pub fn purge(&self, upto: Position) -> Ack {
        self.submit(Change::Purge(upto))
    }

    pub fn save_vote(&self, vote: Ballot) -> Ack {
        self.submit(Change::Vote(vote))
    }

    /// Remembers how far the log is committed: at once for a process that follows this one, on
    /// disk with the next change or within a fraction of a second.
    pub fn save_committed(&self, committed: Option<Position>) -> Result<(), WriteError> {
        if let Some(position) = committed {
            let mut mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
            mark.write(position).map_err(WriteError::from)?;
        }
        let sleeps = {
            let mut state = self.shared.state();
            state.committed = committed;
            state.sleeps
        };
        // To wake the thread for each costs more than what it then does.
        if sleeps {
            self.jobs.send(Job::Wake).map_err(|_| WriteError::Closed)?;
        }
        Ok(())
    }

    /// The last entry; if there is none, where the purged ones end.
    pub fn last(&self) -> Option<Position> {
        self.shared.state().extent.last
    }

    pub fn purged(&self) -> Option<Position> {
        self.shared.state().extent.purged
    }

    pub fn committed(&self) -> Option<Position> {
        self.shared.state().committed
    }

    pub fn vote(&self) -> Option<Ballot> {
        self.shared.state().vote
    }

    pub fn reader(&self) -> LogReader {
        LogReader(Arc::clone(&self.shared))
    }

    /// Writes what is pending and gives the directory free, unless a write has failed. Blocks; later
    /// calls fail.
    pub fn close(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(writer) = writer.take() else {
            return;
        };
        // Fails only if the thread has ended, which is what is wanted.
        let _ = self.jobs.send(Job::Close);
        let written = writer.join().unwrap_or_else(|_| {
            tracing::error!("the writer thread of the raft log panicked");
            true
        });
        let db = self.shared.db.write();
        let db = db.unwrap_or_else(PoisonError::into_inner).take();
        // sled syncs its file once more when it goes, and asserts that it can.
        if contain(|| drop(db)).is_none() {
            tracing::error!("the disk failed when the raft log was closed");
            return;
        }
        if written && let Err(error) = recover::await_release(&self.dir) {
            tracing::warn!(%error, "the raft log is closed, but not free yet");
        }
    }

    fn submit(&self, change: Change) -> Ack {
        let (done, ack) = oneshot::channel();
        // If the thread has ended, the sender is dropped with the job and `ack` says so.
        let _ = self.jobs.send(Job::Change { change, done });
        Ack(ack)
    }
}

impl Drop for LogEngine {
    fn drop(&mut self) {
        self.close();
    }
}

// === impl Shared ===

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before entries go.
    pub(super) fn shrink(&self, extent: Extent) {
        let mut state = self.state();
        state.extent = extent;
        state.removals += 1;
    }
}

// === impl LogReader ===

impl LogReader {
    /// The entries with these indices, as far as there are any: from the first of them on, until
    /// their bytes exceed `limit`, but at least one. Blocks.
    pub fn read(&self, indices: Range<u64>, limit: usize) -> Result<Vec<Record>, ReadError> {
        let db = self.0.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = db.as_ref().ok_or(ReadError::Closed)?;
        loop {
            let (extent, removals) = {
                let state = self.0.state();
                (state.extent, state.removals)
            };
            let from = indices.start.max(extent.first());
            let to = indices.end.min(extent.end());
            match collect(db, from..to, limit) {
                // What was there may have been removed meanwhile.
                Err(_) if self.0.state().removals != removals => {}
                result => return result,
            }
        }
    }
}

fn collect(db: &sled::Db, indices: Range<u64>, limit: usize) -> Result<Vec<Record>, ReadError> {
    if indices.is_empty() {
        return Ok(Vec::new());
    }
    let bad = |(index, flaw): (u64, Flaw)| ReadError::BadEntry {
        index,
        flaw: flaw.to_string(),
    };
    let mut assembler = Assembler::default();
    let mut records = Vec::new();
    let mut bytes = 0;
    let mut expected = indices.start;
    for item in db.range(entry_key(indices.start)..entry_key(indices.end)) {
        let (key, value) = item.map_err(|e| ReadError::Failed(io::Error::from(e)))?;
        let Some((index, chunk)) = parse_entry_key(&key) else {
            continue;
        };
        let Some((_, record)) = assembler.push(index, chunk, &value).map_err(bad)? else {
            continue;
        };
        if index != expected {
            return Err(ReadError::Missing { index: expected });
        }
        expected += 1;
        bytes += record.bytes.len();
        if bytes > limit && !records.is_empty() {
            return Ok(records);
        }
        records.push(record);
    }
    assembler.finish().map_err(bad)?;
    if expected < indices.end {
        return Err(ReadError::Missing { index: expected });
    }
    Ok(records)
}

// === impl Ack ===

impl Ack {
    /// The answer that comes this way, or that the log is closed.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) const fn of(answer: oneshot::Receiver<Result<(), WriteError>>) -> Self {
        Self(answer)
    }

    /// For threads that may block.
    pub fn wait(self) -> Result<(), WriteError> {
        self.0.blocking_recv().unwrap_or(Err(WriteError::Closed))
    }
}

impl Future for Ack {
    type Output = Result<(), WriteError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.0).poll(cx));
        Poll::Ready(answer.unwrap_or(Err(WriteError::Closed)))
    }
}
