//! Clocks that jump.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use rand::Rng;

use super::{Begun, Kind, Nemesis};
use crate::lab::machine::Machine;

const HOUR: i64 = 3600;
const PATIENCE: Duration = Duration::from_secs(20);

impl Nemesis {
    pub(super) fn jump(&mut self) -> Result<Begun> {
        ensure!(
            Machine::has_movable_clock(),
            "clocks cannot be moved (Debian: libfaketime)"
        );
        let victim = self.take_victim()?;
        let ahead = if self.dice.random() { HOUR } else { -HOUR };
        let detail = format!("n{victim} by {ahead:+} s");
        let begun = self.begin(Kind::ClockJump, detail, []);
        let machine = self.machine(victim).clone();
        machine.move_clock(ahead)?;
        await_clock(&machine, ahead)?;
        self.hold();
        machine.move_clock(0)?;
        await_clock(&machine, 0)?;
        Ok(begun)
    }
}

/// Until what the daemon says of the time shows the jump.
fn await_clock(machine: &Machine, ahead: i64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let shown = shown_offset(machine)?;
        if (shown - ahead).abs() < 60 {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the clock is {shown} s ahead instead of {ahead}"
        );
    }
}

/// By how much the daemon's clock is ahead of ours: told to read its configuration again, it says
/// so in its log, with the time.
fn shown_offset(machine: &Machine) -> Result<i64> {
    let before = machine.log().len();
    machine.hang_up()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = machine.log().split_off(before);
        let stamp = said
            .lines()
            .filter(|line| line.contains("configuration"))
            .find_map(timestamp);
        if let Some(shown) = stamp {
            let ahead =
                i64::try_from(seconds(shown)?)? - i64::try_from(seconds(SystemTime::now())?)?;
            return Ok(ahead);
        }
        ensure!(Instant::now() < deadline, "nothing in the log after SIGHUP");
        thread::sleep(Duration::from_millis(50));
    }
}

fn timestamp(line: &str) -> Option<SystemTime> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    humantime::parse_rfc3339(line["timestamp"].as_str()?).ok()
}

fn seconds(at: SystemTime) -> Result<u64> {
    Ok(at.duration_since(UNIX_EPOCH)?.as_secs())
}
