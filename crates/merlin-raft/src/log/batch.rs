//! Writes that become durable together, and their encoding for the journal.
//!
//! ```text
//! for each write: u16 length of the key, u32 length of the value plus one, or 0 if the key goes
//!                 away, the key, the value
//! ```

use std::fs::File;
use std::io;

use bytes::{Buf, BufMut};

use super::layout::Write;
use crate::mutants::{self, Mutant};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Batch(Vec<Write>);

impl Batch {
    pub(super) fn add(&mut self, write: Write) {
        self.0.push(write);
    }

    /// Gives it to sled, which keeps it in memory for now. One after the other: any beginning is a
    /// valid log, so a batch of sled's, which costs a record and a wait of its own, is not needed.
    pub(super) fn apply(self, db: &sled::Db) -> io::Result<()> {
        for (key, value) in self.0 {
            match value {
                Some(value) => drop(db.insert(key, value)?),
                None => drop(db.remove(key)?),
            }
        }
        Ok(())
    }

    /// Gives it to sled, and returns when it would survive a power cut.
    pub(super) fn persist(self, db: &sled::Db, disk: &File) -> io::Result<()> {
        self.apply(db)?;
        db.flush()?;
        if mutants::active(Mutant::FlushWithoutSync) {
            return Ok(());
        }
        disk.sync_data()
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for (key, value) in &self.0 {
            // Keys have some bytes and values a chunk of an entry at most.
            out.put_u16(u16::try_from(key.len()).unwrap_or(u16::MAX));
            let length = value.as_ref().map_or(0, |value| value.len() + 1);
            out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
            out.put_slice(key);
            out.put_slice(value.as_deref().unwrap_or_default());
        }
    }

    /// None for bytes that are no encoded batch.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut batch = Self::default();
        while bytes.has_remaining() {
            let key = bytes.try_get_u16().ok()?;
            let value = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
            let (key, rest) = bytes.split_at_checked(key.into())?;
            let (value, rest) = match value.checked_sub(1) {
                Some(length) => {
                    let (value, rest) = rest.split_at_checked(length)?;
                    (Some(value.to_vec()), rest)
                }
                None => (None, rest),
            };
            batch.add((key.to_vec(), value));
            bytes = rest;
        }
        Some(batch)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in super::super) fn any_batch() -> impl Strategy<Value = Batch> {
        let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
        let write = (bytes(12), prop::option::of(bytes(4096)));
        prop::collection::vec(write, 0..6).prop_map(Batch)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_batch_survives_its_encoding(batch in any_batch()) {
            let mut bytes = Vec::new();
            batch.encode(&mut bytes);
            prop_assert_eq!(Batch::decode(&bytes), Some(batch));
        }

        #[test]
        fn arbitrary_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Batch::decode(&bytes);
        }
    }
}
