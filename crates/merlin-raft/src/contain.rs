//! Panics of a library that are expected and caught.
//!
//! sled asserts what a damaged file does not fulfil. A program that ends at every panic, as the
//! daemon does, has to tell these from the others before they are caught.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread is one that will be caught: for panic hooks, which run before.
pub fn panic_is_expected() -> bool {
    EXPECTED.get()
}

/// Runs work that may panic; none if it did. Nothing that it touched may be used afterwards.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Option<T> {
    let before = EXPECTED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(before);
    done.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_expected_inside_and_nowhere_else() {
        assert!(!panic_is_expected());
        assert_eq!(contain(panic_is_expected), Some(true));
        assert_eq!(contain(|| panic!("on purpose")), None::<()>);
        assert!(!panic_is_expected());
    }
}
