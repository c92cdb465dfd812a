//! Files that are damaged while nobody looks.
//!
//! A node may get over it by itself, or refuse to start in words; it may not go on as if nothing
//! had happened. Where it refuses, the damage is undone, to the byte: what a node may never have is
//! an old copy.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::{Begun, Kind, Nemesis};
use crate::checker::Law;
use crate::lab::network::checked;
use crate::ops::Node;

/// By then a daemon runs or has said why not.
const DECISION: Duration = Duration::from_secs(10);

const FLIPPED: usize = 8;

const JOURNAL: &str = "journal";
/// Records of the journal begin on blocks of this size, with generation, number and length.
const BLOCK: usize = 4096;
const HEADER: usize = 24;

impl Nemesis {
    pub(super) fn damage(&mut self, kind: Kind) -> Result<Begun> {
        let victim = self.take_any();
        let machine = self.machine(victim).clone();
        let mut begun = self.begin(kind, String::new(), [victim]);
        machine.kill()?;
        let data = machine.data();
        let file = match kind {
            Kind::SnapshotTorn => newest(&data.join("snapshots"))?,
            _ => Some(data.join("log").join(match self.dice.random() {
                true => "sled/db",
                false => JOURNAL,
            })),
        };
        let damaged = match &file {
            Some(file) => self.damaged(kind, file)?,
            None => None,
        };
        let (Some(file), Some(damaged)) = (file, damaged) else {
            machine.start()?;
            begun.detail = format!("n{victim} has nothing to damage yet, nothing was done");
            begun.happened = false;
            return Ok(begun);
        };
        let backup = data.with_extension("backup");
        // A backup that a power cut could take is none, nor one that it could bring back.
        let sync = || checked("sync", &["--file-system", &data.to_string_lossy()]).map(drop);
        copy(&data, &backup)?;
        sync()?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        fs::write(&file, damaged)?;
        let seen = machine.log().len();
        machine.start()?;
        let refused = self.await_decision(victim);
        let said = machine.log().split_off(seen);
        begun.detail = match refused {
            true => {
                machine.kill()?;
                fs::remove_dir_all(&data)?;
                fs::rename(&backup, &data)?;
                sync()?;
                machine.start()?;
                let words = ["remove this member", "join the cluster as a new node"];
                if !words.iter().any(|word| said.contains(word)) {
                    let what = format!("n{victim} does not start and does not say why: {said}");
                    self.shared.recorder.violation(Law::DaemonsStayUp, what);
                }
                format!("n{victim} noticed and refused to start ({name})")
            }
            false => {
                fs::remove_dir_all(&backup)?;
                sync()?;
                format!("n{victim} got over it ({name})")
            }
        };
        Ok(begun)
    }

    /// What a file is to become, if there is anything in it.
    fn damaged(&mut self, kind: Kind, file: &Path) -> Result<Option<Vec<u8>>> {
        let whole = fs::read(file).with_context(|| file.display().to_string())?;
        let damaged = match kind {
            Kind::SnapshotTorn => Some(whole[..whole.len() / 2].to_vec()),
            _ => self.flip(&whole, file.ends_with(JOURNAL)),
        };
        ensure!(
            damaged.as_ref() != Some(&whole),
            "the damage changed nothing"
        );
        Ok(damaged)
    }

    /// Some bytes in a row, somewhere in what was written.
    fn flip(&mut self, whole: &[u8], is_journal: bool) -> Option<Vec<u8>> {
        let used = || {
            whole
                .iter()
                .rposition(|byte| *byte != 0)
                .map(|last| 0..last)
        };
        let places = match is_journal {
            true => provable(whole),
            false => used().into_iter().collect(),
        };
        let place = places.choose(&mut self.dice)?.clone();
        let last = place.end.saturating_sub(FLIPPED).max(place.start);
        let at = self.dice.random_range(place.start..=last);
        let mut damaged = whole.to_vec();
        for byte in damaged.iter_mut().skip(at).take(FLIPPED) {
            *byte = !*byte;
        }
        Some(damaged)
    }

    /// Whether the daemon has ended instead of becoming ready.
    fn await_decision(&self, victim: Node) -> bool {
        let machine = self.machine(victim);
        let life = machine.life();
        let deadline = Instant::now() + DECISION;
        while Instant::now() < deadline {
            if machine.life() != life || !machine.is_up() {
                return true;
            }
            if machine.http("/alive").is_ok() {
                return false;
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

/// Where the records of a journal are that two more of its generation follow. Damage to a later one
/// cannot be told from a write that a power cut has torn, and need not be noticed.
fn provable(journal: &[u8]) -> Vec<Range<usize>> {
    let number = |at: usize| {
        let bytes = journal.get(at..at + 8)?;
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    };
    let mut records: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while let (Some(generation), Some(place), Some(length)) =
        (number(at), number(at + 8), number(at + 16))
        && generation > 0
        && (Some(generation), place) == (number(0), records.len() as u64)
    {
        // Its upper half; the other one is a checksum.
        let end = at + HEADER + (length >> 32) as usize;
        records.push(at..end);
        at = end.next_multiple_of(BLOCK);
    }
    records.truncate(records.len().saturating_sub(2));
    records
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    ensure!(!to.exists(), "{} is of an earlier time", to.display());
    let paths = [from, to].map(|path| path.to_string_lossy().into_owned());
    checked("cp", &["-a", &paths[0], &paths[1]]).map(drop)
}

fn newest(directory: &Path) -> Result<Option<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        files.push((entry.metadata()?.modified()?, entry.path()));
    }
    Ok(files.into_iter().max().map(|(_, path)| path))
}
