//! Ways to be wrong on purpose, so that the tests that must notice can be tested.
//!
//! Only the feature `mutants`, which only those tests use, compiles them in; everywhere else
//! [`active`] is false and leaves nothing behind.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Acknowledges writes of the log that are in memory only.
    AckBeforeFlush,
    /// Commits what the leader's own disk may not have yet.
    CommitBeforeFlush,
    /// Acknowledges what the kernel has and the disk may not.
    FlushWithoutSync,
    /// Answers linearizable reads from what this node happens to have.
    StaleRead,
    /// Carries a repeated request out again.
    NoDedup,
    /// Now and then tells watches nothing of a change.
    LostEvent,
    /// Applies the commands of an entry in an order that every process makes up for itself.
    HashOrder,
}

/// Whether the environment asks for this mutant.
#[cfg(feature = "mutants")]
pub(crate) fn active(mutant: Mutant) -> bool {
    let name = match mutant {
        Mutant::AckBeforeFlush => "ack-before-flush",
        Mutant::CommitBeforeFlush => "commit-before-flush",
        Mutant::FlushWithoutSync => "flush-without-sync",
        Mutant::StaleRead => "stale-read",
        Mutant::NoDedup => "no-dedup",
        Mutant::LostEvent => "lost-event",
        Mutant::HashOrder => "hash-order",
    };
    std::env::var("MERLIN_MUTANT").is_ok_and(|asked| asked == name)
}

#[cfg(not(feature = "mutants"))]
pub(crate) const fn active(_: Mutant) -> bool {
    false
}
