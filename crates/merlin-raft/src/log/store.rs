//! What openraft asks of a log, on top of [`LogEngine`].
//!
//! openraft 0.9 waits for its own disk before it sends an entry to anybody. A leader need not: its
//! copy may become durable while the others write theirs, as long as nothing comes of the entry
//! before it has. So what a leader appends is taken for written at once, and is waited for where
//! something comes of it: before this node applies it ([`LogStore::save_committed`]), which is before
//! anybody is answered, and before another node is told that it is committed (`network.rs`).
//!
//! ```text
//! append ─▶ own disk ───────────────┐
//!        `─▶ followers ─▶ quorum ─▶ settled ─▶ applied, answered, and told to the followers
//! ```
//!
//! What a crash takes from the leader then was in no quorum that counted it. It cannot come back in
//! the same term with something else, because a node that starts again never goes on leading.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::Shared;
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, RaftLogReader, StorageIOError};

use super::engine::{Ack, LogEngine};
use super::error::{OpenError, ReadError, WriteError};
use super::layout::{Ballot, Position, Record};
use super::tail::Tail;
use crate::codec;
use crate::mutants::{self, Mutant};
use crate::typ::{Entry, LogId, NodeId, StorageError, TypeConfig, Vote};

/// Bytes of entries kept in memory.
const TAIL: usize = 8 << 20;

/// Bytes of entries sent to a follower in one message; several times less than a peer accepts.
const MESSAGE: usize = 4 << 20;

/// What keeps the records of a log: that on the disk, or one of a simulation. The methods are those
/// of [`LogEngine`].
pub(crate) trait Engine: Debug + Send + Sync {
    fn append(&self, records: Vec<Record>) -> Ack;
    fn truncate(&self, from: u64) -> Ack;
    fn purge(&self, upto: Position) -> Ack;
    fn save_vote(&self, vote: Ballot) -> Ack;
    fn save_committed(&self, committed: Option<Position>) -> Result<(), WriteError>;
    fn last(&self) -> Option<Position>;
    fn purged(&self) -> Option<Position>;
    fn committed(&self) -> Option<Position>;
    fn vote(&self) -> Option<Ballot>;
    /// Blocks.
    fn read(&self, indices: Range<u64>, limit: usize) -> Result<Vec<Record>, ReadError>;
    /// Blocks.
    fn close(&self);
}

/// Changes by their first index, in order.
type Pending = VecDeque<(u64, Shared<Ack>)>;

/// Handle of the log; all clones are the same log.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    engine: Arc<dyn Engine>,
    tail: Arc<Mutex<Tail<Entry>>>,
    /// What this node has appended as the leader, and whether the disk has it.
    pending: Arc<Mutex<Pending>>,
    /// Whose log it is, once that is known.
    node: Option<NodeId>,
}

impl LogStore {
    /// Blocks.
    pub(crate) fn open(dir: &Path) -> Result<Self, OpenError> {
        Ok(Self::on(LogEngine::open(dir)?))
    }

    pub(crate) fn on(engine: impl Engine + 'static) -> Self {
        Self {
            engine: Arc::new(engine),
            tail: Arc::new(Mutex::new(Tail::new(TAIL))),
            pending: Arc::default(),
            node: None,
        }
    }

    /// The same log as this node finds it when it starts: it has voted for itself, but does not
    /// lead any more.
    ///
    /// Otherwise openraft has it go on as the leader of the same term, with what it knows of the
    /// commit index from before. Reads that it confirms then can miss what it had acknowledged.
    /// A new term begins with an entry of its own, and reads wait for that.
    pub(crate) fn of(&self, node: NodeId) -> Self {
        Self {
            node: Some(node),
            ..self.clone()
        }
    }

    /// Gives the directory free, also while openraft still holds handles. Blocks.
    pub(crate) fn close(&self) {
        self.engine.close();
    }

    fn tail(&self) -> MutexGuard<'_, Tail<Entry>> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready when the disk has what this node appended, up to and including this index.
    pub(crate) async fn settled(&self, upto: u64) -> Result<(), WriteError> {
        if mutants::active(Mutant::CommitBeforeFlush) {
            return Ok(());
        }
        let found = {
            let pending = self.pending();
            let begun = pending.iter().take_while(|(first, _)| *first <= upto);
            begun.last().cloned()
        };
        let Some((last, flush)) = found else {
            return Ok(());
        };
        flush.await?;
        self.pending().retain(|(first, _)| *first > last);
        Ok(())
    }

    /// A change that came after all that is pending is durable, and so are they. Every new term
    /// begins with one, so what is pending is always of one term.
    fn overtaken(&self) {
        self.pending().clear();
    }

    /// Whether an entry is one that this node decided upon, and not one that it was sent.
    fn is_own(&self, entry: &Entry) -> bool {
        let vote = self.engine.vote();
        vote.is_some_and(|vote| {
            vote.committed
                && Some(vote.node) == self.node
                && vote.term == entry.log_id.leader_id.term
        })
    }

    async fn read(&self, indices: Range<u64>, limit: usize) -> Result<Vec<Entry>, StorageError> {
        if let Some(entries) = self.tail().read(indices.clone(), limit) {
            return Ok(entries);
        }
        self.settled(u64::MAX)
            .await
            .map_err(|e| StorageIOError::read_logs(AnyError::new(&e)))?;
        let engine = Arc::clone(&self.engine);
        let decode = move || -> Result<Vec<Entry>, AnyError> {
            let records = engine.read(indices, limit).map_err(|e| AnyError::new(&e))?;
            let decoded = records.into_iter().map(|r| codec::decode_entry(r.bytes));
            decoded
                .collect::<Result<_, _>>()
                .map_err(|e| AnyError::new(&e))
        };
        let entries = tokio::task::spawn_blocking(decode)
            .await
            .unwrap_or_else(|e| Err(AnyError::new(&e)));
        entries.map_err(|e| StorageIOError::read_logs(e).into())
    }
}

impl Engine for LogEngine {
    fn append(&self, records: Vec<Record>) -> Ack {
        self.append(records)
    }

    fn truncate(&self, from: u64) -> Ack {
        self.truncate(from)
    }

    fn purge(&self, upto: Position) -> Ack {
        self.purge(upto)
    }

    fn save_vote(&self, vote: Ballot) -> Ack {
        self.save_vote(vote)
    }

    fn save_committed(&self, committed: Option<Position>) -> Result<(), WriteError> {
        self.save_committed(committed)
    }

    fn last(&self) -> Option<Position> {
        self.last()
    }

    fn purged(&self) -> Option<Position> {
        self.purged()
    }

    fn committed(&self) -> Option<Position> {
        self.committed()
    }

    fn vote(&self) -> Option<Ballot> {
        self.vote()
    }

    fn read(&self, indices: Range<u64>, limit: usize) -> Result<Vec<Record>, ReadError> {
        self.reader().read(indices, limit)
    }

    fn close(&self) {
        self.close();
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start..end, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.read(start..end, MESSAGE).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        Ok(LogState {
            last_purged_log_id: self.engine.purged().map(log_id),
            last_log_id: self.engine.last().map(log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let ballot = Ballot {
            term: vote.leader_id.term,
            node: vote.leader_id.voted_for.unwrap_or_default(),
            committed: vote.committed,
        };
        let saved = self.engine.save_vote(ballot).await;
        saved
            .inspect(|()| self.overtaken())
            .map_err(|e| StorageIOError::write_vote(AnyError::new(&e)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let vote = self.engine.vote();
        Ok(vote.map(
            |Ballot {
                 term,
                 node,
                 committed,
             }| codec::ballot(term, node, committed && self.node != Some(node)),
        ))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        if let Some(committed) = &committed {
            let settled = self.settled(committed.index).await;
            settled.map_err(write_failed)?;
        }
        let saved = self.engine.save_committed(committed.as_ref().map(position));
        saved.map_err(write_failed)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.engine.committed().map(log_id))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let records = entries.iter().map(|entry| Record {
            position: position(&entry.log_id),
            bytes: codec::encode_entry(entry).into(),
        });
        let records: Vec<Record> = records.collect();
        let sizes: Vec<usize> = records.iter().map(|record| record.bytes.len()).collect();
        let own = entries.first().filter(|first| self.is_own(first));
        let own = own.map(|first| first.log_id.index);

        let flush = self.engine.append(records);
        let appended = match own {
            Some(first) => {
                self.pending().push_back((first, flush.shared()));
                Ok(())
            }
            None => flush.await.inspect(|()| self.overtaken()),
        };
        if appended.is_ok() {
            let mut tail = self.tail();
            for (entry, size) in entries.into_iter().zip(sizes) {
                tail.push(entry.log_id.index, entry, size);
            }
        }
        callback.log_io_completed(appended.clone().map_err(io::Error::other));
        appended.map_err(write_failed)
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.tail().truncate(log_id.index);
        let truncated = self.engine.truncate(log_id.index).await;
        truncated
            .inspect(|()| self.overtaken())
            .map_err(write_failed)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.tail().purge(log_id.index);
        let purged = self.engine.purge(position(&log_id)).await;
        purged.map_err(write_failed)
    }
}

fn write_failed(error: WriteError) -> StorageError {
    StorageIOError::write_logs(AnyError::new(&error)).into()
}

pub(crate) fn position(id: &LogId) -> Position {
    Position {
        term: id.leader_id.term,
        index: id.index,
    }
}

fn log_id(position: Position) -> LogId {
    codec::log_id(position.term, position.index)
}

#[cfg(test)]
mod tests;
