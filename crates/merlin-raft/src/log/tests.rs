//! openraft's own suite for storage, on the real log and the real state machine; and changes that
//! a crash cut in two.

use std::sync::Arc;

use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::layout::{Meta, Position, Record, Write, chunk_key};
use super::{LogEngine, LogStore};
use crate::snapshot::Snapshots;
use crate::state::{State, StateMachine};
use crate::typ::{StorageError, TypeConfig};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let store = LogStore::open(&dir.path().join("log")).unwrap();
        let snapshots = Snapshots::open(dir.path().join("snapshots")).unwrap();
        let (machine, _) =
            StateMachine::new(State::default(), Arc::new(snapshots), crate::Level::LATEST);
        Ok((dir, store, machine))
    }
}

#[test]
fn the_log_passes_the_suite_of_openraft() {
    Suite::test_all(Builder).unwrap();
}

fn record(index: u64, size: usize) -> Record {
    let position = Position {
        term: 1,
        node: 1,
        index,
    };
    let bytes = vec![9; size].into();
    Record { position, bytes }
}

/// A log of small entries 0 to 4, closed, with these writes done behind its back: what a crash
/// between two batches of a change leaves.
fn interrupted(writes: &[Write]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let log = LogEngine::open(dir.path()).unwrap();
    log.append((0..5).map(|index| record(index, 10)).collect())
        .wait()
        .unwrap();
    log.close();
    let db = sled::open(dir.path().join("sled")).unwrap();
    for (key, value) in writes {
        match value {
            Some(value) => db.insert(key, value.as_slice()).unwrap(),
            None => db.remove(key).unwrap(),
        };
    }
    db.flush().unwrap();
    dir
}

/// Opens it twice, the second time after an append, and gives the indices before and after.
fn opened(dir: &TempDir) -> Vec<u64> {
    let indices = |log: &LogEngine| -> Vec<u64> {
        let records = log.reader().read(0..u64::MAX, usize::MAX).unwrap();
        records.iter().map(|record| record.position.index).collect()
    };
    let log = LogEngine::open(dir.path()).unwrap();
    let mut found = indices(&log);
    let next = log.last().unwrap().index + 1;
    log.append(vec![record(next, 9000)]).wait().unwrap();
    log.close();
    found.push(next);
    assert_eq!(indices(&LogEngine::open(dir.path()).unwrap()), found);
    found.pop();
    found
}

#[test]
fn an_append_may_be_interrupted_after_any_write() {
    let new = record(5, 20_000);
    let before = (0..5).fold(0, |sum, index| record(index, 10).checksum(sum));
    let writes: Vec<Write> = new.writes(before, new.checksum(before)).collect();
    assert_eq!(writes.len(), 5);
    for done in 0..writes.len() {
        assert_eq!(opened(&interrupted(&writes[..done])), [0, 1, 2, 3, 4]);
    }
    assert_eq!(opened(&interrupted(&writes)), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_purge_may_be_interrupted_after_any_write() {
    let mark = (Meta::Purged.key(), Some(record(2, 0).position.encode()));
    let removed = (0..3).map(|index| (chunk_key(index, 0), None));
    let writes: Vec<Write> = std::iter::once(mark).chain(removed).collect();
    for done in 1..=writes.len() {
        assert_eq!(opened(&interrupted(&writes[..done])), [3, 4]);
    }
}

#[test]
fn a_truncation_may_be_interrupted_after_any_write() {
    let big = record(5, 9000);
    let before = (0..5).fold(0, |sum, index| record(index, 10).checksum(sum));
    let mut writes: Vec<Write> = big.writes(before, big.checksum(before)).collect();
    let added = writes.len();
    writes.extend((0..3).map(|chunk| (chunk_key(5, chunk), None)));
    for done in added + 1..=writes.len() {
        assert_eq!(opened(&interrupted(&writes[..done])), [0, 1, 2, 3, 4]);
    }
}
