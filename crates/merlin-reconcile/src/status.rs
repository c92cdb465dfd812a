//! What the reconciler tells others about itself.

use std::collections::BTreeMap;
use std::mem;
use std::time::{Duration, Instant};

use merlin_model::Revision;
use merlin_model::table::Key;

use crate::agenda::Scope;
use crate::failure::{Failure, Object};
use crate::report;

/// How far the kernel's table is from the catalog, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Revision of the catalog last seen.
    pub catalog: Revision,
    /// Newest revision the kernel holds in full, apart from what `failures` lists.
    pub programmed: Revision,
    /// Whether the whole table was compared and repaired at least once.
    pub first_pass_done: bool,
    /// Objects that are not as they should be; they are being retried.
    pub failures: BTreeMap<Object, Failure>,
    /// Services in the table that no catalog declared and that stay.
    pub foreign: Vec<Key>,
    /// Why the table can be neither read nor changed, while that is so.
    pub dataplane_error: Option<String>,
    pub counts: Counts,
    /// How long the last completed pass took.
    pub last_pass: Option<Duration>,
    /// When the whole table was last compared.
    pub last_whole: Option<Instant>,
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Completed passes over some services or all.
    pub passes: u64,
    /// Those among them that were over all.
    pub whole_passes: u64,
    /// Fingerprints that showed nothing had changed.
    pub quiet_checks: u64,
    /// Operations the kernel carried out.
    pub operations: u64,
    /// Operations the kernel refused.
    pub refusals: u64,
    /// Operations that undid what others did to the table.
    pub drift_repaired: u64,
    /// Times the data plane as a whole failed.
    pub outages: u64,
}

// === impl Status ===

impl Status {
    /// Replaces the failures of the services a pass covered by those it met.
    pub(crate) fn replace_failures(&mut self, scope: &Scope, met: Vec<(Object, Failure)>) {
        let (mut before, others): (BTreeMap<_, _>, BTreeMap<_, _>) = mem::take(&mut self.failures)
            .into_iter()
            .partition(|(_, failure)| scope.covers(failure.service.as_ref()));
        self.failures = others;
        let mut new = Vec::new();
        for (object, mut failure) in met {
            match before.remove(&object) {
                Some(known) if known.is_same(&failure) => failure.attempts += known.attempts,
                _ => new.push((object, failure.clone())),
            }
            self.failures.insert(object, failure);
        }
        report::recovered(before.iter());
        report::failing(new.iter().map(|(object, failure)| (object, failure)));
    }
}
