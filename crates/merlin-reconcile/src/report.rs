//! What is worth a line in the log: transitions, each object once.

use std::collections::BTreeMap;
use std::error::Error;

use merlin_model::ServiceId;
use merlin_model::table::{Key, Operation};
use tracing::{info, warn};

use crate::desired::Desired;
use crate::failure::{Failure, Object};

/// Lines per pass and kind. Beyond it the numbers say more than the names.
const MAX_LINES: usize = 50;

/// Says that others changed the table and what was done about it, a line per service.
pub(crate) fn drift(desired: &Desired, repaired: &[&Operation]) {
    let mut services: BTreeMap<&Key, Vec<&Operation>> = BTreeMap::new();
    for operation in repaired {
        services.entry(operation.key()).or_default().push(operation);
    }
    for (key, operations) in services.iter().take(MAX_LINES) {
        info!(
            service = desired.owner(key).map(ServiceId::as_str),
            %key,
            operations = operations.len(),
            first = operations.first().map(ToString::to_string),
            "undid a change that others made to the table"
        );
    }
    summarise(services.len(), "services were changed by others");
}

pub(crate) fn failing<'a>(failures: impl ExactSizeIterator<Item = (&'a Object, &'a Failure)>) {
    let count = failures.len();
    for (_, failure) in failures.take(MAX_LINES) {
        warn!(
            service = failure.service.as_ref().map(ServiceId::as_str),
            operation = %failure.operation,
            reason = failure.reason,
            "the kernel refused an operation; it will be retried"
        );
    }
    summarise(count, "operations were refused");
}

pub(crate) fn recovered<'a>(failures: impl ExactSizeIterator<Item = (&'a Object, &'a Failure)>) {
    let count = failures.len();
    for (_, failure) in failures.take(MAX_LINES) {
        info!(
            service = failure.service.as_ref().map(ServiceId::as_str),
            operation = %failure.operation,
            "an operation the kernel had refused is no longer outstanding"
        );
    }
    summarise(count, "refused operations are no longer outstanding");
}

pub(crate) fn foreign(keys: &[Key]) {
    for key in keys.iter().take(MAX_LINES) {
        info!(%key, "the table holds a service that no catalog declared; it stays");
    }
    summarise(keys.len(), "foreign services stay");
}

pub(crate) fn outage(error: &str) {
    warn!(error, "the table can be neither read nor changed; retrying");
}

fn summarise(count: usize, what: &'static str) {
    if count > MAX_LINES {
        info!(count, shown = MAX_LINES, what, "and more");
    }
}

/// An error with its causes, which `Display` leaves out.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}
