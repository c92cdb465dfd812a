use merlin_model::table::flags;

use super::*;
use crate::conformance;
use crate::conformance::samples::{additions, every_destination, many, service, tcp};

#[test]
fn the_table_in_memory_does_what_every_table_must() {
    for case in conformance::cases() {
        // The case's own panic message follows.
        eprintln!("{}", case.name);
        (case.run)(&mut MemoryTable::new());
    }
}

#[test]
fn clones_share_one_table() {
    let memory = MemoryTable::new();
    let mut caller = memory.clone();
    caller.apply(&additions(&every_destination())).unwrap();
    assert_eq!(memory.table(), every_destination());
    let before = caller.fingerprint().unwrap();
    memory.meddle(|table| {
        table.pop_first();
    });
    assert_ne!(caller.fingerprint().unwrap(), before);
    assert_eq!(caller.dump().unwrap(), memory.table());
}

#[test]
fn modules_can_be_missing_and_come_back() {
    let memory = MemoryTable::new();
    let mut caller = memory.clone();
    let key = tcp("10.0.0.1", 80);
    let mut maglev = service(&key, "mh");
    maglev.flags = flags::SCHEDULER_2;
    let add = [Operation::AddService(key, maglev)];
    memory.set_modules(Modules {
        schedulers: vec!["rr".to_owned()],
        engines: Vec::new(),
    });
    let answers = caller.apply(&add).unwrap();
    let words = answers[0].as_ref().unwrap_err().to_string();
    assert_eq!(
        words,
        "scheduler mh is not available on this node: modprobe ip_vs_mh"
    );
    memory.set_modules(Modules::default());
    assert_eq!(caller.apply(&add).unwrap(), [Ok(())]);
}

#[test]
fn calls_fail_as_long_as_there_is_a_fault() {
    let memory = MemoryTable::new();
    let mut caller = memory.clone();
    memory
        .faults()
        .inject(Call::Dump, Fault::Fail(Errno::EPERM as i32));
    let error = caller.dump().unwrap_err();
    assert!(
        matches!(
            error,
            DataplaneError::Refused {
                call: Call::Dump,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(caller.live().is_ok());
    memory.faults().heal();
    assert!(caller.dump().is_ok());
}

#[test]
fn operations_can_be_refused_one_by_one() {
    let memory = MemoryTable::new();
    let mut caller = memory.clone();
    let unlucky = tcp("10.1.0.1", 80);
    memory
        .faults()
        .refuse(move |operation| (*operation.key() == unlucky).then_some(Errno::ENOMEM as i32));
    let operations = additions(&many(3, 0));
    let answers = caller.apply(&operations).unwrap();
    for (operation, answer) in operations.iter().zip(&answers) {
        assert_eq!(answer.is_err(), *operation.key() == unlucky);
    }
    assert_eq!(memory.applied(), 2);
    assert_eq!(memory.table().services.len(), 2);
    memory.faults().heal();
    assert_eq!(
        caller.apply(&additions(&many(3, 0))[1..2]).unwrap(),
        [Ok(())]
    );
}
