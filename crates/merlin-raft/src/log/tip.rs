//! The watermark beside the database: how far this node told others that its log reaches, and
//! whom it voted for. It exists because sled can lose the end of a damaged file silently.
//!
//! Two slots written in turn, so that a torn write leaves the one before:
//! ```text
//! u64 sequence  u64 next index  u64 term  u64 vote term  u64 vote node
//! u8 vote committed  u8 there is a vote  18 zero bytes  u32 crc32c of the 60 bytes before
//! ```
//! `next index` is the last index plus one; 0 says that the log is empty.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::BufMut;

use super::layout::{Ballot, Position, be_u64};

const SLOT: usize = 64;
const SUM: usize = SLOT - 4;
pub(super) const NAME: &str = "tip";

/// What was acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tip {
    pub(super) last: Option<Position>,
    pub(super) vote: Option<Ballot>,
}

#[derive(Debug)]
pub(super) struct TipFile {
    file: File,
    sequence: u64,
    tip: Tip,
}

impl TipFile {
    /// Makes the file of an empty log, complete or not at all.
    pub(super) fn create(dir: &Path) -> io::Result<Self> {
        let tip = Tip::default();
        let new = dir.join("tip.new");
        let mut bytes = encode(0, &tip).to_vec();
        bytes.resize(2 * SLOT, 0);
        fs::write(&new, &bytes)?;
        let file = File::options().read(true).write(true).open(&new)?;
        file.sync_all()?;
        fs::rename(&new, dir.join(NAME))?;
        Ok(Self {
            file,
            sequence: 0,
            tip,
        })
    }

    /// `InvalidData` if no slot can be read, `NotFound` if there is no file.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(NAME);
        let bytes = fs::read(&path)?;
        let newest = bytes
            .chunks_exact(SLOT)
            .filter_map(decode)
            .max_by_key(|(sequence, _)| *sequence);
        let (sequence, tip) = newest.ok_or(io::ErrorKind::InvalidData)?;
        let file = File::options().read(true).write(true).open(&path)?;
        Ok(Self {
            file,
            sequence,
            tip,
        })
    }

    pub(super) fn tip(&self) -> &Tip {
        &self.tip
    }

    /// Returns when it is on disk.
    pub(super) fn write(&mut self, tip: Tip) -> io::Result<()> {
        if tip == self.tip {
            return Ok(());
        }
        let sequence = self.sequence + 1;
        let at = (sequence % 2) * SLOT as u64;
        self.file.write_all_at(&encode(sequence, &tip), at)?;
        self.file.sync_data()?;
        self.sequence = sequence;
        self.tip = tip;
        Ok(())
    }
}

fn encode(sequence: u64, tip: &Tip) -> [u8; SLOT] {
    let mut out = [0; SLOT];
    let mut rest = &mut out[..SUM];
    rest.put_u64(sequence);
    rest.put_u64(tip.last.map_or(0, |last| last.index + 1));
    rest.put_u64(tip.last.map_or(0, |last| last.term));
    rest.put_u64(tip.vote.map_or(0, |vote| vote.term));
    rest.put_u64(tip.vote.map_or(0, |vote| vote.node));
    rest.put_u8(tip.vote.is_some_and(|vote| vote.committed).into());
    rest.put_u8(tip.vote.is_some().into());
    let sum = crc32c::crc32c(&out[..SUM]);
    out[SUM..].copy_from_slice(&sum.to_be_bytes());
    out
}

fn decode(slot: &[u8]) -> Option<(u64, Tip)> {
    if crc32c::crc32c(&slot[..SUM]).to_be_bytes() != slot[SUM..] {
        return None;
    }
    let last = be_u64(slot, 8).checked_sub(1).map(|index| Position {
        term: be_u64(slot, 16),
        index,
    });
    let vote = (slot[41] == 1).then(|| Ballot {
        term: be_u64(slot, 24),
        node: be_u64(slot, 32),
        committed: slot[40] == 1,
    });
    Some((be_u64(slot, 0), Tip { last, vote }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tip(index: u64) -> Tip {
        let last = Some(Position { term: 7, index });
        let vote = Some(Ballot {
            term: 8,
            node: 3,
            committed: true,
        });
        Tip { last, vote }
    }

    #[test]
    fn the_newest_write_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = TipFile::create(dir.path()).unwrap();
        for index in 0..5 {
            file.write(tip(index)).unwrap();
            assert_eq!(TipFile::open(dir.path()).unwrap().tip(), &tip(index));
        }
    }

    #[test]
    fn a_torn_write_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = TipFile::create(dir.path()).unwrap();
        file.write(tip(1)).unwrap();
        file.write(tip(2)).unwrap();
        let path = dir.path().join(NAME);
        let mut bytes = fs::read(&path).unwrap();
        // The third write would go to the slot of the first.
        bytes[SLOT..SLOT + 20].copy_from_slice(&encode(3, &tip(3))[..20]);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(TipFile::open(dir.path()).unwrap().tip(), &tip(2));
    }

    #[test]
    fn a_file_without_a_readable_slot_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), [1; 2 * SLOT]).unwrap();
        let error = TipFile::open(dir.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
