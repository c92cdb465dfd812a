//! How far the log is committed, kept where it outlives the process.
//!
//! What a node has applied, its kernel may hold. A daemon that was killed must therefore apply at
//! least as much again before it compares the kernel with its catalog, or it would take back what
//! the last entries declared, although no quorum is there to tell it of them. So the mark is
//! written before entries are applied, straight to the kernel's page cache. It is not synced: a
//! power cut empties the IPVS table too, and then an older mark is good enough.
//!
//! Two slots written in turn, so that a torn write leaves the one before:
//! ```text
//! u64 index  u64 term  12 zero bytes  u32 crc32c of the 28 bytes before
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::layout::{Position, be_u64};

const SLOT: usize = 32;
const SUM: usize = SLOT - 4;
const NAME: &str = "committed";

#[derive(Debug)]
pub(super) struct CommitMark {
    file: File,
    turn: u64,
}

impl CommitMark {
    /// Opens the mark with the furthest position it holds. Bytes that are no mark hold none.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, Option<Position>)> {
        let file = File::options()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(dir.join(NAME))?;
        let mut bytes = [0; 2 * SLOT];
        // A new file is shorter and leaves zeros, whose checksum is wrong.
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        let furthest = bytes.chunks_exact(SLOT).filter_map(decode).max();
        Ok((Self { file, turn: 0 }, furthest))
    }

    /// Returns when a kill of this process cannot undo it.
    pub(super) fn write(&mut self, position: Position) -> io::Result<()> {
        self.turn += 1;
        let at = (self.turn % 2) * SLOT as u64;
        self.file.write_all_at(&encode(position), at)
    }
}

fn encode(position: Position) -> [u8; SLOT] {
    let mut out = [0; SLOT];
    out[0..8].copy_from_slice(&position.index.to_be_bytes());
    out[8..16].copy_from_slice(&position.term.to_be_bytes());
    let sum = crc32c::crc32c(&out[..SUM]);
    out[SUM..].copy_from_slice(&sum.to_be_bytes());
    out
}

fn decode(slot: &[u8]) -> Option<Position> {
    let sound = crc32c::crc32c(&slot[..SUM]).to_be_bytes() == slot[SUM..];
    sound.then(|| Position {
        index: be_u64(slot, 0),
        term: be_u64(slot, 8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> Position {
        Position { term: 3, index }
    }

    #[test]
    fn the_furthest_position_is_there_for_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let (mut mark, found) = CommitMark::open(dir.path()).unwrap();
        assert_eq!(found, None);
        for index in 1..=5 {
            mark.write(at(index)).unwrap();
        }
        // Not closed, not synced: as after a kill.
        let (_, found) = CommitMark::open(dir.path()).unwrap();
        assert_eq!(found, Some(at(5)));
    }

    #[test]
    fn a_torn_write_leaves_the_mark_before() {
        let dir = tempfile::tempdir().unwrap();
        let (mut mark, _) = CommitMark::open(dir.path()).unwrap();
        mark.write(at(1)).unwrap();
        mark.write(at(2)).unwrap();
        let path = dir.path().join(NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        // The second write went to the first slot.
        bytes[3] ^= 0xff;
        std::fs::write(&path, bytes).unwrap();
        let (_, found) = CommitMark::open(dir.path()).unwrap();
        assert_eq!(found, Some(at(1)));
    }
}
