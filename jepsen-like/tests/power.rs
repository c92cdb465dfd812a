//! Power cuts of a guest that runs the built daemon.

use jepsen_like::power;

#[test]
fn power_cuts_lose_no_acknowledged_write() {
    let jepsen = env!("CARGO_BIN_EXE_jepsen-like");
    match power::run(jepsen.as_ref(), 4, 0x0070_6f77_6572) {
        Ok(history) => println!(
            "{} writes acknowledged, {} of unknown outcome",
            history.acknowledged, history.unknown
        ),
        Err(error) => panic!("{error:#}"),
    }
}
