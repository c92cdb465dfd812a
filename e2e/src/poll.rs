//! Waiting for something to become true, instead of sleeping and hoping.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Between two looks. In a guest a look costs a few hundred microseconds of its only CPU.
const PAUSE: Duration = Duration::from_millis(20);

/// Tries `attempt` until it succeeds. If it has not by the deadline, the error of the last try
/// says what was still wrong.
pub fn eventually<T>(within: Duration, attempt: impl FnMut() -> Result<T>) -> Result<T> {
    poll(within, PAUSE, attempt)
}

fn poll<T>(within: Duration, pause: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("not within {within:?}"));
            }
            Err(_) => thread::sleep(pause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_ends_the_wait() {
        let mut tries = 0;
        let counted = poll(Duration::from_secs(60), Duration::ZERO, || {
            tries += 1;
            anyhow::ensure!(tries == 3, "only {tries}");
            Ok(tries)
        });
        assert_eq!(counted.unwrap(), 3);
    }

    #[test]
    fn the_last_error_is_told_with_the_deadline() {
        let never = poll(Duration::ZERO, Duration::ZERO, || -> Result<()> {
            anyhow::bail!("still red")
        });
        assert_eq!(
            format!("{:#}", never.unwrap_err()),
            "not within 0ns: still red"
        );
    }
}
