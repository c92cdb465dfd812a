//! How long a client will wait, from gRPC's own metadata.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// How long a request may take when the client does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Whatever the client says, nothing is worth waiting for longer.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// Time kept back from a client's deadline, so that it gets our words rather than its own timer's.
const ANSWER_MARGIN: Duration = Duration::from_millis(50);

/// Reads `grpc-timeout`: at most eight digits and a unit.
pub(super) fn timeout(metadata: &MetadataMap) -> Duration {
    let given = metadata
        .get("grpc-timeout")
        .and_then(|value| parse(value.to_str().ok()?));
    let timeout = given.unwrap_or(DEFAULT_TIMEOUT).min(MAX_TIMEOUT);
    timeout.saturating_sub(ANSWER_MARGIN).max(timeout / 2)
}

fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value.saturating_mul(3600)),
        "M" => Duration::from_secs(value.saturating_mul(60)),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataValue;

    use super::*;

    #[test]
    fn the_clients_deadline_is_kept_with_a_margin_to_answer() {
        let of = |text| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", MetadataValue::from_static(text));
            timeout(&metadata)
        };
        assert_eq!(of("2S"), Duration::from_millis(1950));
        assert_eq!(of("60m"), Duration::from_millis(30));
        assert_eq!(of("9999H"), Duration::from_millis(59_950));
        assert_eq!(of("soon"), Duration::from_millis(9_950));
        assert_eq!(of(""), Duration::from_millis(9_950));
    }
}
