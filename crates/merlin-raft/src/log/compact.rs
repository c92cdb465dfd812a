//! Writes a log anew whose file has grown far beyond what is in it.
//!
//! sled recycles space inside its file and never gives any back. So the live keys are copied to a
//! new database beside it, at start, when nobody uses the log yet:
//!
//! ```text
//! sled/             copy, sync, read back and compare ─▶  sled.new/
//! sled/ ─▶ sled.old/      sled.new/ ─▶ sled/      sled.old/ removed
//! ```
//! There is a complete database at every moment: `sled/`, or else `sled.new/` if there is a
//! `sled.old/`. A copy that fails costs nothing but the space it would have saved.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::batch::Batch;
use super::recover::{sync_dir, sync_tree};

/// A file smaller than this is not worth the time.
const LARGE: u64 = 64 << 20;

/// How many times as large as its contents a file may be.
const EXCESS: u64 = 16;

/// Bytes written between two syncs; `writer.rs` says why not more.
const STEP: usize = 128 << 10;

/// When a log is written anew.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) large: u64,
    pub(super) excess: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            large: LARGE,
            excess: EXCESS,
        }
    }
}

impl Limits {
    pub(super) fn exceeded(self, size: u64, live: u64) -> bool {
        size > self.large && size / self.excess > live
    }
}

fn new(dir: &Path) -> PathBuf {
    dir.join("sled.new")
}

fn old(dir: &Path) -> PathBuf {
    dir.join("sled.old")
}

/// Whether the database is under another name, between the two renames.
pub(super) fn is_between(dir: &Path) -> bool {
    !dir.join("sled").exists() && old(dir).exists() && new(dir).exists()
}

/// Finishes what a crash interrupted, or clears it away.
pub(super) fn finish(dir: &Path) -> io::Result<()> {
    if is_between(dir) {
        fs::rename(new(dir), dir.join("sled"))?;
        sync_dir(dir)?;
    }
    if dir.join("sled").exists() {
        remove(&new(dir))?;
        remove(&old(dir))?;
    }
    Ok(())
}

/// Copies a database; the copy is durable when it is returned.
pub(super) fn copy(dir: &Path, db: &sled::Db) -> io::Result<(PathBuf, sled::Db)> {
    let to = new(dir);
    remove(&to)?;
    let copy = sled::Config::new()
        .path(&to)
        .flush_every_ms(None)
        .open()
        .map_err(io::Error::from)?;
    let disk = File::options().write(true).open(to.join("db"))?;
    let (mut batch, mut weight) = (Batch::default(), 0);
    for item in db.iter() {
        let (key, value) = item.map_err(io::Error::from)?;
        weight += key.len() + value.len();
        batch.add((key.to_vec(), Some(value.to_vec())));
        if weight >= STEP {
            std::mem::take(&mut batch).persist(&copy, &disk)?;
            weight = 0;
        }
    }
    batch.persist(&copy, &disk)?;
    sync_tree(dir, &to, &disk)?;
    Ok((to, copy))
}

/// Puts the copy in the place of the database. Both are closed.
pub(super) fn swap(dir: &Path) -> io::Result<()> {
    fs::rename(dir.join("sled"), old(dir))?;
    sync_dir(dir)?;
    finish(dir)
}

/// Clears away a copy that is not used.
pub(super) fn forget(dir: &Path) {
    if let Err(error) = remove(&new(dir)) {
        tracing::warn!(%error, "a copy of the raft log is left");
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
