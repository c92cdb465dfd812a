//! merlin-raft

mod cluster;
mod typ;
