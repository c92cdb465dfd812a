//! Single fields, from the wire's loose types to the model's.

use std::net::IpAddr;
use std::time::Duration;

use merlin_model::{Invalid, ServiceId};

/// Longest duration that the wire's own specification allows: about 10,000 years.
const MAX_SECONDS: i64 = 315_576_000_000;

pub(crate) fn required<T>(field: &str, value: Option<T>) -> Result<T, Invalid> {
    value.ok_or_else(|| Invalid::new(field, "is required"))
}

/// A service id, named as the message at hand names it.
pub(crate) fn service_id(field: &str, id: &str) -> Result<ServiceId, Invalid> {
    ServiceId::new(id).map_err(|invalid| Invalid::new(field, invalid.reason))
}

/// An address; empty stands for none. An IPv4 address in IPv6 clothes is an IPv4 address, or two
/// services could claim the same packets.
pub(crate) fn address(text: &str) -> Result<Option<IpAddr>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(Some(address.to_canonical())),
        Err(_) => Err(Invalid::new(
            "key.ip",
            format!("{text:?} is not an IPv4 or IPv6 address"),
        )),
    }
}

/// A port or 0. Whether 0 is one is for the catalog to say: it knows the service.
pub(crate) fn port(value: u32) -> Result<u16, Invalid> {
    u16::try_from(value)
        .map_err(|_| Invalid::new("key.port", format!("{value} is out of range: 1 to 65535")))
}

pub(crate) fn duration(field: &str, value: prost_types::Duration) -> Result<Duration, Invalid> {
    let seconds = u64::try_from(value.seconds).ok();
    let nanos = u32::try_from(value.nanos).ok();
    match (seconds, nanos) {
        (Some(seconds), Some(nanos @ 0..1_000_000_000)) if value.seconds <= MAX_SECONDS => {
            Ok(Duration::new(seconds, nanos))
        }
        _ => Err(Invalid::new(
            field,
            format!(
                "{} seconds and {} nanoseconds is not a duration: 10ms to 24h",
                value.seconds, value.nanos
            ),
        )),
    }
}

/// The wire's form of a duration that came from there or was checked against the model's range.
pub(crate) fn wire_duration(value: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: value.subsec_nanos().cast_signed(),
    }
}
