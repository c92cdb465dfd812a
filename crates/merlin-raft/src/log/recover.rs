//! Opening: gets hold of the directory, clears away what crashes are known to leave, reads every
//! entry once, and refuses a log that has less than this node has acknowledged.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::batch::Batch;
use super::compact::{self, Limits};
use super::error::OpenError;
use super::journal::{self, Journal};
use super::keepsake::Keepsake;
use super::layout::{
    Assembler, Ballot, FORMAT, Flaw, Meta, Position, be_u64, is_meta_key, parse_entry_key,
};
use super::tip::{self, Tip, TipFile};
use super::writer::Extent;
use crate::contain::contain;

/// Pages of the database kept in memory.
const CACHE: u64 = 32 << 20;

/// How long sled's threads may take to let go of a database that was closed.
const RELEASE: Duration = Duration::from_secs(5);

/// Keys removed in one go at start; far less than what `writer.rs` allows for a batch.
const SWEEP: usize = 32;

/// A log that was found good.
#[derive(Debug)]
pub(super) struct Opened {
    /// Held as long as the log is open.
    pub(super) lock: File,
    pub(super) db: sled::Db,
    /// The second handle of sled's file: what makes flushed data durable.
    pub(super) disk: File,
    pub(super) journal: Journal,
    pub(super) tip: TipFile,
    pub(super) extent: Extent,
    pub(super) vote: Option<Ballot>,
    pub(super) committed: Option<Position>,
    /// Of the last entry.
    pub(super) checksum: u32,
    /// Bytes of keys and values.
    live: u64,
}

/// What the database holds.
#[derive(Debug, Default)]
struct Contents {
    new: bool,
    extent: Extent,
    vote: Option<Ballot>,
    committed: Option<Position>,
    checksum: u32,
    entries: u64,
    /// Bytes of keys and values.
    live: u64,
    /// What an interrupted change left: not part of the log.
    leftovers: Vec<Vec<u8>>,
}

/// Opens the log or leaves it as it was, apart from sled's index snapshots.
pub(super) fn open(dir: &Path) -> Result<Opened, OpenError> {
    open_within(dir, Limits::default())
}

/// Opens the log, written anew where it is too large.
pub(super) fn open_within(dir: &Path, limits: Limits) -> Result<Opened, OpenError> {
    fs::create_dir_all(dir).map_err(|e| OpenError::io("create", dir, e))?;
    let lock = lock(dir)?;
    compact::finish(dir).map_err(|e| OpenError::io("tidy", dir, e))?;
    let opened = open_as_it_is(dir, lock)?;
    let size = opened.db.size_on_disk().unwrap_or(0);
    if !limits.exceeded(size, opened.live) {
        return Ok(opened);
    }
    tracing::info!(size, live = opened.live, "writing the raft log anew");
    let copied = match copy_whole(dir, &opened) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the raft log stays large"
            );
            false
        }
    };
    let Opened { lock, db, disk, .. } = opened;
    drop((db, disk));
    await_release(dir)?;
    if copied {
        compact::swap(dir).map_err(|e| OpenError::io("replace", dir, e))?;
    } else {
        compact::forget(dir);
    }
    open_as_it_is(dir, lock)
}

/// A copy of the log beside it, which was read back and found the same.
fn copy_whole(dir: &Path, opened: &Opened) -> Result<(), OpenError> {
    let failed = |e| OpenError::io("write a copy in", dir, e);
    let (to, copy) = compact::copy(dir, &opened.db).map_err(failed)?;
    let found = scan(dir, &to, &copy)?;
    let same = found.extent == opened.extent
        && (found.vote, found.committed) == (opened.vote, opened.committed)
        && found.checksum == opened.checksum;
    drop(copy);
    await_release_of(dir, &to)?;
    match same {
        true => Ok(()),
        false => Err(OpenError::Corrupt {
            dir: dir.to_owned(),
            what: "a copy of it differs".to_owned(),
        }),
    }
}

fn open_as_it_is(dir: &Path, lock: File) -> Result<Opened, OpenError> {
    let sled_dir = dir.join("sled");
    let tip = open_tip(dir, &sled_dir)?;
    let found = Keepsake::take(&sled_dir);
    let opened = open_found(dir, &sled_dir, lock, tip);
    if let Some(found) = found {
        match &opened {
            Ok(_) => found.discard(),
            Err(_) => found
                .put_back(is_index)
                .map_err(|e| OpenError::io("put back what was found in", &sled_dir, e))?,
        }
    }
    opened
}

/// sled's index snapshots, which it can do without.
fn is_index(name: &str) -> bool {
    name.starts_with("snap.")
}

fn open_found(dir: &Path, sled_dir: &Path, lock: File, tip: TipFile) -> Result<Opened, OpenError> {
    let interrupted = |name: &str| is_index(name) && name.ends_with(".generating");
    move_aside(dir, sled_dir, interrupted)?;
    let (db, contents, settled) = match open_db(dir, sled_dir) {
        // sled's index snapshot may be what is broken, and is not needed.
        Err(OpenError::Corrupt { what, .. }) if move_aside(dir, sled_dir, is_index)? > 0 => {
            tracing::warn!(%what, "moved sled's index snapshots aside, reading its whole file");
            open_db(dir, sled_dir)?
        }
        result => result?,
    };
    compare(dir, &contents, tip.tip())?;

    let data = sled_dir.join("db");
    let disk = File::options()
        .write(true)
        .open(&data)
        .map_err(|e| OpenError::io("open", &data, e))?;
    sync_tree(dir, sled_dir, &disk).map_err(|e| OpenError::io("sync", dir, e))?;
    tidy(&db, &disk, &contents, settled).map_err(|e| OpenError::io("write", &data, e))?;
    let journal = Journal::open(dir, settled)
        .map_err(|e| OpenError::io("open", &dir.join(journal::NAME), e))?;
    tracing::info!(
        entries = contents.entries,
        last = contents.extent.last.map(|last| last.index),
        "opened the raft log"
    );
    Ok(Opened {
        lock,
        db,
        disk,
        journal,
        tip,
        extent: contents.extent,
        vote: contents.vote,
        committed: contents.committed,
        checksum: contents.checksum,
        live: contents.live,
    })
}

/// Taken before anything is looked at, so that nothing is moved under a running daemon.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| OpenError::io("open", &path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked {
            dir: dir.to_owned(),
        }),
        Err(TryLockError::Error(e)) => Err(OpenError::io("lock", &path, e)),
    }
}

/// Journal and tip come into being before the database, so a database without one has lost it.
fn open_tip(dir: &Path, sled_dir: &Path) -> Result<TipFile, OpenError> {
    let corrupt = |what: &str| OpenError::Corrupt {
        dir: dir.to_owned(),
        what: what.to_owned(),
    };
    match TipFile::open(dir) {
        Ok(_) if !Journal::exists(dir) => Err(corrupt("the file `journal` is missing")),
        Ok(tip) => Ok(tip),
        Err(e) if e.kind() == io::ErrorKind::NotFound && !sled_dir.exists() => {
            Journal::create(dir)
                .map_err(|e| OpenError::io("create", &dir.join(journal::NAME), e))?;
            TipFile::create(dir)
                .and_then(|tip| sync_dir(dir).map(|()| tip))
                .map_err(|e| OpenError::io("create", &dir.join(tip::NAME), e))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(corrupt("the file `tip` is missing")),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            Err(corrupt("the file `tip` is unreadable"))
        }
        Err(e) => Err(OpenError::io("open", &dir.join(tip::NAME), e)),
    }
}

/// Moves files of sled's out of its way, and says how many there were.
fn move_aside(
    dir: &Path,
    sled_dir: &Path,
    which: impl Fn(&str) -> bool,
) -> Result<usize, OpenError> {
    let found = match fs::read_dir(sled_dir) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(OpenError::io("list", sled_dir, e)),
    };
    let mut moved = 0;
    for file in found {
        let from = file.map_err(|e| OpenError::io("list", sled_dir, e))?.path();
        let Some(name) = from
            .file_name()
            .and_then(OsStr::to_str)
            .filter(|n| which(n))
        else {
            continue;
        };
        let to = aside(dir, name).map_err(|e| OpenError::io("use", &dir.join("aside"), e))?;
        fs::rename(&from, &to).map_err(|e| OpenError::io("move", &from, e))?;
        tracing::warn!(from = %from.display(), to = %to.display(), "moved a file aside");
        moved += 1;
    }
    Ok(moved)
}

/// A name that is still free, for the file of this name.
fn aside(dir: &Path, name: &str) -> io::Result<PathBuf> {
    let dir = dir.join("aside");
    fs::create_dir_all(&dir)?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Ok(dir.join(format!(
        "{}.{:09}-{name}",
        now.as_secs(),
        now.subsec_nanos()
    )))
}

/// Waits until sled has let go of its file: threads of its own may hold it for a moment after
/// the database was closed. With [`lock`] held there is nobody else to wait for.
pub(super) fn await_release(dir: &Path) -> Result<(), OpenError> {
    await_release_of(dir, &dir.join("sled"))
}

fn await_release_of(dir: &Path, sled_dir: &Path) -> Result<(), OpenError> {
    let data = sled_dir.join("db");
    let probe = match File::open(&data) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        probe => probe.map_err(|e| OpenError::io("open", &data, e))?,
    };
    let deadline = Instant::now() + RELEASE;
    loop {
        match probe.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::Locked {
                    dir: dir.to_owned(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(OpenError::io("lock", &data, e)),
        }
    }
}

/// Opens sled, brings it what the journal has, and reads all of it, with the generation of the
/// journal up to which it then has everything. sled asserts what a damaged file may not fulfil.
fn open_db(dir: &Path, sled_dir: &Path) -> Result<(sled::Db, Contents, u64), OpenError> {
    await_release(dir)?;
    let attempt = || {
        let db = sled::Config::new()
            .path(sled_dir)
            .cache_capacity(CACHE)
            // The writer thread flushes.
            .flush_every_ms(None)
            .open()
            .map_err(|e| sled_failed(dir, sled_dir, e))?;
        let settled = replay(dir, sled_dir, &db)?;
        let contents = scan(dir, sled_dir, &db)?;
        Ok((db, contents, settled))
    };
    contain(attempt).unwrap_or_else(|| {
        Err(OpenError::Corrupt {
            dir: dir.to_owned(),
            what: "the database engine found a contradiction in its file".to_owned(),
        })
    })
}

/// Brings sled what only the journal has, in memory yet.
fn replay(dir: &Path, sled_dir: &Path, db: &sled::Db) -> Result<u64, OpenError> {
    let failed = |e| sled_failed(dir, sled_dir, e);
    let corrupt = |what: &str| OpenError::Corrupt {
        dir: dir.to_owned(),
        what: what.to_owned(),
    };
    let settled = match db.get(Meta::Journal.key()).map_err(failed)? {
        Some(bytes) if bytes.len() == 8 => be_u64(&bytes, 0),
        Some(_) => return Err(corrupt("the generation of the journal is malformed")),
        None => 0,
    };
    let batches = Journal::read(dir, settled).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => corrupt("the journal is damaged, or newer than the database"),
        _ => OpenError::io("read", &dir.join(journal::NAME), e),
    })?;
    if batches.is_empty() {
        return Ok(settled);
    }
    // What a process that was killed wrote meanwhile must not come on top of this between two
    // syncs.
    let data = sled_dir.join("db");
    let synced = File::options().write(true).open(&data);
    let synced = synced.and_then(|disk| disk.sync_data());
    synced.map_err(|e| OpenError::io("sync", &data, e))?;
    for batch in batches {
        let applied = batch.apply(db);
        applied.map_err(|e| OpenError::io("write", &data, e))?;
    }
    Ok(settled + 1)
}

fn sled_failed(dir: &Path, sled_dir: &Path, error: sled::Error) -> OpenError {
    match error {
        sled::Error::Io(e) if e.kind() != io::ErrorKind::UnexpectedEof => {
            OpenError::io("open", sled_dir, e)
        }
        damage => OpenError::Corrupt {
            dir: dir.to_owned(),
            what: damage.to_string(),
        },
    }
}

// === Reading everything ===

fn scan(dir: &Path, sled_dir: &Path, db: &sled::Db) -> Result<Contents, OpenError> {
    let failed = |e| sled_failed(dir, sled_dir, e);
    let corrupt = |what: &str| OpenError::Corrupt {
        dir: dir.to_owned(),
        what: what.to_owned(),
    };
    let get = |meta: Meta| db.get(meta.key()).map_err(failed);
    let position = |meta| match get(meta)? {
        Some(bytes) => Position::decode(&bytes)
            .map(Some)
            .ok_or_else(|| corrupt("a position is malformed")),
        None => Ok(None),
    };

    let mut contents = Contents::default();
    match get(Meta::Format)?.as_deref() {
        Some(bytes) => {
            let bytes = bytes.try_into().map_err(|_| corrupt("no format version"))?;
            let found = u32::from_be_bytes(bytes);
            if found != FORMAT {
                return Err(OpenError::Format {
                    dir: dir.to_owned(),
                    found,
                    known: FORMAT,
                });
            }
        }
        None if db.iter().next().is_none() => contents.new = true,
        None => return Err(corrupt("the format version is missing")),
    }
    contents.committed = position(Meta::Committed)?;
    if let Some(bytes) = get(Meta::Vote)? {
        let vote = Ballot::decode(&bytes).ok_or_else(|| corrupt("the vote is malformed"))?;
        contents.vote = Some(vote);
    }
    let purged = position(Meta::Purged)?;
    let start = match get(Meta::Start)? {
        Some(bytes) if bytes.len() == 8 => be_u64(&bytes, 0),
        Some(_) => return Err(corrupt("the first index is malformed")),
        None => 0,
    };
    contents.extent = Extent {
        start,
        purged,
        last: purged,
    };

    let mut entries = Entries::new(&contents.extent);
    for item in db.iter() {
        let (key, value) = item.map_err(failed)?;
        contents.live += (key.len() + value.len()) as u64;
        match parse_entry_key(&key) {
            Some((index, chunk)) => entries.take(dir, index, chunk, &key, &value)?,
            None if is_meta_key(&key) => {}
            None => return Err(corrupt("there is a key that this version does not know")),
        }
    }
    entries.end(dir)?;
    contents.extent.last = entries.last.or(purged);
    contents.checksum = entries.checksum;
    contents.entries = entries.count;
    contents.leftovers = entries.leftovers;
    Ok(contents)
}

/// Follows the keys of the entries, in order.
#[derive(Debug)]
struct Entries {
    /// Everything below is purged.
    first: u64,
    expected: u64,
    assembler: Assembler,
    last: Option<Position>,
    /// Of the last one.
    checksum: u32,
    count: u64,
    /// An entry of which only the later chunks were written: the last thing before a crash.
    unfinished: Option<u64>,
    leftovers: Vec<Vec<u8>>,
}

impl Entries {
    fn new(extent: &Extent) -> Self {
        Self {
            first: extent.first(),
            expected: extent.first(),
            assembler: Assembler::default(),
            last: None,
            checksum: 0,
            count: 0,
            unfinished: None,
            leftovers: Vec::new(),
        }
    }

    fn take(
        &mut self,
        dir: &Path,
        index: u64,
        chunk: u16,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), OpenError> {
        if index < self.first {
            self.leftovers.push(key.to_vec());
            return Ok(());
        }
        let hole = |index| OpenError::Hole {
            dir: dir.to_owned(),
            index,
        };
        if self.unfinished.is_some_and(|unfinished| unfinished < index) {
            return Err(hole(self.expected));
        }
        match self.assembler.push(index, chunk, value) {
            Ok(Some((header, _))) if index == self.expected => {
                if self.last.is_some() && header.before != self.checksum {
                    return Err(bad_entry(dir, index, Flaw::Stray));
                }
                self.last = Some(header.position);
                self.checksum = header.checksum;
                self.expected += 1;
                self.count += 1;
                Ok(())
            }
            Ok(None) if index == self.expected => Ok(()),
            Err((index, Flaw::Headless)) if index == self.expected => {
                self.unfinished = Some(index);
                self.leftovers.push(key.to_vec());
                Ok(())
            }
            Ok(_) | Err((_, Flaw::Headless)) => Err(hole(self.expected)),
            Err((index, flaw)) => Err(bad_entry(dir, index, flaw)),
        }
    }

    fn end(&mut self, dir: &Path) -> Result<(), OpenError> {
        self.assembler
            .finish()
            .map_err(|(index, flaw)| bad_entry(dir, index, flaw))
    }
}

fn bad_entry(dir: &Path, index: u64, flaw: Flaw) -> OpenError {
    OpenError::BadEntry {
        dir: dir.to_owned(),
        index,
        flaw: flaw.to_string(),
    }
}

/// Is everything there that others count on?
fn compare(dir: &Path, contents: &Contents, tip: &Tip) -> Result<(), OpenError> {
    let last = contents.extent.last;
    let reaches =
        |mark: &Position| last.is_some_and(|last| last >= *mark && last.index >= mark.index);
    let marks = [tip.last, contents.committed];
    if let Some(acknowledged) = marks.into_iter().flatten().find(|mark| !reaches(mark)) {
        return Err(OpenError::Short {
            dir: dir.to_owned(),
            last,
            acknowledged,
        });
    }
    match tip.vote {
        Some(acknowledged) if contents.vote < tip.vote => Err(OpenError::VoteLost {
            dir: dir.to_owned(),
            vote: contents.vote,
            acknowledged,
        }),
        _ => Ok(()),
    }
}

// === Leaving it in order ===

/// Makes the names of all files durable, and what sled wrote without syncing.
pub(super) fn sync_tree(dir: &Path, sled_dir: &Path, disk: &File) -> io::Result<()> {
    disk.sync_all()?;
    File::open(sled_dir.join("conf"))?.sync_all()?;
    for dir in [sled_dir, dir].into_iter().chain(dir.parent()) {
        sync_dir(dir)?;
    }
    Ok(())
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    // The parent of a relative path of one part.
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)?.sync_all()
}

fn tidy(db: &sled::Db, disk: &File, contents: &Contents, settled: u64) -> io::Result<()> {
    let mut batch = Batch::default();
    if contents.new {
        batch.add((Meta::Format.key(), Some(FORMAT.to_be_bytes().to_vec())));
    }
    batch.add((Meta::Journal.key(), Some(settled.to_be_bytes().to_vec())));
    batch.persist(db, disk)?;
    for keys in contents.leftovers.chunks(SWEEP) {
        let mut batch = Batch::default();
        for key in keys {
            batch.add((key.clone(), None));
        }
        batch.persist(db, disk)?;
    }
    Ok(())
}
