//! openraft's own suite for storage, on the real log and the real state machine; and changes that
//! a crash cut in two.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::compact::{self, Limits};
use super::layout::{Ballot, Meta, Position, Record, Write, chunk_key};
use super::{LogEngine, LogStore, OpenError, journal, recover};
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
    let position = Position { term: 1, index };
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

const VOTE: Ballot = Ballot {
    term: 7,
    node: 2,
    committed: true,
};

/// Anything is too large.
const NONE: Limits = Limits {
    large: 0,
    excess: 1,
};

/// A log of a few entries in a file that has held many.
fn outgrown() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let log = LogEngine::open(dir.path()).unwrap();
    for round in 0..20 {
        let entries = (round * 50)..(round + 1) * 50;
        let entries = entries.map(|index| record(index, 4000)).collect();
        log.append(entries).wait().unwrap();
    }
    log.save_vote(VOTE).wait().unwrap();
    log.purge(record(990, 0).position).wait().unwrap();
    log.save_committed(Some(record(995, 0).position)).unwrap();
    log.close();
    dir
}

fn assert_outgrown(dir: &TempDir) {
    let log = LogEngine::open(dir.path()).unwrap();
    assert_eq!(log.purged().unwrap().index, 990);
    assert_eq!(log.last().unwrap().index, 999);
    assert_eq!(log.committed().unwrap().index, 995);
    assert_eq!(log.vote(), Some(VOTE));
    let read = log.reader().read(0..u64::MAX, usize::MAX).unwrap();
    let expected: Vec<_> = (991..1000).map(|index| record(index, 4000)).collect();
    assert_eq!(read, expected);
    log.append(vec![record(1000, 10)]).wait().unwrap();
    log.truncate(1000).wait().unwrap();
}

/// Which file the log is in, and its size. sled cuts free segments off the end of its file whenever it
/// likes, so only the first tells whether the log was written anew.
fn file(dir: &TempDir) -> (u64, u64) {
    let file = std::fs::metadata(dir.path().join("sled/db")).unwrap();
    (file.ino(), file.len())
}

#[test]
fn a_log_in_a_file_too_large_for_it_is_written_anew() {
    let dir = outgrown();
    let (outgrown, before) = file(&dir);
    drop(recover::open_within(dir.path(), Limits::default()).unwrap());
    assert_eq!(file(&dir).0, outgrown, "it is not large");
    drop(recover::open_within(dir.path(), NONE).unwrap());
    let (anew, after) = file(&dir);
    assert_ne!(anew, outgrown);
    assert!(after * 2 < before, "{before} bytes have become {after}");
    assert_outgrown(&dir);
    let left = std::fs::read_dir(dir.path()).unwrap();
    let left: Vec<_> = left.map(|file| file.unwrap().file_name()).collect();
    let copies = left
        .iter()
        .filter(|name| name.to_string_lossy().contains("sled."));
    assert_eq!(copies.count(), 0, "{left:?}");
}

#[test]
fn a_crash_while_it_is_written_anew_costs_nothing() {
    // While the copy is written: what there is of it is no log.
    let dir = outgrown();
    let unfinished = dir.path().join("sled.new");
    std::fs::create_dir(&unfinished).unwrap();
    std::fs::write(unfinished.join("db"), "half").unwrap();
    assert_outgrown(&dir);
    assert!(!unfinished.exists());

    // Between the two renames, and before the old one is gone.
    for renames in 1..=2 {
        let dir = outgrown();
        let opened = recover::open_within(dir.path(), Limits::default()).unwrap();
        let (_, copy) = compact::copy(dir.path(), &opened.db).unwrap();
        drop((copy, opened));
        recover::await_release(dir.path()).unwrap();
        let at = |name| dir.path().join(name);
        std::fs::rename(at("sled"), at("sled.old")).unwrap();
        assert!(LogEngine::exists(dir.path()));
        if renames == 2 {
            std::fs::rename(at("sled.new"), at("sled")).unwrap();
        }
        assert_outgrown(&dir);
        assert!(!at("sled.old").exists() && !at("sled.new").exists());
    }
}

#[test]
fn a_log_is_written_anew_when_it_is_large_and_mostly_empty() {
    let limits = Limits::default();
    let mib = 1 << 20;
    assert!(!limits.exceeded(64 * mib, 0));
    assert!(!limits.exceeded(65 * mib, 5 * mib));
    assert!(limits.exceeded(65 * mib, 4 * mib));
}

/// The files of a log as they are while it is open: what the next process finds after a kill.
fn killed(log: &TempDir) -> TempDir {
    fn copy(from: &std::path::Path, to: &std::path::Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &to);
            } else {
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy(log.path(), dir.path());
    dir
}

#[test]
fn what_only_the_journal_has_is_there_for_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogEngine::open(dir.path()).unwrap();
    for index in 0..5 {
        log.append(vec![record(index, 5000)]).wait().unwrap();
    }
    log.truncate(3).wait().unwrap();
    log.append(vec![record(3, 7)]).wait().unwrap();
    log.save_vote(VOTE).wait().unwrap();
    log.purge(record(0, 0).position).wait().unwrap();

    let found = killed(&dir);
    // Killed again before it wrote anything, and again.
    for found in [killed(&found), killed(&found), found] {
        let log = LogEngine::open(found.path()).unwrap();
        let records = log.reader().read(0..u64::MAX, usize::MAX).unwrap();
        assert_eq!(records, [record(1, 5000), record(2, 5000), record(3, 7)]);
        assert_eq!(log.vote(), Some(VOTE));
    }
}

#[test]
fn a_log_without_its_journal_is_refused() {
    let dir = outgrown();
    std::fs::remove_file(dir.path().join(journal::NAME)).unwrap();
    let error = LogEngine::open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("journal"), "{error}");
}
