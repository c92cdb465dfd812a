//! IPVS of the Linux kernel over generic netlink.
//!
//! [`Dataplane`] is the seam: the kernel and the in-memory table both implement it, answer with the
//! same error numbers and pass the same [`conformance`] suite. [`Handle`] gives either a thread of
//! its own and lets asynchronous code call it.

use merlin_model::table::{Key, LiveTable, Operation, Table};

pub mod conformance;
mod error;
mod handle;
mod kernel;
pub mod memory;
mod refusal;
pub mod wire;

pub use error::{Call, DataplaneError, OpenError};
pub use handle::Handle;
pub use kernel::Kernel;
pub use memory::MemoryTable;
pub use refusal::Refusal;

/// Timeouts of IPVS connections in seconds; 0 leaves one as it is when setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    pub tcp: u32,
    pub tcp_fin: u32,
    pub udp: u32,
}

/// A hash of the table that is cheap to take. Equal fingerprints mean equal keys, schedulers,
/// forwarding methods and weights; unequal ones mean that something changed. Counters have no part
/// in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub u64);

/// An IPVS table that can be read and changed. Calls block: the caller gives them a thread.
pub trait Dataplane: Send + 'static {
    /// The whole table.
    fn dump(&mut self) -> Result<Table, DataplaneError>;

    /// The services there are.
    fn keys(&mut self) -> Result<Vec<Key>, DataplaneError>;

    /// The named services with their destinations; those the table lacks are left out.
    fn read(&mut self, keys: &[Key]) -> Result<Table, DataplaneError>;

    /// Carries out every operation in order, going on after one that is refused.
    ///
    /// The answers are in the operations' order. An error means that any number of them may have
    /// been carried out.
    fn apply(
        &mut self,
        operations: &[Operation],
    ) -> Result<Vec<Result<(), Refusal>>, DataplaneError>;

    /// The whole table with its counters.
    fn live(&mut self) -> Result<LiveTable, DataplaneError>;

    fn fingerprint(&mut self) -> Result<Fingerprint, DataplaneError>;

    fn timeouts(&mut self) -> Result<Timeouts, DataplaneError>;

    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), DataplaneError>;
}
