//! Which services to look at next, and when.
//!
//! Pure: the loop asks what is due, does it and says how it went. Every trigger is only a reason
//! to look again. Nothing is crossed out before a pass over it has succeeded, so a pass that
//! breaks off loses nothing.
//!
//! ```text
//! start, first service ever declared --> whole table
//! catalog, health --> dirty services ---+
//! refusal --> back-off, per service ----+--> those services alone
//! data plane fails --> back-off --> whole table
//! every period --> fingerprint --> as it was: nothing
//!                              --> differs, or unknown, or 10th time: sweep
//! ```
//!
//! A sweep compares the whole table slice by slice, in turns with what changes meanwhile, so that a
//! change waits for one slice and not for ten thousand services.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use merlin_ipvs::Fingerprint;
use merlin_model::table::Key;
use merlin_model::{Catalog, HealthView, ServiceId, ServiceKey};

use crate::desired::{self, Desired};

/// A fingerprint overlooks thresholds and encapsulations, so every so many periods it is not
/// trusted.
const PERIODS_PER_WHOLE: u32 = 10;

/// Between two passes for changes. The first change is not kept waiting; of a stream of them, those
/// that come together are seen to together, or the passes would cost more than the changes.
const REST: Duration = Duration::from_millis(5);

/// Services in one slice of a sweep: about a millisecond's work for a kernel.
const SLICE: usize = 64;

/// How soon to come back to what failed: twice as late every time, up to a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub longest: Duration,
}

/// What a pass is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Whole,
    Services(BTreeSet<ServiceId>),
    /// Part of a sweep.
    Slice(BTreeSet<ServiceId>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Nothing to do before this time, unless there is news.
    Wait(Instant),
    /// Nothing to do before this time, whatever the news.
    Rest(Instant),
    /// Look whether the table changed behind our back.
    Check,
    Pass(Scope),
}

/// Everything that decides what a scope's part of the table should hold.
#[derive(Debug)]
pub(crate) struct View {
    catalog: Arc<Catalog>,
    health: HealthView,
    released: Vec<(ServiceKey, ServiceId)>,
    scope: Scope,
}

/// A comparison of the whole table under way.
#[derive(Debug)]
struct Sweep {
    /// The last service compared so far.
    done: Option<ServiceId>,
    /// Of the table before the sweep, as long as nothing was found to change.
    fingerprint: Option<Fingerprint>,
}

#[derive(Clone, Copy, Debug)]
struct Retry {
    attempts: u32,
    due: Instant,
}

#[derive(Debug)]
pub(crate) struct Agenda {
    period: Duration,
    backoff: Backoff,
    catalog: Arc<Catalog>,
    health: HealthView,
    /// Whether a whole pass has succeeded since the catalog had its say over the table. Until then
    /// no difference is anybody's fault.
    started: bool,
    dirty: BTreeSet<ServiceId>,
    /// Keys that services held while we watched and that nobody holds now.
    released: BTreeMap<ServiceKey, ServiceId>,
    /// Services with refused operations; `None` stands for the foreign entries.
    retries: BTreeMap<Option<ServiceId>, Retry>,
    /// Set while the data plane as a whole fails.
    outage: Option<Retry>,
    next_check: Instant,
    checks_since_whole: u32,
    sweep: Option<Sweep>,
    /// Whether the last pass was for changes, so that it is the check's or the sweep's turn.
    gave_way: bool,
    /// When changes are seen to again.
    rested: Instant,
    /// The table's fingerprint when it was last seen as it should be; `None` once we changed it.
    baseline: Option<Fingerprint>,
}

// === impl Agenda ===

impl Agenda {
    pub(crate) fn new(
        period: Duration,
        backoff: Backoff,
        catalog: Arc<Catalog>,
        health: HealthView,
        now: Instant,
    ) -> Self {
        Self {
            period,
            backoff,
            catalog,
            health,
            started: false,
            dirty: BTreeSet::new(),
            released: BTreeMap::new(),
            retries: BTreeMap::new(),
            outage: None,
            next_check: now,
            checks_since_whole: 0,
            sweep: None,
            gave_way: false,
            rested: now,
            baseline: None,
        }
    }

    pub(crate) fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    // --- news ---

    pub(crate) fn set_catalog(&mut self, catalog: Arc<Catalog>) {
        let earlier = mem::replace(&mut self.catalog, catalog);
        if earlier.is_pristine() {
            self.started = false;
        }
        for id in self.catalog.changed_services(&earlier) {
            let (before, after) = (earlier.service(&id), self.catalog.service(&id));
            if let Some(before) = before
                && after.is_none_or(|after| after.key != before.key)
            {
                self.released.insert(before.key, id.clone());
            }
            let wanted = |service| desired::wanted(service, &self.health);
            if before.map(|s| wanted(s)) != after.map(|s| wanted(s)) {
                self.retries.remove(&Some(id.clone()));
                self.dirty.insert(id);
            }
        }
        self.released
            .retain(|key, _| self.catalog.holder(key).is_none());
    }

    pub(crate) fn set_health(&mut self, health: HealthView) {
        let earlier = mem::replace(&mut self.health, health);
        for id in self.health.changed_services(&earlier) {
            if let Some(service) = self.catalog.service(&id)
                && desired::wanted(service, &earlier) != desired::wanted(service, &self.health)
            {
                self.dirty.insert(id);
            }
        }
    }

    // --- what is due ---

    pub(crate) fn next(&self, now: Instant) -> Task {
        if let Some(outage) = self.outage {
            return if now < outage.due {
                Task::Wait(outage.due)
            } else {
                Task::Pass(Scope::Whole)
            };
        }
        let is_due = |retry: &Retry| retry.due <= now;
        if !self.started || self.retries.get(&None).is_some_and(is_due) {
            return Task::Pass(Scope::Whole);
        }
        let retries = self.retries.iter().filter(|(_, retry)| is_due(retry));
        let retries = retries.filter_map(|(owner, _)| owner.clone());
        let due: BTreeSet<_> = self.dirty.iter().cloned().chain(retries).collect();
        // Changes first, but not twice in a row.
        let rests = now < self.rested;
        let routine = self.routine(now);
        if let Some(routine) = routine
            && (due.is_empty() || self.gave_way || rests)
        {
            return routine;
        }
        if !due.is_empty() {
            return if rests {
                Task::Rest(self.rested)
            } else {
                Task::Pass(Scope::Services(due))
            };
        }
        let next_retry = self.retries.values().map(|retry| retry.due).min();
        Task::Wait(next_retry.map_or(self.next_check, |due| due.min(self.next_check)))
    }

    /// What is due without any news.
    fn routine(&self, now: Instant) -> Option<Task> {
        match &self.sweep {
            Some(sweep) => Some(Task::Pass(Scope::Slice(self.slice_after(&sweep.done)))),
            None => (self.next_check <= now).then_some(Task::Check),
        }
    }

    fn slice_after(&self, done: &Option<ServiceId>) -> BTreeSet<ServiceId> {
        let rest = self.catalog.services_after(done.as_ref());
        rest.take(SLICE).map(|service| service.id.clone()).collect()
    }

    /// What a pass works from; cheap to take.
    pub(crate) fn view(&self, scope: &Scope) -> View {
        let covered = |id: &ServiceId| scope.covers(Some(id));
        let released = self.released.iter().filter(|(_, id)| covered(id));
        View {
            catalog: Arc::clone(&self.catalog),
            health: self.health.clone(),
            released: released.map(|(key, id)| (*key, id.clone())).collect(),
            scope: scope.clone(),
        }
    }

    /// Whether a difference in this service's part of the table, or in the foreign part, is one we
    /// know about. What is not explained is drift.
    pub(crate) fn explains(&self, owner: Option<&ServiceId>) -> bool {
        !self.started
            || owner.is_some_and(|id| self.dirty.contains(id))
            || self.retries.contains_key(&owner.cloned())
    }

    /// Whether everything the catalog and health ask for has been tried.
    pub(crate) fn is_settled(&self) -> bool {
        self.started && self.outage.is_none() && self.dirty.is_empty()
    }

    // --- how it went ---

    /// Takes note of a fingerprint; true if the table has to be looked at.
    pub(crate) fn check(&mut self, fingerprint: Fingerprint, now: Instant) -> bool {
        let whole = self.checks_since_whole + 1 >= PERIODS_PER_WHOLE;
        if whole || self.baseline != Some(fingerprint) {
            return true;
        }
        self.gave_way = false;
        self.checks_since_whole += 1;
        self.next_check = now + self.period;
        false
    }

    /// Begins to compare the whole table, whose fingerprint was taken before.
    pub(crate) fn sweep(&mut self, fingerprint: Option<Fingerprint>) {
        self.sweep = Some(Sweep {
            done: None,
            fingerprint,
        });
    }

    /// Keys in the table that no service has or had lately.
    pub(crate) fn foreign(&self, keys: impl IntoIterator<Item = Key>) -> Vec<Key> {
        let services = self.catalog.services().map(|service| &service.key);
        let ours: BTreeSet<_> = services
            .chain(self.released.keys())
            .map(Key::from)
            .collect();
        let mut foreign: Vec<_> = keys.into_iter().filter(|key| !ours.contains(key)).collect();
        foreign.sort();
        foreign
    }

    /// A pass came to its end. `refused` names the owners and keys of operations that were
    /// refused; `changed` says whether any was not. True if now the whole table was compared.
    pub(crate) fn passed(
        &mut self,
        scope: &Scope,
        refused: &[(Option<ServiceId>, Key)],
        changed: bool,
        now: Instant,
    ) -> bool {
        self.outage = None;
        self.dirty.retain(|id| !scope.covers(Some(id)));
        self.released.retain(|key, id| {
            let key = Key::from(key);
            !scope.covers(Some(id)) || refused.iter().any(|(_, failing)| *failing == key)
        });
        let failing: BTreeSet<_> = refused.iter().map(|(owner, _)| owner.clone()).collect();
        self.retries
            .retain(|owner, _| !scope.covers(owner.as_ref()) || failing.contains(owner));
        for owner in failing {
            let retry = self.backoff.after(self.retries.get(&owner), now);
            self.retries.insert(owner, retry);
        }
        if changed {
            self.baseline = None;
            if let Some(sweep) = &mut self.sweep {
                sweep.fingerprint = None;
            }
        }
        self.gave_way = matches!(scope, Scope::Services(_));
        if self.gave_way {
            self.rested = now + REST;
        }
        let whole = match scope {
            Scope::Whole => true,
            Scope::Services(_) => false,
            Scope::Slice(services) => self.swept(services),
        };
        if whole {
            self.started = true;
            self.sweep = None;
            self.checks_since_whole = 0;
            self.next_check = now + self.period;
        }
        whole
    }

    /// Goes on with a sweep after a slice; true if that was the last.
    fn swept(&mut self, slice: &BTreeSet<ServiceId>) -> bool {
        let Some(mut sweep) = self.sweep.take() else {
            return false;
        };
        if let Some(last) = slice.last() {
            sweep.done = Some(last.clone());
        }
        if self.slice_after(&sweep.done).is_empty() {
            self.baseline = sweep.fingerprint;
            return true;
        }
        self.sweep = Some(sweep);
        false
    }

    /// A whole pass found nothing that it could change, in a table with this fingerprint.
    pub(crate) fn trust(&mut self, fingerprint: Option<Fingerprint>) {
        self.baseline = fingerprint;
    }

    /// A pass broke off: the data plane as a whole failed, after any number of operations.
    pub(crate) fn broke_off(&mut self, now: Instant) {
        self.outage = Some(self.backoff.after(self.outage.as_ref(), now));
        self.sweep = None;
        self.baseline = None;
    }
}

// === impl Scope ===

impl Scope {
    /// Whether objects of this owner are looked at; `None` stands for the foreign ones.
    pub(crate) fn covers(&self, owner: Option<&ServiceId>) -> bool {
        match self {
            Self::Whole => true,
            Self::Services(ids) | Self::Slice(ids) => owner.is_some_and(|id| ids.contains(id)),
        }
    }
}

// === impl View ===

impl View {
    pub(crate) fn desired(&self) -> Desired {
        let desired = match &self.scope {
            Scope::Whole => desired::desired(&self.catalog, &self.health),
            Scope::Services(ids) | Scope::Slice(ids) => {
                desired::desired_services(&self.catalog, &self.health, ids)
            }
        };
        desired.releasing(self.released.iter().map(|(key, id)| (key, id)))
    }
}

// === impl Backoff ===

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
        }
    }
}

impl Backoff {
    fn after(&self, previous: Option<&Retry>, now: Instant) -> Retry {
        let attempts = previous.map_or(0, |previous| previous.attempts);
        // Beyond 2^16 times the first delay every sensible limit is reached.
        let delay = self.first.saturating_mul(1 << attempts.min(16));
        Retry {
            attempts: attempts.saturating_add(1),
            due: now + delay.min(self.longest),
        }
    }
}

#[cfg(test)]
mod tests;
