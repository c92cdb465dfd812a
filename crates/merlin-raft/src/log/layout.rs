//! Keys and values of the database, and entries cut into chunks and put together again. Pure.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

/// Largest payload that one entry may carry.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// A payload and what the encoding of an entry adds to it.
const MAX_RECORD: usize = MAX_PAYLOAD + 1024;

/// Longest value in the database; the head of the module says why.
const CHUNK: usize = 4096;
const HEADER: usize = 4 + 4 + 4 + 2 + 8;

const META: u8 = 0x00;
const ENTRY: u8 = 0x01;
const ENTRY_KEY: usize = 1 + 8 + 2;

/// The version of everything described at the head of the module.
pub(super) const FORMAT: u32 = 2;

/// Where in the log: an index, and the term whose one leader wrote it. Ordered as consensus does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub term: u64,
    pub index: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "index {} of term {}", self.index, self.term)
    }
}

/// The vote of this node: the highest leader it promised to follow. Ordered as votes follow each
/// other: within a term, the leader that a quorum chose replaces a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ballot {
    pub term: u64,
    pub committed: bool,
    pub node: u64,
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} in term {}", self.node, self.term)
    }
}

/// An entry of the log, opaque here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub position: Position,
    pub bytes: Bytes,
}

/// What is stored beside the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meta {
    Format,
    Start,
    Purged,
    Committed,
    Vote,
    Journal,
}

impl Meta {
    pub(super) fn key(self) -> Vec<u8> {
        let name = match self {
            Meta::Format => "format",
            Meta::Start => "start",
            Meta::Purged => "purged",
            Meta::Committed => "committed",
            Meta::Vote => "vote",
            Meta::Journal => "journal",
        };
        [&[META], name.as_bytes()].concat()
    }
}

/// One step of a change: a key gets a value, or goes away.
pub(super) type Write = (Vec<u8>, Option<Vec<u8>>);

// === impl Position, Ballot ===

impl Position {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16);
        out.put_u64(self.term);
        out.put_u64(self.index);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 16] = bytes.try_into().ok()?;
        Some(Self {
            term: be_u64(bytes, 0),
            index: be_u64(bytes, 8),
        })
    }
}

impl Ballot {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(17);
        out.put_u64(self.term);
        out.put_u64(self.node);
        out.put_u8(self.committed.into());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 17] = bytes.try_into().ok()?;
        Some(Self {
            term: be_u64(bytes, 0),
            node: be_u64(bytes, 8),
            committed: match bytes[16] {
                0 => false,
                1 => true,
                _ => return None,
            },
        })
    }
}

/// Reads 8 bytes at `at`, which the callers' fixed lengths keep inside `bytes`.
pub(super) fn be_u64(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(out)
}

fn be_u32(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(out)
}

fn be_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

// === Keys ===

/// Of the first chunk of an entry: the smallest of the entry's keys.
pub(super) fn entry_key(index: u64) -> Vec<u8> {
    chunk_key(index, 0)
}

pub(super) fn chunk_key(index: u64, chunk: u16) -> Vec<u8> {
    let mut key = Vec::with_capacity(ENTRY_KEY);
    key.put_u8(ENTRY);
    key.put_u64(index);
    key.put_u16(chunk);
    key
}

/// Index and chunk, if it is a key of an entry at all.
pub(super) fn parse_entry_key(key: &[u8]) -> Option<(u64, u16)> {
    (key.len() == ENTRY_KEY && key[0] == ENTRY).then(|| (be_u64(key, 1), be_u16(key, 9)))
}

/// Whether it is one of the keys that this version knows.
pub(super) fn is_meta_key(key: &[u8]) -> bool {
    use Meta::{Committed, Format, Journal, Purged, Start, Vote};
    [Format, Start, Purged, Committed, Vote, Journal]
        .iter()
        .any(|meta| meta.key() == key)
}

// === Entries ===

impl Record {
    /// Whether the entry is larger than the log takes.
    pub(super) fn is_too_large(&self) -> bool {
        self.bytes.len() > MAX_RECORD
    }

    /// The checksum of this entry after one with the checksum `before`.
    pub(super) fn checksum(&self, before: u32) -> u32 {
        let mut place = Vec::with_capacity(20);
        place.put_u32(before);
        place.put_u64(self.position.index);
        place.put_u64(self.position.term);
        crc32c::crc32c_append(crc32c::crc32c(&place), &self.bytes)
    }

    /// The writes that add the entry, `checksum`, after the one with the checksum `before`. The
    /// first chunk comes last: an entry is there when its first chunk is.
    pub(super) fn writes(&self, before: u32, checksum: u32) -> impl Iterator<Item = Write> {
        let head = self.bytes.len().min(CHUNK - HEADER);
        let (head, rest) = self.bytes.split_at(head);
        // 257 at most, by `is_too_large`.
        let chunks = u16::try_from(1 + rest.len().div_ceil(CHUNK)).unwrap_or(u16::MAX);
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);

        let mut first = Vec::with_capacity(HEADER + head.len());
        first.put_u32(length);
        first.put_u32(before);
        first.put_u32(checksum);
        first.put_u16(chunks);
        first.put_u64(self.position.term);
        first.put_slice(head);

        let index = self.position.index;
        (1..chunks)
            .zip(rest.chunks(CHUNK))
            .rev()
            .map(move |(chunk, bytes)| (chunk_key(index, chunk), Some(bytes.to_vec())))
            .chain(std::iter::once((entry_key(index), Some(first))))
    }
}

/// What the first chunk says of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    length: usize,
    /// The checksum of the entry before.
    pub(super) before: u32,
    pub(super) checksum: u32,
    chunks: u16,
    pub(super) position: Position,
}

impl Header {
    pub(super) fn decode(index: u64, first_chunk: &[u8]) -> Option<Self> {
        let header = first_chunk.get(..HEADER)?;
        let position = Position {
            term: be_u64(header, 14),
            index,
        };
        Some(Self {
            length: usize::try_from(be_u32(header, 0)).ok()?,
            before: be_u32(header, 4),
            checksum: be_u32(header, 8),
            chunks: be_u16(header, 12),
            position,
        })
    }
}

/// Why chunks do not make an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    #[error("its beginning is missing")]
    Headless,
    #[error("a part of it is missing")]
    Incomplete,
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it was written after another entry than the one that is before it")]
    Stray,
}

/// Puts entries together from their chunks, which come in the order of their keys.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    header: Header,
    seen: u16,
    bytes: BytesMut,
}

impl Assembler {
    /// Takes the next chunk; gives the entry that it completes. An error names the entry.
    pub(super) fn push(
        &mut self,
        index: u64,
        chunk: u16,
        value: &[u8],
    ) -> Result<Option<(Header, Record)>, (u64, Flaw)> {
        if chunk == 0 {
            self.finish()?;
            self.partial = Some(Partial::begin(index, value).ok_or((index, Flaw::Checksum))?);
        } else {
            match &mut self.partial {
                Some(partial) if partial.index() == index && partial.seen == chunk => {
                    partial.bytes.put_slice(value);
                    partial.seen += 1;
                }
                Some(partial) => return Err((partial.index(), Flaw::Incomplete)),
                None => return Err((index, Flaw::Headless)),
            }
        }
        match self.partial.take() {
            Some(partial) if partial.seen == partial.header.chunks => partial.end().map(Some),
            unfinished => {
                self.partial = unfinished;
                Ok(None)
            }
        }
    }

    /// No more chunks: fails if the last entry is not complete.
    pub(super) fn finish(&mut self) -> Result<(), (u64, Flaw)> {
        match self.partial.take() {
            Some(partial) => Err((partial.index(), Flaw::Incomplete)),
            None => Ok(()),
        }
    }
}

impl Partial {
    fn begin(index: u64, value: &[u8]) -> Option<Self> {
        let header = Header::decode(index, value).filter(|header| header.length <= MAX_RECORD)?;
        let mut bytes = BytesMut::with_capacity(header.length);
        bytes.put_slice(&value[HEADER..]);
        Some(Self {
            header,
            seen: 1,
            bytes,
        })
    }

    fn index(&self) -> u64 {
        self.header.position.index
    }

    fn end(self) -> Result<(Header, Record), (u64, Flaw)> {
        let header = self.header;
        let record = Record {
            position: header.position,
            bytes: self.bytes.freeze(),
        };
        if record.bytes.len() == header.length && record.checksum(header.before) == header.checksum
        {
            Ok((header, record))
        } else {
            Err((header.position.index, Flaw::Checksum))
        }
    }
}
