//! Where a change becomes durable first: a file whose blocks are all there, written in place.
//!
//! To make sled durable takes two waits for the disk, this takes one. So a batch is acknowledged
//! once the journal has it. sled is given it at the same time, in memory, and becomes durable with
//! many others: when they are as much as may be written between two syncs (`writer.rs`), when the
//! journal is full, or soon after. The journal then begins anew.
//!
//! ```text
//! batch ─▶ journal, fdatasync ─▶ sled, in memory ─▶ acknowledged
//!                                 `─ later ─▶ sled, flush, fdatasync ─▶ the next generation
//! ```
//!
//! Records, each on blocks of its own (4 KiB), so that writing one never touches another:
//! ```text
//! u64 generation  u64 number within it  u32 length of the batch  u32 crc32c of all but this field
//! the batch (batch.rs)
//! ```
//!
//! Invariants:
//!
//! - sled's key "journal" says up to which generation it has everything. It is written with the
//!   sync that makes it true, so what the next start has to bring to sled is exactly the records of
//!   the one generation after, from the first block on, as far as they are sound and in order.
//!   Records that older generations left behind are nothing, wherever a torn write uncovers them.
//! - A record is only begun when the one before it is on the disk. So one that is not sound is what a
//!   power cut left of the last, and never acknowledged, unless a later one of its generation is:
//!   then the file was damaged, and what is missing may have been acknowledged.
//! - Bringing them again is harmless: they are keys with their values, in the order they were
//!   written, and the last ones are the newest there are.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use bytes::{Buf, BufMut};

use super::batch::Batch;
use super::recover::sync_dir;
use crate::mutants::{self, Mutant};

pub(super) const NAME: &str = "journal";
const BLOCK: usize = 4096;
/// Room for some seconds of single small writes, and for several batches of the largest size.
const BLOCKS: usize = 512;
const HEADER: usize = 8 + 8 + 4 + 4;

#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    generation: u64,
    /// Records of this generation.
    records: u64,
    /// Blocks that they take.
    blocks: usize,
    buffer: Vec<u8>,
}

/// A record at the beginning of some blocks.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    generation: u64,
    number: u64,
    batch: Batch,
    blocks: usize,
}

impl Journal {
    /// Makes an empty one, complete or not at all.
    pub(super) fn create(dir: &Path) -> io::Result<()> {
        let new = dir.join("journal.new");
        fs::write(&new, vec![0; BLOCKS * BLOCK])?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, dir.join(NAME))?;
        sync_dir(dir)
    }

    /// Whether there is one.
    pub(super) fn exists(dir: &Path) -> bool {
        dir.join(NAME).exists()
    }

    /// What sled may lack that has everything up to a generation, in order. `InvalidData` if the
    /// journal is of a later one than can be: sled has lost something; or if it has lost some itself.
    pub(super) fn read(dir: &Path, settled: u64) -> io::Result<Vec<Batch>> {
        let bytes = fs::read(dir.join(NAME))?;
        let mut rest = bytes.as_slice();
        let mut batches = Vec::new();
        while let Some(record) = Record::decode(rest) {
            if record.generation > settled + 1 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if (record.generation, record.number) != (settled + 1, batches.len() as u64) {
                break;
            }
            rest = rest.get(record.blocks * BLOCK..).unwrap_or_default();
            batches.push(record.batch);
        }
        let next = batches.len() as u64;
        let goes_on = |record: Record| record.generation == settled + 1 && record.number > next;
        if rest
            .chunks(BLOCK)
            .enumerate()
            .any(|(block, _)| Record::decode(&rest[block * BLOCK..]).is_some_and(goes_on))
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(batches)
    }

    /// Opens it for writing, once sled has everything up to this generation.
    pub(super) fn open(dir: &Path, settled: u64) -> io::Result<Self> {
        let file = File::options().write(true).open(dir.join(NAME))?;
        Ok(Self {
            file,
            generation: settled + 1,
            records: 0,
            blocks: 0,
            buffer: Vec::new(),
        })
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Adds a batch, unless there is no room for it. When it is added, it would survive a power cut.
    pub(super) fn append(&mut self, batch: &Batch) -> io::Result<bool> {
        self.buffer.clear();
        self.buffer.resize(HEADER, 0);
        batch.encode(&mut self.buffer);
        let length = self.buffer.len() - HEADER;
        let mut header = self.buffer.as_mut_slice();
        header.put_u64(self.generation);
        header.put_u64(self.records);
        header.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        let sum = checksum(&self.buffer);
        self.buffer[HEADER - 4..HEADER].copy_from_slice(&sum.to_be_bytes());

        let blocks = self.buffer.len().div_ceil(BLOCK);
        if self.blocks + blocks > BLOCKS {
            return Ok(false);
        }
        let at = self.blocks * BLOCK;
        self.file.write_all_at(&self.buffer, at as u64)?;
        if !mutants::active(Mutant::FlushWithoutSync) {
            self.file.sync_data()?;
        }
        self.blocks += blocks;
        self.records += 1;
        Ok(true)
    }

    /// To be called when sled has everything of this generation.
    pub(super) fn begin_anew(&mut self) {
        self.generation += 1;
        self.records = 0;
        self.blocks = 0;
    }

    /// Whether somebody has removed the file.
    pub(super) fn is_removed(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() == 0)
    }
}

/// Of a whole record, but for the field of the checksum itself.
fn checksum(record: &[u8]) -> u32 {
    let before = crc32c::crc32c(&record[..HEADER - 4]);
    crc32c::crc32c_append(before, &record[HEADER..])
}

impl Record {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut header = bytes.get(..HEADER)?;
        let (generation, number) = (header.get_u64(), header.get_u64());
        let length = usize::try_from(header.get_u32()).ok()?;
        let record = bytes.get(..HEADER.checked_add(length)?)?;
        if header.get_u32() != checksum(record) {
            return None;
        }
        Some(Self {
            generation,
            number,
            batch: Batch::decode(&record[HEADER..])?,
            blocks: record.len().div_ceil(BLOCK),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::tests::any_batch;
    use super::*;
    use proptest::prelude::*;
    use tempfile::TempDir;

    fn journal() -> (TempDir, Journal) {
        let dir = tempfile::tempdir().unwrap();
        Journal::create(dir.path()).unwrap();
        let journal = Journal::open(dir.path(), 0).unwrap();
        (dir, journal)
    }

    fn batch(length: usize) -> Batch {
        let mut batch = Batch::default();
        batch.add((b"key".to_vec(), Some(vec![7; length])));
        batch
    }

    fn overwrite(dir: &TempDir, at: usize, bytes: &[u8]) {
        let file = File::options().write(true).open(dir.path().join(NAME));
        file.unwrap().write_all_at(bytes, at as u64).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn what_was_added_comes_back_in_order(batches in prop::collection::vec(any_batch(), 0..9)) {
            let (dir, mut journal) = journal();
            for batch in &batches {
                prop_assert!(journal.append(batch).unwrap());
            }
            prop_assert_eq!(Journal::read(dir.path(), 0).unwrap(), batches);
        }
    }

    #[test]
    fn the_last_record_may_be_torn() {
        for at in [0, HEADER - 1, HEADER + 5, BLOCK + 100] {
            let (dir, mut journal) = journal();
            for length in [10, 6000] {
                assert!(journal.append(&batch(length)).unwrap());
            }
            overwrite(&dir, BLOCK + at, &[0xa5; 2]);
            assert_eq!(Journal::read(dir.path(), 0).unwrap(), [batch(10)]);
        }
    }

    #[test]
    fn a_record_that_others_follow_may_not_be_damaged() {
        for at in [0, HEADER - 1, HEADER + 5, BLOCK + 100] {
            let (dir, mut journal) = journal();
            for length in [10, 6000, 20] {
                assert!(journal.append(&batch(length)).unwrap());
            }
            overwrite(&dir, BLOCK + at, &[0xa5; 2]);
            let error = Journal::read(dir.path(), 0).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_new_generation_leaves_nothing_of_the_old_one() {
        let (dir, mut journal) = journal();
        for length in [10, 20, 30] {
            assert!(journal.append(&batch(length)).unwrap());
        }
        journal.begin_anew();
        assert_eq!(Journal::read(dir.path(), 1).unwrap(), []);
        assert!(journal.append(&batch(40)).unwrap());
        assert_eq!(Journal::read(dir.path(), 1).unwrap(), [batch(40)]);
        // Its first record is torn away, and what was there before is seen again.
        overwrite(&dir, 0, &[0; BLOCK]);
        assert_eq!(Journal::read(dir.path(), 1).unwrap(), []);
    }

    #[test]
    fn a_database_that_lacks_a_generation_is_noticed() {
        let (dir, mut journal) = journal();
        journal.begin_anew();
        assert!(journal.append(&batch(10)).unwrap());
        let error = Journal::read(dir.path(), 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_full_one_takes_nothing_until_it_begins_anew() {
        let (_dir, mut journal) = journal();
        let large = batch(100 * BLOCK);
        for _ in 0..BLOCKS / 101 {
            assert!(journal.append(&large).unwrap());
        }
        assert!(!journal.append(&large).unwrap());
        assert!(journal.append(&batch(10)).unwrap());
        journal.begin_anew();
        assert!(journal.append(&large).unwrap());
    }
}
