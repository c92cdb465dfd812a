//! The durable raft log: entries, the vote, and the marks that say how much of the log is purged
//! and known to be committed. Everything acknowledged here survives `kill -9` and a power cut.
//!
//! # What is on disk
//!
//! ```text
//! <dir>/lock            held by the running daemon
//! <dir>/tip             128 bytes: two slots of 64, written in turn; what was acknowledged (tip.rs)
//! <dir>/committed       two slots of 32, written in turn: what a kill must not undo (mark.rs)
//! <dir>/journal         2 MiB: what was acknowledged and sled has in memory only (journal.rs)
//! <dir>/sled/           one sled 0.34 database, default tree; written anew when it is too large
//! <dir>/aside/          files of sled's that were in the way of opening it; never deleted here
//! <dir>/sled.found/     while the log is being opened: sled/ as it was found (keepsake.rs)
//!
//! key                               value (integers are big endian)
//! 00 "format"                       u32, 2
//! 00 "start"                        u64, first index, where the log did not begin at 0
//! 00 "purged"                       position: entries up to here are gone on purpose
//! 00 "committed"                    position: entries up to here are known to be committed
//! 00 "vote"                         u64 term, u64 node, u8 committed
//! 00 "journal"                      u64, up to which generation of the journal all is here
//! 01 <index u64> 0000               entry header, then the first bytes of the entry
//! 01 <index u64> <chunk u16>        the next bytes; a value is never longer than 4 KiB
//!
//! position      = u64 term, u64 index
//! entry header  = u32 length, u32 crc32c of the entry before, u32 crc32c, u16 chunks, u64 term
//!                 (a checksum covers the one before, index, term and bytes)
//! ```
//!
//! # Invariants
//!
//! - The indices from `purged + 1` (or `start`, or 0) to the last one are all present.
//! - Every change is a *sequence* of writes of which any beginning leaves a valid log: an entry's
//!   chunk 0 is written last, entries are truncated from the end, `purged` is moved before what
//!   it covers is removed. So a change may be cut into several batches; what a cut leaves behind
//!   is recognised and removed at the next start.
//! - What is acknowledged is in the journal or in the database, as a power cut would leave them.
//! - `tip` is never ahead of the two: raised after a write is durable, lowered before a
//!   truncation begins. A log that has less than `tip` says has lost something that others count
//!   on, and is refused.
//!
//! # Why not plain sled
//!
//! - `Tree::flush` of sled 0.34 does not fsync: a power cut loses what it "flushed". The writer
//!   thread syncs the file through a handle of its own after every flush. Both take time, so they
//!   are done for many changes at once, and each change is durable in the journal before.
//! - Pages above 128 KiB go to files that are never synced. Values of at most 4 KiB keep sixteen
//!   of them, the most sled puts on a page, well below.
//! - Space is recycled inside the file. Old and new copy of a page must not change within one
//!   sync, hence the limit on the size of a batch (`writer.rs`).
//! - A damaged file makes sled open with fewer records, or with older values of some, and say
//!   nothing. The scan at start follows the chain of checksums, and `tip` tells when the end is
//!   missing. (Damage that hits exactly what was written in the last second before a power cut
//!   can still pass for the cut.)
//! - A crash can leave index snapshots (`snap.*`) that sled then refuses for ever. They only
//!   speed up opening, so they are moved aside.
//!
//! # Threads
//!
//! ```text
//! openraft --Job--> writer thread: batch, journal, fdatasync, then Ack in order
//!    `--- reads --> blocking pool (a tail of recent entries is kept in memory)
//! ```
//! No call into sled runs on a thread of the async runtime.

mod batch;
mod compact;
mod engine;
mod error;
mod journal;
mod keepsake;
mod layout;
mod mark;
mod recover;
mod tail;
mod tip;
mod writer;

mod store;

pub use engine::{Ack, LogEngine, LogReader};
pub use error::{OpenError, ReadError, WriteError};
pub use layout::{Ballot, MAX_PAYLOAD, Position, Record};
#[cfg(any(test, feature = "simulation"))]
pub(crate) use store::Engine;
pub(crate) use store::{LogStore, position};

#[cfg(test)]
mod tests;
