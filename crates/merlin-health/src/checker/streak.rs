//! Consecutive equal outcomes, and the verdict they amount to.
//!
//! ```text
//!              up_threshold successes in a row
//!          ┌───────────────────────────────────▶ Up ◀─┐
//!  Unknown ┤                                     │    │ and back, by the same counts
//!          └───────────────────────────────────▶ Down ┘
//!             down_threshold failures in a row
//! ```

use std::num::NonZeroU32;

use merlin_model::Verdict;

/// How many outcomes in a row it takes to be declared up, and down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Thresholds {
    pub(super) up: NonZeroU32,
    pub(super) down: NonZeroU32,
}

/// The latest outcomes, as far back as they are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Streak {
    healthy: bool,
    length: u32,
}

impl Streak {
    pub(super) fn push(&mut self, healthy: bool) {
        let before = if self.healthy == healthy {
            self.length
        } else {
            0
        };
        *self = Self {
            healthy,
            length: before.saturating_add(1),
        };
    }

    /// The verdict after this streak, given the one before it.
    pub(super) fn judge(self, thresholds: Thresholds, verdict: Verdict) -> Verdict {
        match self.healthy {
            true if self.length >= thresholds.up.get() => Verdict::Up,
            false if self.length >= thresholds.down.get() => Verdict::Down,
            _ => verdict,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: u32 = 3;
    const DOWN: u32 = 2;

    fn thresholds() -> Thresholds {
        Thresholds {
            up: NonZeroU32::new(UP).unwrap(),
            down: NonZeroU32::new(DOWN).unwrap(),
        }
    }

    #[test]
    fn every_state_meets_every_outcome() {
        use Verdict::{Down, Unknown, Up};
        let healthy = |length| Streak {
            healthy: true,
            length,
        };
        let failing = |length| Streak {
            healthy: false,
            length,
        };
        // Outcomes so far, verdict so far; then verdict and outcomes after a success, and after a
        // failure. With three up and two down this is every pair that can be told apart.
        let table = [
            (
                healthy(0),
                Unknown,
                (Unknown, healthy(1)),
                (Unknown, failing(1)),
            ),
            (
                healthy(1),
                Unknown,
                (Unknown, healthy(2)),
                (Unknown, failing(1)),
            ),
            (healthy(2), Unknown, (Up, healthy(3)), (Unknown, failing(1))),
            (
                failing(0),
                Unknown,
                (Unknown, healthy(1)),
                (Unknown, failing(1)),
            ),
            (
                failing(1),
                Unknown,
                (Unknown, healthy(1)),
                (Down, failing(2)),
            ),
            (healthy(0), Up, (Up, healthy(1)), (Up, failing(1))),
            (healthy(1), Up, (Up, healthy(2)), (Up, failing(1))),
            (healthy(2), Up, (Up, healthy(3)), (Up, failing(1))),
            (healthy(3), Up, (Up, healthy(4)), (Up, failing(1))),
            (failing(0), Up, (Up, healthy(1)), (Up, failing(1))),
            (failing(1), Up, (Up, healthy(1)), (Down, failing(2))),
            (healthy(0), Down, (Down, healthy(1)), (Down, failing(1))),
            (healthy(1), Down, (Down, healthy(2)), (Down, failing(1))),
            (healthy(2), Down, (Up, healthy(3)), (Down, failing(1))),
            (failing(0), Down, (Down, healthy(1)), (Down, failing(1))),
            (failing(1), Down, (Down, healthy(1)), (Down, failing(2))),
            (failing(2), Down, (Down, healthy(1)), (Down, failing(3))),
        ];
        for (streak, verdict, success, failure) in table {
            for (outcome, expected) in [(true, success), (false, failure)] {
                let mut after = streak;
                after.push(outcome);
                let judged = (after.judge(thresholds(), verdict), after);
                assert_eq!(judged, expected, "{streak:?} {verdict:?} {outcome}");
            }
        }
    }

    #[test]
    fn a_threshold_of_one_decides_at_once_and_endless_streaks_do_not_overflow() {
        let one = Thresholds {
            up: NonZeroU32::MIN,
            down: NonZeroU32::MIN,
        };
        let mut streak = Streak {
            healthy: true,
            length: u32::MAX,
        };
        streak.push(true);
        assert_eq!(streak.length, u32::MAX);
        assert_eq!(streak.judge(one, Verdict::Unknown), Verdict::Up);
        streak.push(false);
        assert_eq!(streak.judge(one, Verdict::Up), Verdict::Down);
    }
}
