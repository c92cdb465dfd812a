use super::*;
use crate::conformance;

#[test]
fn the_table_in_memory_does_what_every_table_must() {
    for case in conformance::cases() {
        // The case's own panic message follows.
        eprintln!("{}", case.name);
        (case.run)(&mut MemoryTable::new());
    }
}
