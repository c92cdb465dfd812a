//! When a target is probed.
//!
//! Every target has beats: moments one period apart, at a phase that a hash of what is probed
//! picks. So the probes of many targets spread evenly over the period, they keep doing so, and the
//! same declarations give the same timeline every time.
//!
//! * The first probe of a new target does not wait for its beat: it starts within [`SOON`], so that
//!   a new server takes traffic after about `up_threshold - 1` periods. These first probes are
//!   spread by the same hash.
//! * Any later probe starts at the first beat at least half a period after the start before it.
//!   Half a period absorbs lateness without drifting off the beat, and however late a probe is,
//!   missed beats are skipped rather than caught up with.
//! * Who joins a target that is being probed already waits at most [`SOON`] since its last start.

use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use super::ProbeSpec;

/// Within what time a new target is probed for the first time, unless its period is shorter still.
/// Short for an operator who waits for it, long enough to spread thousands of targets.
pub(super) const SOON: Duration = Duration::from_secs(1);

/// The beats of one target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rhythm {
    /// The first beat.
    origin: Instant,
    period: Duration,
    hash: u64,
}

impl Rhythm {
    pub(super) fn new(spec: &ProbeSpec, epoch: Instant) -> Self {
        let hash = hash(spec);
        Self {
            origin: epoch + share(hash, spec.period),
            period: spec.period,
            hash,
        }
    }

    /// Start of the first probe of a target declared now.
    pub(super) fn first(&self, now: Instant) -> Instant {
        now + share(self.hash, self.soon_span())
    }

    /// Start of the next probe when someone joins now, if it is not due earlier anyway.
    pub(super) fn soon(&self, last_start: Instant, now: Instant) -> Instant {
        now.max(last_start + self.soon_span())
    }

    /// Start of the next probe after one that started at `last_start` and has finished now.
    pub(super) fn next(&self, last_start: Instant, now: Instant) -> Instant {
        self.beat(now.max(last_start + self.period / 2))
    }

    /// First beat not before `at`.
    fn beat(&self, at: Instant) -> Instant {
        let since = nanos(at.saturating_duration_since(self.origin));
        let period = nanos(self.period).max(1);
        self.origin + Duration::from_nanos(since.div_ceil(period).saturating_mul(period))
    }

    fn soon_span(&self) -> Duration {
        self.period.min(SOON)
    }
}

/// The moment within a span that a hash picks.
fn share(hash: u64, span: Duration) -> Duration {
    Duration::from_nanos(hash % nanos(span).max(1))
}

/// Spans here are far below the 584 years that 64 bits hold.
fn nanos(span: Duration) -> u64 {
    span.as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(span.subsec_nanos().into())
}

/// Hashes what is probed. Not the standard library's hash, which may change with its version.
fn hash(spec: &ProbeSpec) -> u64 {
    let mut hash = Fnv1a(0xcbf2_9ce4_8422_2325);
    write!(
        hash,
        "{} {} {:?} {:?}",
        spec.target, spec.endpoint, spec.period, spec.timeout
    )
    .expect("hashing cannot fail");
    hash.mixed()
}

/// The 64-bit FNV-1a hash of text.
struct Fnv1a(u64);

impl fmt::Write for Fnv1a {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Ok(())
    }
}

impl Fnv1a {
    /// FNV leaves the hashes of similar texts similar; addresses are. This is SplitMix64's mixer.
    fn mixed(self) -> u64 {
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(address: &str, period: Duration) -> ProbeSpec {
        ProbeSpec {
            target: address.parse().unwrap(),
            endpoint: "http://:80/health".parse().unwrap(),
            period,
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn beats_are_one_period_apart_and_lateness_does_not_shift_them() {
        let epoch = Instant::now();
        let period = Duration::from_secs(4);
        let rhythm = Rhythm::new(&spec("10.0.0.1:80", period), epoch);
        let beat = rhythm.beat(epoch + Duration::from_secs(100));
        let latency = Duration::from_millis(3);
        for (late_by, skipped) in [
            (Duration::ZERO, 0),
            (Duration::from_millis(1), 0),
            (Duration::from_millis(1_999), 0),
            (Duration::from_secs(2), 0),
            (Duration::from_millis(2_001), 1),
            (Duration::from_millis(3_999), 1),
            (Duration::from_secs(41), 10),
        ] {
            let start = beat + late_by;
            let next = rhythm.next(start, start + latency);
            assert_eq!(next, beat + period * (1 + skipped), "late by {late_by:?}");
        }
    }

    #[test]
    fn a_probe_longer_than_the_period_is_followed_by_the_next_beat() {
        let epoch = Instant::now();
        let period = Duration::from_secs(1);
        let rhythm = Rhythm::new(&spec("10.0.0.1:80", period), epoch);
        let beat = rhythm.beat(epoch + Duration::from_secs(10));
        assert_eq!(
            rhythm.next(beat, beat + Duration::from_millis(2_500)),
            beat + 3 * period
        );
        assert_eq!(rhythm.next(beat, beat + 2 * period), beat + 2 * period);
    }

    #[test]
    fn targets_with_similar_addresses_spread_evenly_over_the_period() {
        let epoch = Instant::now();
        let period = Duration::from_secs(5);
        let mut per_slice = [0_u32; 50];
        for host in 0..50_000_u32 {
            let target = format!("10.0.{}.{}:8080", host / 250, 1 + host % 250);
            let rhythm = Rhythm::new(&spec(&target, period), epoch);
            let slice = rhythm.origin.duration_since(epoch).as_millis() / 100;
            per_slice[usize::try_from(slice).unwrap()] += 1;
        }
        // A thousand expected in each; a fair draw strays by some thirty.
        assert!(
            per_slice.iter().all(|n| (850..1150).contains(n)),
            "{per_slice:?}"
        );
    }
}
