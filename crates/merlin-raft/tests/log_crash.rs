//! A process that is killed while it writes loses nothing that it acknowledged.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, helpers too")]

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

#[path = "../examples/support/load.rs"]
#[expect(dead_code, reason = "reporting is for the examples")]
mod load;

/// Names the directory to the writer, which is this binary once more.
const DIR: &str = "MERLIN_TEST_LOG_DIR";

const KILLS: u64 = 30;

/// Does nothing unless it was started by the test below, as a child to be killed.
#[test]
fn the_child_that_is_killed() -> Result<(), Box<dyn Error>> {
    match std::env::var_os(DIR) {
        Some(dir) => load::write(Path::new(&dir), u64::MAX, &mut std::io::stdout()),
        None => Ok(()),
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = None;
    for round in 0..KILLS {
        // A different moment each round, up to a quarter of a second into the writing.
        let moment = Duration::from_micros(round * 7919 % 250 * 1000);
        let seen = write_until_killed(dir.path(), moment);
        acknowledged = acknowledged.max(seen);
        let last = load::check(dir.path(), acknowledged)
            .unwrap_or_else(|error| panic!("round {round}, killed after {moment:?}: {error}"));
        acknowledged = acknowledged.max(last);
    }
    assert!(acknowledged > Some(KILLS), "the child made no progress");
}

/// The last index that the child acknowledged before it was killed.
fn write_until_killed(dir: &Path, moment: Duration) -> Option<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_child_that_is_killed", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (first, began) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut last = None;
        // The test harness prints lines of its own.
        for index in lines
            .map_while(Result::ok)
            .filter_map(|line| line.parse().ok())
        {
            last = Some(index);
            let _ = first.send(());
        }
        last
    });
    began
        .recv_timeout(Duration::from_secs(60))
        .expect("the child acknowledges something");
    // Not a wait for anything to happen: the moment of the kill is what the test is about.
    thread::sleep(moment);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}
