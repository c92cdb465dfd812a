use std::sync::mpsc;

use merlin_model::table::ForwardMethod;

use super::*;
use crate::MemoryTable;
use crate::conformance::samples::{additions, at, every_destination, many, to};
use crate::memory::Fault;

const SHORT: Duration = Duration::from_millis(50);

/// Tries until it is so, or the test has taken too long.
async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds().await {
        assert!(Instant::now() < deadline, "it never came to be");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn every_call_reaches_the_table() {
    let memory = MemoryTable::new();
    let handle = Handle::spawn(memory.clone());
    let empty = handle.fingerprint().await.unwrap();
    let expected = every_destination();
    let answers = handle.apply(additions(&expected)).await.unwrap();
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(memory.table(), expected);
    assert_eq!(handle.dump().await.unwrap(), expected);
    let keys: Vec<_> = expected.services.keys().copied().collect();
    assert_eq!(handle.read(keys).await.unwrap(), expected);
    assert_eq!(handle.live().await.unwrap().len(), expected.services.len());
    assert_ne!(handle.fingerprint().await.unwrap(), empty);
    let timeouts = Timeouts {
        tcp: 1,
        tcp_fin: 2,
        udp: 3,
    };
    handle.set_timeouts(timeouts).await.unwrap();
    assert_eq!(handle.timeouts().await.unwrap(), timeouts);
}

#[tokio::test]
async fn answers_stay_in_order_when_there_are_more_operations_than_one_call_takes() {
    let handle = Handle::spawn(MemoryTable::new());
    let expected = many(1, 5000);
    let mut operations = additions(&expected);
    let key = *expected.services.keys().next().unwrap();
    let missing = Operation::EditDestination(key, at("10.9.9.9", 9), to(ForwardMethod::Masq, 1));
    for index in [0, 2047, 2048, 4999] {
        // Before the service exists it is the service that is missing.
        operations.insert(index, missing.clone());
    }
    let answers = handle.apply(operations.clone()).await.unwrap();
    assert_eq!(answers.len(), operations.len());
    for (operation, answer) in operations.iter().zip(answers) {
        assert_eq!(answer.is_err(), *operation == missing, "{operation}");
    }
    assert_eq!(handle.dump().await.unwrap(), expected);
}

#[tokio::test]
async fn a_hanging_call_is_named_and_others_fail_at_once_until_it_returns() {
    let memory = MemoryTable::new();
    let handle = Handle::with_timeout(memory.clone(), SHORT);
    memory.faults().inject(Call::Dump, Fault::Hang);
    let error = handle.dump().await.unwrap_err();
    let DataplaneError::Hanging {
        call: Call::Dump,
        elapsed,
    } = error
    else {
        panic!("{error:?}")
    };
    assert!(elapsed >= SHORT);
    assert!(!error.is_fatal());

    let asked = Instant::now();
    let error = handle.fingerprint().await.unwrap_err();
    assert!(
        asked.elapsed() < SHORT,
        "it waited for {:?}",
        asked.elapsed()
    );
    let words = error.to_string();
    assert!(
        words.starts_with("reading the IPVS table has been hanging for 0."),
        "{words}"
    );

    memory.faults().heal();
    eventually(async || handle.dump().await.is_ok()).await;
}

#[tokio::test]
async fn what_a_caller_gave_up_on_is_not_done_later() {
    let memory = MemoryTable::new();
    let handle = Handle::with_timeout(memory.clone(), SHORT);
    memory.faults().inject(Call::Dump, Fault::Hang);
    let operations = additions(&many(1, 1));
    // The second waits behind the first, and both give up.
    let (dumped, applied) = tokio::join!(handle.dump(), handle.apply(operations));
    assert!(matches!(dumped, Err(DataplaneError::Hanging { .. })));
    assert!(matches!(
        applied,
        Err(DataplaneError::Hanging {
            call: Call::Dump,
            ..
        })
    ));
    memory.faults().heal();
    eventually(async || handle.dump().await.is_ok()).await;
    assert_eq!(memory.applied(), 0);
}

/// Waiting for one's turn is not hanging, however long the queue.
#[tokio::test]
async fn many_callers_are_all_served() {
    struct Slow;

    impl Dataplane for Slow {
        fn dump(&mut self) -> Result<Table, DataplaneError> {
            // Work, not waiting: a fifth of the time-out.
            let start = Instant::now();
            while start.elapsed() < SHORT / 5 {
                std::hint::spin_loop();
            }
            Ok(Table::default())
        }

        fn read(&mut self, _: &[Key]) -> Result<Table, DataplaneError> {
            unreachable!()
        }

        fn apply(&mut self, _: &[Operation]) -> Result<Vec<Result<(), Refusal>>, DataplaneError> {
            unreachable!()
        }

        fn live(&mut self) -> Result<LiveTable, DataplaneError> {
            unreachable!()
        }

        fn fingerprint(&mut self) -> Result<Fingerprint, DataplaneError> {
            unreachable!()
        }

        fn timeouts(&mut self) -> Result<Timeouts, DataplaneError> {
            unreachable!()
        }

        fn set_timeouts(&mut self, _: Timeouts) -> Result<(), DataplaneError> {
            unreachable!()
        }
    }

    let handle = Handle::with_timeout(Slow, SHORT);
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let handle = handle.clone();
            tokio::spawn(async move { handle.dump().await })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_panic_of_the_thread_is_fatal_for_all() {
    let memory = MemoryTable::new();
    let handle = Handle::spawn(memory.clone());
    memory.faults().inject(Call::Live, Fault::Panic);
    let error = handle.live().await.unwrap_err();
    assert!(error.is_fatal(), "{error:?}");
    memory.faults().heal();
    let error = handle.dump().await.unwrap_err();
    assert!(error.is_fatal(), "{error:?}");
}

#[tokio::test]
async fn the_thread_ends_with_the_last_handle() {
    struct Notices(MemoryTable, mpsc::Sender<()>);

    impl Drop for Notices {
        fn drop(&mut self) {
            self.1.send(()).unwrap();
        }
    }

    impl Dataplane for Notices {
        fn dump(&mut self) -> Result<Table, DataplaneError> {
            self.0.dump()
        }

        fn read(&mut self, keys: &[Key]) -> Result<Table, DataplaneError> {
            self.0.read(keys)
        }

        fn apply(
            &mut self,
            operations: &[Operation],
        ) -> Result<Vec<Result<(), Refusal>>, DataplaneError> {
            self.0.apply(operations)
        }

        fn live(&mut self) -> Result<LiveTable, DataplaneError> {
            self.0.live()
        }

        fn fingerprint(&mut self) -> Result<Fingerprint, DataplaneError> {
            self.0.fingerprint()
        }

        fn timeouts(&mut self) -> Result<Timeouts, DataplaneError> {
            self.0.timeouts()
        }

        fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), DataplaneError> {
            self.0.set_timeouts(timeouts)
        }
    }

    let (dropped, notice) = mpsc::channel();
    let handle = Handle::spawn(Notices(MemoryTable::new(), dropped));
    let clone = handle.clone();
    drop(handle);
    clone.dump().await.unwrap();
    drop(clone);
    notice.recv_timeout(Duration::from_secs(10)).unwrap();
}
