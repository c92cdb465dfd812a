//! Durations as Go writes them: `1m30s`, `1.5h`, `200ms`.
//!
//! Existing scripts pass and match this form, so both directions follow Go's `time` package, save
//! that a duration here is never negative.

use std::fmt::Write;
use std::time::Duration;

const NANOS: u128 = 1;
const MICROS: u128 = 1_000 * NANOS;
const MILLIS: u128 = 1_000 * MICROS;
const SECONDS: u128 = 1_000 * MILLIS;
const MINUTES: u128 = 60 * SECONDS;
const HOURS: u128 = 60 * MINUTES;

const UNITS: [(&str, u128); 8] = [
    ("ns", NANOS),
    ("us", MICROS),
    // The micro sign and the Greek letter look alike; people type either.
    ("\u{b5}s", MICROS),
    ("\u{3bc}s", MICROS),
    ("ms", MILLIS),
    ("s", SECONDS),
    ("m", MINUTES),
    ("h", HOURS),
];

/// Reads a sequence of numbers with units, each with an optional fraction.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let refuse = || format!("{text:?} is not a duration such as 5s, 1m30s or 200ms");
    let mut rest = text;
    let mut nanos = 0u128;
    while !rest.is_empty() {
        let number = take_while(&mut rest, |c| c.is_ascii_digit() || c == '.');
        let unit = take_while(&mut rest, |c| !c.is_ascii_digit() && c != '.');
        let scale = UNITS.iter().find(|(name, _)| *name == unit);
        let (_, scale) = scale.ok_or_else(refuse)?;
        let part = scaled(number, *scale).ok_or_else(refuse)?;
        nanos = nanos.checked_add(part).ok_or_else(refuse)?;
    }
    match (text.is_empty(), u64::try_from(nanos)) {
        // Go counts nanoseconds in 63 bits, some 292 years.
        (false, Ok(nanos)) if i64::try_from(nanos).is_ok() => Ok(Duration::from_nanos(nanos)),
        _ => Err(refuse()),
    }
}

fn take_while<'a>(rest: &mut &'a str, accepts: impl Fn(char) -> bool) -> &'a str {
    let end = rest.find(|c| !accepts(c)).unwrap_or(rest.len());
    let (taken, left) = rest.split_at(end);
    *rest = left;
    taken
}

/// A decimal number times a unit, in nanoseconds; what is below one is cut off.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    // More digits than these are below a nanosecond of any unit.
    let fraction = &fraction[..fraction.len().min(18)];
    let digits = |text: &str| match text {
        "" => Some(0),
        text => text.parse::<u64>().ok().map(u128::from),
    };
    let power = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let below = digits(fraction)?.checked_mul(scale)? / power;
    digits(whole)?.checked_mul(scale)?.checked_add(below)
}

/// Writes a duration the way Go's `Duration.String` does.
pub(crate) fn format(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    match nanos {
        0 => return "0s".to_owned(),
        1..MICROS => return format!("{nanos}ns"),
        MICROS..MILLIS => return decimal(nanos, MICROS) + "\u{b5}s",
        MILLIS..SECONDS => return decimal(nanos, MILLIS) + "ms",
        _ => {}
    }
    let mut text = String::new();
    let (hours, minutes) = (nanos / HOURS, nanos % HOURS / MINUTES);
    // Writing to a string cannot fail.
    if hours > 0 {
        let _ = write!(text, "{hours}h");
    }
    if nanos >= MINUTES {
        let _ = write!(text, "{minutes}m");
    }
    text + &decimal(nanos % MINUTES, SECONDS) + "s"
}

/// `nanos` in a unit, without trailing zeros.
fn decimal(nanos: u128, scale: u128) -> String {
    let (whole, below) = (nanos / scale, nanos % scale);
    if below == 0 {
        return whole.to_string();
    }
    let width = scale.ilog10() as usize;
    let fraction = format!("{below:0width$}");
    format!("{whole}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_written_as_go_does() {
        let cases: [(u128, &str); 16] = [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (10 * MILLIS, "10ms"),
            (200 * MILLIS, "200ms"),
            (SECONDS, "1s"),
            (1_500 * MILLIS, "1.5s"),
            (SECONDS + 1, "1.000000001s"),
            (5 * SECONDS, "5s"),
            (MINUTES, "1m0s"),
            (90 * SECONDS, "1m30s"),
            (HOURS, "1h0m0s"),
            (
                HOURS + 15 * MINUTES + 30 * SECONDS + 918 * MILLIS,
                "1h15m30.918s",
            ),
            (24 * HOURS, "24h0m0s"),
            (100 * HOURS + SECONDS, "100h0m1s"),
        ];
        for (nanos, text) in cases {
            let duration = Duration::from_nanos(u64::try_from(nanos).unwrap());
            assert_eq!(format(duration), text);
            assert_eq!(parse(text), Ok(duration));
        }
    }

    #[test]
    fn durations_are_read_as_go_does() {
        let millis = |text| parse(text).unwrap().as_millis();
        assert_eq!(millis("0"), 0);
        assert_eq!(millis("90s"), 90_000);
        assert_eq!(millis("1h15m30.918s"), 4_530_918);
        assert_eq!(millis("1.5h"), 5_400_000);
        assert_eq!(millis(".5s"), 500);
        assert_eq!(millis("5.s"), 5_000);
        assert_eq!(millis("1s1s"), 2_000);
        assert_eq!(millis("1000us"), 1);
        assert_eq!(millis("1000\u{b5}s"), 1);
        assert_eq!(millis("1000\u{3bc}s"), 1);
        assert_eq!(millis("0.3333333333333333333333h"), 1_200_000 - 1);
        assert_eq!(
            parse("9223372036854775807ns").unwrap().as_secs(),
            9_223_372_036
        );
    }

    #[test]
    fn what_go_does_not_read_is_refused() {
        for bad in [
            "",
            "3",
            "-",
            "s",
            ".",
            ".s",
            "1",
            "-5s",
            "+5s",
            "5 s",
            " 5s",
            "5x",
            "5S",
            "1..5s",
            "1.2.3s",
            "1m30",
            "9223372036854775808ns",
            "3000000h",
            "1e3s",
            "\u{661}s",
            "99999999999999999999999999s",
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains("5s, 1m30s or 200ms"), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_duration_is_read_as_it_was_written(nanos in 0..=i64::MAX) {
            let duration = Duration::from_nanos(nanos.cast_unsigned());
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn nothing_panics(text in "[0-9.nuµmsh]{0,12}") {
            let _ = parse(&text);
        }
    }
}
