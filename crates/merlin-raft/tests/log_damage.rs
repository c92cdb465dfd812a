//! Whatever happens to the files of a log: it comes back whole, or it is refused with words that
//! help. It never comes back shorter than what was acknowledged.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, helpers too")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use merlin_raft::log::{Ballot, LogEngine, OpenError, Position, Record};
use proptest::prelude::*;
use tempfile::TempDir;

const VOTE: Ballot = Ballot {
    term: 3,
    node: 2,
    committed: true,
};

fn record(index: u64) -> Record {
    let position = Position { term: 3, index };
    let size = 200 + usize::try_from(index).unwrap() * 331 % 6000;
    let bytes = index.to_le_bytes().repeat(size / 8).into();
    Record { position, bytes }
}

/// Writes with and without purging and reopening, until the file has several segments.
fn log() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let log = LogEngine::open(dir.path()).unwrap();
        for index in round * 100..(round + 1) * 100 {
            log.append(vec![record(index)]).wait().unwrap();
        }
        log.save_vote(Ballot {
            term: round + 1,
            ..VOTE
        })
        .wait()
        .unwrap();
        log.save_committed(Some(record(round * 100 + 90).position))
            .unwrap();
        if round > 0 {
            log.purge(record(round * 100).position).wait().unwrap();
        }
    }
    dir
}

const FIRST: u64 = 201;
const LAST: u64 = 299;

/// The log is all there.
fn assert_whole(log: &LogEngine) {
    assert_eq!(log.last().unwrap().index, LAST);
    assert_eq!(log.purged().unwrap().index, FIRST - 1);
    assert_eq!(log.vote(), Some(VOTE));
    assert_eq!(log.committed(), Some(record(290).position));
    let records = log.reader().read(0..u64::MAX, usize::MAX).unwrap();
    assert!((FIRST..=LAST).map(record).eq(records));
}

fn open_error(dir: &Path) -> OpenError {
    let error = LogEngine::open(dir).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&dir.display().to_string()), "{text}");
    error
}

fn data_file(dir: &Path) -> PathBuf {
    dir.join("sled/db")
}

fn snapshots(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir.join("sled")).unwrap();
    let files = files.map(|file| file.unwrap().path());
    files
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("snap.")
        })
        .collect()
}

fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    fs::create_dir_all(to.path().join("sled/blobs")).unwrap();
    for part in [from.to_owned(), from.join("sled")] {
        for file in fs::read_dir(&part)
            .unwrap()
            .map(|file| file.unwrap().path())
        {
            if file.is_file() {
                let name = file.strip_prefix(from).unwrap();
                fs::copy(&file, to.path().join(name)).unwrap();
            }
        }
    }
    to
}

#[test]
fn it_comes_back_after_a_clean_stop() {
    let dir = log();
    assert_whole(&LogEngine::open(dir.path()).unwrap());
}

#[test]
fn an_index_snapshot_that_is_empty_or_torn_does_no_harm() {
    for keep in [0, 5, 40] {
        let dir = log();
        let [snapshot] = &snapshots(dir.path())[..] else {
            panic!("one snapshot is expected");
        };
        File::options()
            .write(true)
            .open(snapshot)
            .unwrap()
            .set_len(keep)
            .unwrap();
        assert_whole(&LogEngine::open(dir.path()).unwrap());
        assert_eq!(fs::read_dir(dir.path().join("aside")).unwrap().count(), 1);
        assert_whole(&LogEngine::open(dir.path()).unwrap());
    }
}

#[test]
fn an_index_snapshot_that_was_being_written_does_no_harm() {
    let dir = log();
    let half = dir.path().join("sled/snap.00000000FFFFFFFF.generating");
    fs::write(&half, [1; 100]).unwrap();
    assert_whole(&LogEngine::open(dir.path()).unwrap());
    assert!(!half.exists());
}

#[test]
fn a_log_without_its_data_is_refused() {
    let dir = log();
    fs::remove_dir_all(dir.path().join("sled")).unwrap();
    // The second try does not take the empty database of the first one for the log.
    for _ in 0..2 {
        let error = open_error(dir.path());
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("merlin cluster remove"));
    }
    // Nor with a journal from before the first entry.
    fs::write(dir.path().join("journal"), vec![0; 2 << 20]).unwrap();
    let error = open_error(dir.path());
    assert!(
        matches!(error, OpenError::Short { last: None, .. }),
        "{error}"
    );
}

#[test]
fn a_log_without_its_watermark_is_refused() {
    for damage in [None, Some(&b""[..]), Some(&[0; 128][..])] {
        let dir = log();
        let tip = dir.path().join("tip");
        match damage {
            None => fs::remove_file(&tip).unwrap(),
            Some(bytes) => fs::write(&tip, bytes).unwrap(),
        }
        let error = open_error(dir.path());
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    }
}

#[test]
fn a_log_that_is_an_old_copy_is_refused() {
    let dir = log();
    let old = copy(dir.path());
    let log = LogEngine::open(dir.path()).unwrap();
    log.append(vec![record(LAST + 1)]).wait().unwrap();
    log.close();
    put_back(&dir, &old, &["sled/db", "sled/conf", "journal"]);
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::Short { .. }), "{error}");
}

#[test]
fn an_old_copy_of_the_database_is_refused_unless_the_journal_has_the_rest() {
    let dir = log();
    let old = copy(dir.path());
    let newest = |index| {
        let log = LogEngine::open(dir.path()).unwrap();
        log.append(vec![record(index)]).wait().unwrap();
        log.close();
    };
    newest(LAST + 1);
    put_back(&dir, &old, &["sled/db", "sled/conf"]);
    let log = LogEngine::open(dir.path()).unwrap();
    assert_eq!(log.last().unwrap().index, LAST + 1);
    log.close();
    newest(LAST + 2);
    put_back(&dir, &old, &["sled/db", "sled/conf"]);
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
}

/// Puts files of an old copy in the place of newer ones.
fn put_back(dir: &TempDir, old: &TempDir, names: &[&str]) {
    for name in names {
        fs::copy(old.path().join(name), dir.path().join(name)).unwrap();
    }
    for snapshot in snapshots(dir.path()) {
        fs::remove_file(snapshot).unwrap();
    }
}

#[test]
fn a_log_that_forgot_a_vote_is_refused() {
    let dir = log();
    let old = copy(dir.path());
    let log = LogEngine::open(dir.path()).unwrap();
    log.save_vote(Ballot { term: 9, ..VOTE }).wait().unwrap();
    log.close();
    put_back(&dir, &old, &["sled/db", "journal"]);
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::VoteLost { .. }), "{error}");
}

#[test]
fn a_log_in_use_is_refused() {
    let dir = log();
    let log = LogEngine::open(dir.path()).unwrap();
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    assert_whole(&log);
    log.close();
    assert_whole(&LogEngine::open(dir.path()).unwrap());
}

#[test]
fn a_log_of_a_newer_version_is_refused() {
    let dir = log();
    let db = sled::open(dir.path().join("sled")).unwrap();
    db.insert(b"\0format", &3u32.to_be_bytes()).unwrap();
    db.flush().unwrap();
    drop(db);
    let error = open_error(dir.path());
    assert!(
        matches!(error, OpenError::Format { found: 3, .. }),
        "{error}"
    );
}

/// Damages one key of a good log behind its back.
fn with_key(key: &[u8], change: impl Fn(Option<Vec<u8>>) -> Option<Vec<u8>>) -> TempDir {
    let dir = log();
    let db = sled::open(dir.path().join("sled")).unwrap();
    let value = db.get(key).unwrap().map(|value| value.to_vec());
    match change(value) {
        Some(value) => db.insert(key, value).unwrap(),
        None => db.remove(key).unwrap(),
    };
    db.flush().unwrap();
    drop(db);
    dir
}

fn entry_key(index: u64) -> Vec<u8> {
    [&[1][..], &index.to_be_bytes(), &[0, 0]].concat()
}

#[test]
fn a_log_with_a_hole_is_refused() {
    for index in [FIRST, 250, 298] {
        let dir = with_key(&entry_key(index), |_| None);
        let error = open_error(dir.path());
        assert!(
            matches!(error, OpenError::Hole { index: hole, .. } if hole == index),
            "{error}"
        );
    }
}

#[test]
fn a_log_without_its_last_entry_is_refused() {
    let dir = with_key(&entry_key(LAST), |_| None);
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::Short { .. }), "{error}");
}

#[test]
fn an_entry_with_a_flipped_bit_is_refused_by_its_index() {
    for byte in [0, 9, 13, 15, 25, 100] {
        let dir = with_key(&entry_key(250), |value| {
            let mut value = value.unwrap();
            value[byte] ^= 0x10;
            Some(value)
        });
        let error = open_error(dir.path());
        assert!(
            matches!(error, OpenError::BadEntry { index: 250, .. }),
            "{byte}: {error}"
        );
    }
}

#[test]
fn an_older_value_of_an_entry_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogEngine::open(dir.path()).unwrap();
    let version = |index, bytes: &'static [u8]| Record {
        position: record(index).position,
        bytes: bytes.into(),
    };
    log.append(vec![version(0, b"a"), version(1, b"old")])
        .wait()
        .unwrap();
    log.close();
    let db = sled::open(dir.path().join("sled")).unwrap();
    let old = db.get(entry_key(1)).unwrap().unwrap();
    drop(db);

    let log = LogEngine::open(dir.path()).unwrap();
    log.truncate(1).wait().unwrap();
    log.append(vec![version(1, b"new"), version(2, b"c")])
        .wait()
        .unwrap();
    log.close();
    let db = sled::open(dir.path().join("sled")).unwrap();
    db.insert(entry_key(1), old).unwrap();
    db.flush().unwrap();
    drop(db);

    let error = open_error(dir.path());
    assert!(
        matches!(error, OpenError::BadEntry { index: 2, .. }),
        "{error}"
    );
}

#[test]
fn the_mark_of_what_is_purged_cannot_get_lost() {
    let dir = with_key(b"\0purged", |_| None);
    let error = open_error(dir.path());
    assert!(matches!(error, OpenError::Hole { index: 0, .. }), "{error}");
}

#[test]
fn a_directory_that_may_not_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = LogEngine::open(&file.join("log")).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error}");

    let locked = dir.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).unwrap();
    match LogEngine::open(&locked.join("log")) {
        Err(error) => assert!(matches!(error, OpenError::Permission { .. }), "{error}"),
        // Root may do everything.
        Ok(log) => log.close(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_are_survived_or_refused(
        at in 0.0..1.0f64,
        flip in prop::collection::vec(1..=255u8, 1..16),
        keep_snapshot: bool,
    ) {
        let dir = GOOD.with(|good| copy(good.path()));
        let file = File::options().read(true).write(true).open(data_file(dir.path())).unwrap();
        let length = file.metadata().unwrap().len();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "any place will do")]
        let at = (at * (length - flip.len() as u64) as f64) as u64;
        let mut bytes = vec![0; flip.len()];
        file.read_exact_at(&mut bytes, at).unwrap();
        for (byte, flip) in bytes.iter_mut().zip(flip) {
            *byte ^= flip;
        }
        file.write_all_at(&bytes, at).unwrap();
        whole_or_refused(dir.path(), keep_snapshot);
    }

    #[test]
    fn a_truncated_file_is_survived_or_refused(at in 0.0..1.0f64, keep_snapshot: bool) {
        let dir = GOOD.with(|good| copy(good.path()));
        let file = File::options().write(true).open(data_file(dir.path())).unwrap();
        let length = file.metadata().unwrap().len();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "any place will do")]
        file.set_len((at * length as f64) as u64).unwrap();
        whole_or_refused(dir.path(), keep_snapshot);
    }
}

thread_local! {
    /// Copied for each case, for it takes a second to write.
    static GOOD: TempDir = log();
}

fn whole_or_refused(dir: &Path, keep_snapshot: bool) {
    if !keep_snapshot {
        for snapshot in snapshots(dir) {
            fs::remove_file(snapshot).unwrap();
        }
    }
    // Twice: the first attempt must not make a bad log look good.
    for _ in 0..2 {
        let Ok(log) = LogEngine::open(dir) else {
            continue;
        };
        assert_eq!(log.last().unwrap().index, LAST);
        assert_eq!(log.vote(), Some(VOTE));
        // Older marks are not wrong: more than needed is kept, less than known is committed.
        let first = log.purged().map_or(0, |purged| purged.index + 1);
        assert!(first <= FIRST);
        assert!(log.committed() <= Some(record(290).position));
        let records = log.reader().read(0..u64::MAX, usize::MAX).unwrap();
        assert!((first..=LAST).map(record).eq(records));
    }
}
