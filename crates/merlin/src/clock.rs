//! The time of day, for what others are told. Nothing is decided by it here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use merlin_model::Timestamp;

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.unwrap_or(Duration::ZERO).as_millis();
    Timestamp(u64::try_from(millis).unwrap_or(u64::MAX))
}

pub(crate) fn wire_time(at: Timestamp) -> prost_types::Timestamp {
    let (seconds, millis) = (at.0 / 1000, at.0 % 1000);
    prost_types::Timestamp {
        seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
        nanos: i32::try_from(millis * 1_000_000).unwrap_or_default(),
    }
}
