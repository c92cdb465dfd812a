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

    // At once: before it waits for anything.
    let asked = tokio::time::timeout(Duration::ZERO, handle.fingerprint()).await;
    let error = asked.unwrap().unwrap_err();
    let words = error.to_string();
    assert!(
        words.starts_with("reading the IPVS table has been hanging for "),
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
async fn a_queue_that_moves_does_not_time_out() {
    const TIMEOUT: Duration = Duration::from_millis(500);
    const CALLERS: u16 = 10;
    const WORK: Duration = Duration::from_millis(100);

    let memory = MemoryTable::new();
    memory.faults().refuse(|_| {
        let start = Instant::now();
        while start.elapsed() < WORK {
            std::hint::spin_loop();
        }
        None
    });
    let handle = Handle::with_timeout(memory.clone(), TIMEOUT);
    let callers: Vec<_> = additions(&many(CALLERS, 0))
        .into_iter()
        .map(|operation| {
            let handle = handle.clone();
            tokio::spawn(async move { handle.apply(vec![operation]).await })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), [Ok(())]);
    }
    assert_eq!(memory.applied(), CALLERS.into());
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
    let memory = MemoryTable::new();
    let (owned_by_the_table, notice) = mpsc::channel::<()>();
    memory.faults().refuse(move |_| {
        let _ = &owned_by_the_table;
        None
    });
    let handle = Handle::spawn(memory);
    let clone = handle.clone();
    drop(handle);
    clone.dump().await.unwrap();
    drop(clone);
    let gone = notice.recv_timeout(Duration::from_secs(10));
    assert_eq!(gone, Err(mpsc::RecvTimeoutError::Disconnected));
}
