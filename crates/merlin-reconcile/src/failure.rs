//! Operations the kernel refused, in words an operator can act on.
//!
//! Pure. A refusal says what one object is missing; it never stops the others.

use merlin_ipvs::Refusal;
use merlin_model::ServiceId;
use merlin_model::table::{DestinationKey, Key, Operation};

use crate::desired::Desired;

/// What an operation changes: a service, or one of its destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Object {
    pub service: Key,
    pub destination: Option<DestinationKey>,
}

/// An object that is not as it should be, because the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The declared service it belongs to; `None` for a foreign entry that could not be deleted.
    pub service: Option<ServiceId>,
    pub operation: Operation,
    pub reason: String,
    /// How often in a row it was tried.
    pub attempts: u32,
}

/// The failures among a pass's answers, root causes only: when a service could not be added,
/// what becomes of its destinations is no news.
pub(crate) fn failures(
    desired: &Desired,
    operations: &[Operation],
    answers: &[Result<(), Refusal>],
) -> Vec<(Object, Failure)> {
    let mut failures = Vec::new();
    // A plan finishes one service's additions before it begins another's.
    let mut missing = None;
    for (operation, answer) in operations.iter().zip(answers) {
        let Err(refusal) = answer else { continue };
        let key = operation.key();
        if missing == Some(key) {
            continue;
        }
        if matches!(operation, Operation::AddService(..)) {
            missing = Some(key);
        }
        let failure = Failure {
            service: desired.owner(key).cloned(),
            operation: operation.clone(),
            reason: refusal.to_string(),
            attempts: 1,
        };
        failures.push((Object::of(operation), failure));
    }
    failures
}

// === impl Object ===

impl Object {
    pub fn of(operation: &Operation) -> Self {
        let destination = match operation {
            Operation::AddService(..)
            | Operation::EditService(..)
            | Operation::DeleteService(_) => None,
            Operation::AddDestination(_, at, _)
            | Operation::EditDestination(_, at, _)
            | Operation::DeleteDestination(_, at) => Some(*at),
        };
        Self {
            service: *operation.key(),
            destination,
        }
    }
}

// === impl Failure ===

impl Failure {
    /// Whether this is the same failure again, for the log's purposes.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.service, &self.operation, &self.reason)
            == (&other.service, &other.operation, &other.reason)
    }
}
