//! merlin-proto
