//! merlin-health
