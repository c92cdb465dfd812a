//! The checker: which target to probe when, and what the outcomes say about each real server.
//!
//! Real servers are what the catalog declares; *targets* are what is probed. Every real server
//! whose check comes down to the same request, period and timeout is a user of the same target,
//! which is probed once for all of them. Thresholds belong to the user.
//!
//! Invariants:
//!
//! * The view holds exactly the checked real servers of the catalog last synced.
//! * A target is either waiting, with one entry in the timer queue, or in flight, with none: so
//!   there are never two probes of one target at a time, and a late probe is one late probe.
//! * A verdict changes only when the last `threshold` outcomes, all of them seen since the check
//!   was last declared or edited, agree against it.
//! * An edited check keeps its verdict; a new one, and every one after a restart, is `Unknown`.
//!
//! Every call costs what it changes: a sync the servers that differ, a start or a finish the users
//! of its targets, each times the logarithm of what is held.

mod rhythm;
mod streak;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use merlin_model::{
    Catalog, HealthCheckSpec, HealthView, HttpEndpoint, RealServer, RealServerKey, ServerHealth,
    ServiceId, Verdict,
};

use rhythm::Rhythm;
use streak::{Streak, Thresholds};

/// What a probe does and how often. Real servers with equal specs share their probes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProbeSpec {
    /// The real server's address and the endpoint's port.
    pub target: SocketAddr,
    pub endpoint: HttpEndpoint,
    pub period: Duration,
    pub timeout: Duration,
}

/// Names a probe in flight. A target has at most one, so its number is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeId(u64);

/// A probe to perform now. It must come back through [`Checker::finish`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub id: ProbeId,
    pub spec: Arc<ProbeSpec>,
}

/// What a probe showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// The server did not answer well, in words for an operator.
    Failure(Arc<str>),
    /// The probe failed on this node's own account, which says nothing about the server: it is
    /// shown, but not counted.
    Inconclusive(Arc<str>),
}

/// A real server's verdict changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    pub service: ServiceId,
    pub server: RealServerKey,
    pub from: Verdict,
    pub to: Verdict,
    /// Why the last probe failed, when the server went down.
    pub reason: Option<Arc<str>>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Checker {
    /// Beginning of time for the targets' rhythms.
    epoch: Instant,
    /// As last synced: tells what a new catalog changes.
    catalog: Catalog,
    targets: HashMap<ProbeId, Target>,
    ids: HashMap<Arc<ProbeSpec>, ProbeId>,
    next_id: u64,
    /// Waiting targets by due time.
    timers: BTreeSet<(Instant, ProbeId)>,
    view: HealthView,
    view_changed: bool,
}

#[derive(Debug)]
struct Target {
    spec: Arc<ProbeSpec>,
    rhythm: Rhythm,
    phase: Phase,
    /// Sorted by service and server; nearly always just one. Empty only in flight, when the last
    /// user left: the target is then kept until its probe has come back.
    users: Vec<User>,
}

#[derive(Debug)]
enum Phase {
    Waiting {
        due: Instant,
        last_start: Option<Instant>,
    },
    InFlight {
        start: Instant,
    },
}

#[derive(Debug)]
struct User {
    service: ServiceId,
    server: RealServerKey,
    thresholds: Thresholds,
    streak: Streak,
}

/// A check as the catalog declares it for one real server.
#[derive(Debug, PartialEq, Eq)]
struct Declared {
    spec: ProbeSpec,
    thresholds: Thresholds,
}

// === impl Checker ===

impl Checker {
    /// A checker that knows no server yet.
    pub fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            catalog: Catalog::default(),
            targets: HashMap::new(),
            ids: HashMap::new(),
            next_id: 0,
            timers: BTreeSet::new(),
            view: HealthView::default(),
            view_changed: false,
        }
    }

    /// Takes over what the catalog declares. A server is known by its service's id and its key:
    /// one that was deleted and declared again since the last sync counts as edited.
    pub fn sync(&mut self, catalog: &Catalog, now: Instant) {
        let before = std::mem::replace(&mut self.catalog, catalog.clone());
        let nothing = OrdMap::new();
        for service in catalog.changed_services(&before) {
            let servers = |catalog: &Catalog| match catalog.service(&service) {
                Some(service) => service.servers.clone(),
                None => nothing.clone(),
            };
            for item in servers(&before).diff(&servers(catalog)) {
                let (server, old, new) = match item {
                    DiffItem::Add(key, new) => (key, None, Some(new)),
                    DiffItem::Update { old, new } => (new.0, Some(old.1), Some(new.1)),
                    DiffItem::Remove(key, old) => (key, Some(old), None),
                };
                let old = old.and_then(|server| Declared::of(server));
                let new = new.and_then(|server| Declared::of(server));
                self.redeclare(&service, *server, old, new, now);
            }
        }
    }

    /// When [`start_due`](Self::start_due) next has something to start. May have passed already.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Starts the probes that are due, longest overdue first and at most `room` of them; the others
    /// stay due.
    pub fn start_due(&mut self, now: Instant, room: usize) -> Vec<Probe> {
        let mut probes = Vec::new();
        while probes.len() < room
            && let Some(&(due, id)) = self.timers.first()
            && due <= now
        {
            self.timers.pop_first();
            if let Some(target) = self.targets.get_mut(&id) {
                target.phase = Phase::InFlight { start: now };
                let spec = Arc::clone(&target.spec);
                probes.push(Probe { id, spec });
            }
        }
        probes
    }

    /// Takes the outcome of a started probe and returns the verdicts it changed.
    pub fn finish(&mut self, id: ProbeId, outcome: Outcome, now: Instant) -> Vec<Transition> {
        let mut transitions = Vec::new();
        let Some(target) = self.targets.get_mut(&id) else {
            return transitions;
        };
        let Phase::InFlight { start } = target.phase else {
            return transitions;
        };
        if target.users.is_empty() {
            self.forget(id);
            return transitions;
        }
        let due = target.rhythm.next(start, now);
        target.phase = Phase::Waiting {
            due,
            last_start: Some(start),
        };
        self.timers.insert((due, id));

        for user in &mut target.users {
            let Some(before) = self.view.get(&user.service, &user.server) else {
                continue;
            };
            let mut health = before.clone();
            match &outcome {
                Outcome::Success => user.streak.push(true),
                Outcome::Failure(reason) => {
                    user.streak.push(false);
                    health.last_failure = Some(Arc::clone(reason));
                }
                Outcome::Inconclusive(reason) => {
                    health.last_failure = Some(Arc::clone(reason));
                }
            }
            health.verdict = user.streak.judge(user.thresholds, before.verdict);
            if health == *before {
                continue;
            }
            let (from, to) = (before.verdict, health.verdict);
            if from != to {
                transitions.push(Transition {
                    service: user.service.clone(),
                    server: user.server,
                    from,
                    to,
                    reason: health.last_failure.clone().filter(|_| to == Verdict::Down),
                });
            }
            self.view.set(user.service.clone(), user.server, health);
            self.view_changed = true;
        }
        transitions
    }

    /// Health of exactly the checked real servers.
    pub fn view(&self) -> &HealthView {
        &self.view
    }

    /// The view, if it may differ from what the last call returned.
    pub fn changed_view(&mut self) -> Option<HealthView> {
        std::mem::take(&mut self.view_changed).then(|| self.view.clone())
    }

    /// Moves a real server from one declaration of its check to the next.
    fn redeclare(
        &mut self,
        service: &ServiceId,
        server: RealServerKey,
        old: Option<Declared>,
        new: Option<Declared>,
        now: Instant,
    ) {
        match (old, new) {
            (old, new) if old == new => {}
            (Some(old), Some(new)) if old.spec == new.spec => {
                self.rejudge(&new.spec, service, server, new.thresholds);
            }
            (Some(old), Some(new)) => {
                self.leave(&old.spec, service, server);
                self.join(new, service, server, now);
            }
            (Some(old), None) => {
                self.leave(&old.spec, service, server);
                self.view.remove(service, &server);
                self.view_changed = true;
            }
            (None, Some(new)) => {
                self.join(new, service, server, now);
                let unknown = ServerHealth::default();
                self.view.set(service.clone(), server, unknown);
                self.view_changed = true;
            }
            (None, None) => {}
        }
    }

    /// Makes a real server a user of its target, which is probed soon.
    fn join(&mut self, check: Declared, service: &ServiceId, server: RealServerKey, now: Instant) {
        let user = User {
            service: service.clone(),
            server,
            thresholds: check.thresholds,
            streak: Streak::default(),
        };
        match self.ids.get(&check.spec) {
            Some(id) => self.share(*id, user, now),
            None => self.add(check.spec, user, now),
        }
    }

    /// Gives a target another user.
    fn share(&mut self, id: ProbeId, user: User, now: Instant) {
        let Some(target) = self.targets.get_mut(&id) else {
            return;
        };
        if let Err(at) = target.position(&user.service, &user.server) {
            target.users.insert(at, user);
        }
        if let Phase::Waiting {
            due,
            last_start: Some(start),
        } = &mut target.phase
        {
            self.timers.remove(&(*due, id));
            *due = target.rhythm.soon(*start, now).min(*due);
            self.timers.insert((*due, id));
        }
    }

    /// Begins to probe what was not probed so far.
    fn add(&mut self, spec: ProbeSpec, user: User, now: Instant) {
        let id = ProbeId(self.next_id);
        self.next_id += 1;
        let rhythm = Rhythm::new(&spec, self.epoch);
        let due = rhythm.first(now);
        let spec = Arc::new(spec);
        self.ids.insert(Arc::clone(&spec), id);
        self.timers.insert((due, id));
        let target = Target {
            spec,
            rhythm,
            phase: Phase::Waiting {
                due,
                last_start: None,
            },
            users: vec![user],
        };
        self.targets.insert(id, target);
    }

    fn leave(&mut self, spec: &ProbeSpec, service: &ServiceId, server: RealServerKey) {
        let Some(id) = self.ids.get(spec).copied() else {
            return;
        };
        let Some(target) = self.targets.get_mut(&id) else {
            return;
        };
        if let Ok(at) = target.position(service, &server) {
            target.users.remove(at);
        }
        if target.users.is_empty()
            && let Phase::Waiting { due, .. } = target.phase
        {
            self.timers.remove(&(due, id));
            self.forget(id);
        }
    }

    /// Gives a user other thresholds; counting starts again.
    fn rejudge(
        &mut self,
        spec: &ProbeSpec,
        service: &ServiceId,
        server: RealServerKey,
        thresholds: Thresholds,
    ) {
        if let Some(id) = self.ids.get(spec)
            && let Some(target) = self.targets.get_mut(id)
            && let Ok(at) = target.position(service, &server)
        {
            target.users[at].thresholds = thresholds;
            target.users[at].streak = Streak::default();
        }
    }

    fn forget(&mut self, id: ProbeId) {
        if let Some(target) = self.targets.remove(&id) {
            self.ids.remove(&target.spec);
        }
    }
}

// === impl Target ===

impl Target {
    fn position(&self, service: &ServiceId, server: &RealServerKey) -> Result<usize, usize> {
        self.users
            .binary_search_by(|user| (&user.service, &user.server).cmp(&(service, server)))
    }
}

// === impl Declared ===

impl Declared {
    fn of(server: &RealServer) -> Option<Self> {
        let HealthCheckSpec {
            endpoint,
            period,
            timeout,
            up_threshold,
            down_threshold,
        } = server.check.spec()?;
        let target = SocketAddr::new(server.key.address, endpoint.port().get());
        Some(Self {
            spec: ProbeSpec {
                target,
                endpoint,
                period,
                timeout,
            },
            thresholds: Thresholds {
                up: up_threshold,
                down: down_threshold,
            },
        })
    }
}
