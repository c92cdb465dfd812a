//! A way to be wrong on purpose, so that the tests that must notice can be tested.
//!
//! Only the feature `mutants`, which only those tests use, compiles it in.

/// Whether servers that are down lose their rule instead of their weight.
#[cfg(feature = "mutants")]
pub(crate) fn deletes_the_sick() -> bool {
    std::env::var("MERLIN_MUTANT").is_ok_and(|asked| asked == "delete-sick")
}

#[cfg(not(feature = "mutants"))]
pub(crate) const fn deletes_the_sick() -> bool {
    false
}
