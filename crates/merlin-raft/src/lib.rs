//! merlin-raft

mod cluster;
mod codec;
mod typ;
