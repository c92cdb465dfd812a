//! merlin-reconcile
