//! Power cuts of a guest that runs the built daemon.

use jepsen_like::power::{Subject, run};

#[test]
fn power_cuts_lose_no_acknowledged_write() {
    let jepsen = env!("CARGO_BIN_EXE_jepsen-like");
    match run(jepsen.as_ref(), Subject::Daemon, 4, 0x0070_6f77_6572) {
        Ok(history) => println!(
            "{} writes acknowledged, {} of unknown outcome",
            history.acknowledged, history.unknown
        ),
        Err(error) => panic!("{error:#}"),
    }
}

/// Otherwise the test above proves nothing.
#[test]
fn a_store_that_does_not_sync_is_caught() {
    let jepsen = env!("CARGO_BIN_EXE_jepsen-like");
    let caught = run(jepsen.as_ref(), Subject::Careless, 1, 0x0070_6f77_6572);
    let words = format!("{:#}", caught.expect_err("nothing was missed"));
    assert!(words.contains("was acknowledged and is lost"), "{words}");
}
