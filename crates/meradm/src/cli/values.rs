//! Values of arguments that clap does not know.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::time::SystemTime;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command, Error};
use merlin_model::Netmask;

use crate::duration;

/// Any text, with the known values offered by help and completions. What is valid is for the node
/// to say, which may be newer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known(pub(crate) &'static [&'static str]);

impl TypedValueParser for Known {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<String, Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().copied().map(PossibleValue::new)))
    }
}

pub(crate) fn ip_port(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "an address and port such as 10.0.0.1:80 or [fd00::1]:80 is needed".to_owned())
}

pub(crate) fn netmask(text: &str) -> Result<Netmask, String> {
    text.parse()
        .map_err(|invalid: merlin_model::Invalid| invalid.reason)
}

/// A time, or how long ago it was.
pub(crate) fn since(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = duration::parse(text) {
        let since = SystemTime::now().checked_sub(ago);
        return since.ok_or_else(|| format!("{text} is longer ago than time goes back"));
    }
    let time = text.parse::<prost_types::Timestamp>().ok();
    time.and_then(|time| time.try_into().ok())
        .ok_or_else(|| format!("{text:?} is not a time such as 2026-11-23T10:00:00Z or 1h30m"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_time_is_given_as_it_is_or_by_how_long_ago_it_was() {
        let exact = since("2026-11-23T10:00:00Z").unwrap();
        assert_eq!(exact, UNIX_EPOCH + Duration::from_secs(1_795_428_000));
        assert_eq!(since("2026-11-23T11:00:00+01:00").unwrap(), exact);
        let elapsed = since("1h30m").unwrap().elapsed().unwrap();
        assert!(elapsed >= Duration::from_secs(5400) && elapsed < Duration::from_secs(5500));
        for text in ["", "yesterday", "-1h", "2026-13-01T00:00:00Z"] {
            assert!(since(text).is_err(), "{text}");
        }
    }
}
