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

use merlin_model::ServiceId;
use merlin_model::table::{Entry, Key, NO_SCHEDULER, Operation, Service, Table};

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

/// One operation and the declared service it serves, if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub service: Option<ServiceId>,
    pub operation: Operation,
}

/// Operations in the order in which to carry them out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Foreign services that stay.
    pub foreign: Vec<Key>,
}

/// Plans the way from the actual table to the desired one.
///
/// If `desired` is about some services only, `actual` must be what the table holds under their
/// keys: anything else in it counts as foreign.
pub fn plan(desired: &Desired, actual: &Table, foreign: Foreign) -> Plan {
    let mut plan = Plan::default();
    for (key, wanted) in &desired.services {
        plan.put_service(*key, wanted, actual.services.get(key));
    }
    for (key, wanted) in &desired.services {
        if let Some(entry) = actual.services.get(key) {
            plan.delete_destinations(*key, wanted, entry);
        }
    }
    for key in actual.services.keys() {
        if desired.services.contains_key(key) {
            continue;
        }
        let owner = desired.released.get(key);
        let ours = owner.is_some() || foreign == Foreign::Delete;
        if ours && !desired.pristine {
            plan.push(owner, Operation::DeleteService(*key));
        } else {
            plan.foreign.push(*key);
        }
    }
    plan
}

// === impl Plan ===

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.steps.iter().map(|step| &step.operation)
    }

    fn push(&mut self, service: Option<&ServiceId>, operation: Operation) {
        self.steps.push(Step {
            service: service.cloned(),
            operation,
        });
    }

    /// Adds or edits a service and the destinations it should have.
    fn put_service(&mut self, key: Key, wanted: &Wanted, actual: Option<&Entry>) {
        let id = Some(&wanted.id);
        let service = &wanted.service;
        let edit = match actual {
            Some(entry) if entry.service == *service => None,
            Some(_) => Some(Operation::EditService(key, service.clone())),
            None if rebuilds(service) && !wanted.destinations.is_empty() => {
                let unscheduled = Service {
                    scheduler: NO_SCHEDULER.to_owned(),
                    ..service.clone()
                };
                self.push(id, Operation::AddService(key, unscheduled));
                Some(Operation::EditService(key, service.clone()))
            }
            None => {
                self.push(id, Operation::AddService(key, service.clone()));
                None
            }
        };
        let (before, after) = if rebuilds(service) {
            (None, edit)
        } else {
            (edit, None)
        };
        if let Some(edit) = before {
            self.push(id, edit);
        }
        for (at, wanted) in &wanted.destinations {
            let current = actual.and_then(|entry| entry.destinations.get(at));
            let destination = wanted.given(current);
            match current {
                Some(current) if *current == destination => {}
                Some(_) => self.push(id, Operation::EditDestination(key, *at, destination)),
                None => self.push(id, Operation::AddDestination(key, *at, destination)),
            }
        }
        if let Some(edit) = after {
            self.push(id, edit);
        }
    }

    fn delete_destinations(&mut self, key: Key, wanted: &Wanted, actual: &Entry) {
        for at in actual.destinations.keys() {
            if !wanted.destinations.contains_key(at) {
                self.push(Some(&wanted.id), Operation::DeleteDestination(key, *at));
            }
        }
    }
}

/// Whether the scheduler computes a whole look-up table anew for every change of a destination.
/// Such a scheduler is bound after the destinations: the same result for one computation.
fn rebuilds(service: &Service) -> bool {
    service.scheduler == "mh"
}
