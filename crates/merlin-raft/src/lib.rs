//! merlin-raft
