//! What every [`Dataplane`] must do, as cases that anyone can run on theirs.
//!
//! The in-memory table passes them in this crate's tests, the kernel in a guest that has one
//! (`examples/ipvs-conformance`). A case panics where the table fails it. It expects an empty
//! table of its own; on a kernel, in a network namespace whose `lo` is up and with the `ipv6`
//! module loaded.

/// Lists functions as cases that have their names.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(super) const CASES: &[crate::conformance::Case] = &[
            $(crate::conformance::Case { name: stringify!($name), run: $name }),*
        ];
    };
}

mod reading;
mod refusing;
pub mod samples;
mod writing;

use merlin_model::table::{Operation, Table};

use crate::Dataplane;

/// One thing a table must do; the name says what.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub name: &'static str,
    pub run: fn(&mut dyn Dataplane),
}

/// All of them.
pub fn cases() -> impl Iterator<Item = Case> {
    [writing::CASES, refusing::CASES, reading::CASES]
        .into_iter()
        .flatten()
        .copied()
}

// === what cases are made of ===

fn dump(table: &mut dyn Dataplane) -> Table {
    table.dump().expect("the table can be read")
}

/// The error number of every operation, 0 for those carried out.
fn outcomes(table: &mut dyn Dataplane, operations: &[Operation]) -> Vec<i32> {
    let answers = table.apply(operations).expect("the table can be changed");
    assert_eq!(answers.len(), operations.len(), "one answer per operation");
    let number =
        |answer: Result<_, crate::Refusal>| answer.err().map_or(0, |refusal| refusal.errno);
    answers.into_iter().map(number).collect()
}

/// Applies operations none of which may be refused.
#[track_caller]
fn apply(table: &mut dyn Dataplane, operations: &[Operation]) {
    let answers = table.apply(operations).expect("the table can be changed");
    for (operation, answer) in operations.iter().zip(answers) {
        if let Err(refusal) = answer {
            panic!("{operation}: {refusal} (error {})", refusal.errno);
        }
    }
}
