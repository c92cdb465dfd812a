//! Measurements, each beside its rival in the same run.
//!
//! Every round starts in a network namespace of its own, so no contender meets what another left
//! behind. The order of contenders rotates from round to round, a first round that pays for
//! touching memory and loading programs is not counted, and medians are told. A contender that
//! fails is told as such.

pub mod apply;
pub mod catchup;
pub mod change;
pub mod failover;
pub mod followed;
pub mod stores;
pub mod workload;
pub mod writes;

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sched::{CloneFlags, unshare};

/// How much to measure.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub services: u16,
    pub servers: u8,
    /// Rounds that count.
    pub rounds: usize,
}

impl Scale {
    pub const FULL: Self = Self {
        services: 1_000,
        servers: 10,
        rounds: 3,
    };
    /// Enough to see that everything runs.
    pub const QUICK: Self = Self {
        services: 20,
        servers: 3,
        rounds: 1,
    };
}

type Measure<'a> = Box<dyn FnMut() -> Result<Duration> + 'a>;

/// Something to measure, and what it is called.
pub(crate) struct Contender<'a> {
    name: &'static str,
    measure: Measure<'a>,
}

impl<'a> Contender<'a> {
    pub(crate) fn new(name: &'static str, measure: impl FnMut() -> Result<Duration> + 'a) -> Self {
        let measure = Box::new(measure);
        Self { name, measure }
    }
}

/// Lines of a table: the first contender is ours, and the others are told as multiples of it.
pub(crate) fn compete(
    title: &str,
    rounds: usize,
    contenders: &mut [Contender<'_>],
    mut prepare: impl FnMut() -> Result<()>,
) -> Vec<String> {
    let mut times: Vec<Result<Vec<Duration>>> = contenders.iter().map(|_| Ok(vec![])).collect();
    for round in 0..=rounds {
        for turn in 0..contenders.len() {
            let index = (round + turn) % contenders.len();
            let Ok(measured) = &mut times[index] else {
                continue;
            };
            match prepare().and_then(|()| (contenders[index].measure)()) {
                Ok(time) if round > 0 => measured.push(time),
                Ok(_) => {}
                Err(error) => times[index] = Err(error),
            }
        }
    }
    let ours = times
        .first()
        .and_then(|times| times.as_ref().ok())
        .map(|times| median(times));
    let line = |(contender, times): (&Contender<'_>, &Result<Vec<Duration>>)| match times {
        Ok(times) => {
            let time = median(times);
            let ratio = ours.map_or(f64::NAN, |ours| time.as_secs_f64() / ours.as_secs_f64());
            row(title, contender.name, time, &format!("{ratio:.1}x"))
        }
        Err(error) => format!("{title:34} {:32} FAILED: {error:#}", contender.name),
    };
    contenders.iter().zip(&times).map(line).collect()
}

pub(crate) fn row(title: &str, name: &str, time: Duration, note: &str) -> String {
    format!(
        "{title:34} {name:32} {:>9.2} ms {note:>8}",
        time.as_secs_f64() * 1e3
    )
}

/// Throughput of one contender, its latencies, and how many times as fast the first one is.
pub(crate) fn rate_row(
    title: &str,
    name: &str,
    per_second: f64,
    latencies: &[(&str, Duration)],
    ratio: f64,
) -> String {
    let mut row = format!("{title:34} {name:32} {per_second:>9.0} /s");
    for (percentile, time) in latencies {
        row += &format!("  {percentile} {:>7.2} ms", time.as_secs_f64() * 1e3);
    }
    row + &format!("  {ratio:>5.1}x")
}

pub(crate) fn median(times: &[Duration]) -> Duration {
    percentile(times, 50)
}

pub(crate) fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times.get(index).copied().unwrap_or_default()
}

/// Moves this process to a network namespace of its own, with an empty table. `lo` must be up, or
/// IPVS refuses destinations.
pub(crate) fn fresh_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()?;
    ensure!(up.success(), "cannot bring lo up");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_among_the_times_measured() {
        let times: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(median(&times), Duration::from_millis(50));
        assert_eq!(percentile(&times, 99), Duration::from_millis(99));
        assert_eq!(median(&[]), Duration::ZERO);
    }
}
