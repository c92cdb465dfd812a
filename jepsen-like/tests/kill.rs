//! A hundred kills of the built daemon.

use std::time::Duration;

use jepsen_like::kill::{Plan, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_kills_lose_no_acknowledged_write() {
    let seed = 0x6d65_726c_696e;
    println!("seed {seed}");
    let longest = Duration::from_millis(200);
    let ran = run(
        Plan {
            rounds: 100,
            seed,
            longest,
            until_purged: true,
        },
        |_, _| {},
    )
    .await;
    match ran {
        Ok(history) => println!(
            "{} writes acknowledged, {} of unknown outcome",
            history.acknowledged, history.unknown
        ),
        Err(error) => panic!("{error:#}"),
    }
}
