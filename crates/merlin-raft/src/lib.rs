//! merlin-raft

mod cluster;
mod codec;
pub mod identity;
pub mod log;
mod proposal;
mod snapshot;
mod state;
mod typ;
