//! What to do so that a table becomes the wanted one.
//!
//! Pure. Every prefix of a plan leaves a table that serves at least as well as the one before it:
//!
//! * Nothing is deleted and added again. What exists is edited, so its connections live on.
//! * A service is added before its destinations, and every addition and edit comes before the
//!   first deletion: a service that moves to another address exists twice for a moment, not never.
//! * Services complete one after the other, rather than all of them bit by bit.
//!
//! Applied in full to the table it was made for, a plan yields exactly the wanted table, plus the
//! foreign entries it was told to keep.

use merlin_model::table::{DestinationKey, Entry, Key, NO_SCHEDULER, Operation, Service, Table};

use crate::desired::{Desired, Wanted};

/// What becomes of services in the table that no catalog declared.
///
/// Destinations of a declared service are never foreign: those the catalog lacks are deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Foreign {
    /// The table is merlin's alone.
    #[default]
    Delete,
    Keep,
}

/// Operations in the order in which to carry them out. [`Desired::owner`] knows which service each
/// one serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub operations: Vec<Operation>,
    /// Foreign services that stay.
    pub foreign: Vec<Key>,
}

/// Plans the way from the actual table to the desired one.
///
/// If `desired` is about some services only, `actual` must be what the table holds under their
/// keys: anything else in it counts as foreign.
pub fn plan(desired: &Desired, actual: &Table, foreign: Foreign) -> Plan {
    let mut plan = Plan::default();
    let operations = &mut plan.operations;
    for (key, wanted) in &desired.services {
        put_service(operations, *key, wanted, actual.services.get(key));
    }
    for (key, wanted) in &desired.services {
        if let Some(entry) = actual.services.get(key) {
            delete_destinations(operations, *key, wanted, entry);
        }
    }
    for key in actual.services.keys() {
        if desired.services.contains_key(key) {
            continue;
        }
        let ours = desired.released.contains_key(key) || foreign == Foreign::Delete;
        if ours && !desired.pristine {
            operations.push(Operation::DeleteService(*key));
        } else {
            plan.foreign.push(*key);
        }
    }
    plan
}

/// Adds or edits a service and the destinations it should have.
fn put_service(operations: &mut Vec<Operation>, key: Key, wanted: &Wanted, actual: Option<&Entry>) {
    let service = &wanted.service;
    let mut edit = match actual {
        Some(entry) if entry.service == *service => None,
        Some(_) => Some(Operation::EditService(key, service.clone())),
        None if rebuilds(service) && !wanted.destinations.is_empty() => {
            let unscheduled = Service {
                scheduler: NO_SCHEDULER.to_owned(),
                ..service.clone()
            };
            operations.push(Operation::AddService(key, unscheduled));
            Some(Operation::EditService(key, service.clone()))
        }
        None => {
            operations.push(Operation::AddService(key, service.clone()));
            None
        }
    };
    operations.extend(edit.take_if(|_| !rebuilds(service)));
    for (at, wanted) in &wanted.destinations {
        let current = actual.and_then(|entry| entry.destinations.get(at));
        let destination = wanted.given(current);
        match current {
            Some(current) if *current == destination => {}
            Some(_) => operations.push(Operation::EditDestination(key, *at, destination)),
            None => operations.push(Operation::AddDestination(key, *at, destination)),
        }
    }
    operations.extend(edit);
}

fn delete_destinations(operations: &mut Vec<Operation>, key: Key, wanted: &Wanted, actual: &Entry) {
    let gone = |at: &&DestinationKey| !wanted.destinations.contains_key(at);
    let gone = actual.destinations.keys().filter(gone);
    operations.extend(gone.map(|at| Operation::DeleteDestination(key, *at)));
}

/// Whether the scheduler computes a whole look-up table anew for every change of a destination.
/// Such a scheduler is bound after the destinations: the same result for one computation.
fn rebuilds(service: &Service) -> bool {
    service.scheduler == "mh"
}
