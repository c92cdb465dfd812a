//! Laws that hold for every sequence of declarations, delays and outcomes.
//!
//! A model that remembers every outcome since a check was declared says what the view must be.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const SERVICES: [&str; 2] = ["web", "api"];
const SERVERS: [&str; 3] = ["10.0.0.1:80", "10.0.0.1:81", "[fd00::1]:80"];

#[derive(Clone, Debug)]
enum Step {
    Declare(usize, usize, HealthCheck),
    SwitchOff(usize, usize),
    Weigh(usize, usize, u32),
    RemoveServer(usize, usize),
    RemoveService(usize),
    Wait(Duration),
    /// Starts at most so many of the probes that are due.
    Start(usize),
    /// Finishes one of the probes in flight.
    Finish(prop::sample::Index, Outcome),
}

fn a_check() -> impl Strategy<Value = HealthCheck> {
    // Few different targets, so that they are shared.
    let endpoint = prop::sample::select(vec!["http://:80/", "http://:80/b"]);
    let period = prop::sample::select(vec![400, 3_000]);
    (endpoint, period, 1..4_u32, 1..4_u32).prop_map(|(endpoint, period, up, down)| {
        let period = Duration::from_millis(period);
        check(endpoint, period, Duration::from_secs(1), (up, down))
    })
}

fn an_outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Success),
        2 => Just(Outcome::Failure("connection refused".into())),
        1 => Just(Outcome::Failure("status 503".into())),
        1 => Just(Outcome::Inconclusive("too many open files".into())),
    ]
}

fn a_step() -> impl Strategy<Value = Step> {
    let (service, server) = (0..SERVICES.len(), 0..SERVERS.len());
    let pair = (service.clone(), server);
    prop_oneof![
        4 => (pair.clone(), a_check()).prop_map(|((s, r), check)| Step::Declare(s, r, check)),
        1 => pair.clone().prop_map(|(s, r)| Step::SwitchOff(s, r)),
        1 => (pair.clone(), 0..9_u32).prop_map(|((s, r), weight)| Step::Weigh(s, r, weight)),
        1 => pair.prop_map(|(s, r)| Step::RemoveServer(s, r)),
        1 => service.prop_map(Step::RemoveService),
        6 => (0..2_000_u64).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
        6 => (0..4_usize).prop_map(Step::Start),
        12 => (any::<prop::sample::Index>(), an_outcome()).prop_map(|(i, o)| Step::Finish(i, o)),
    ]
}

/// What is known of one checked server, the slow and simple way.
#[derive(Debug)]
struct Known {
    declared: Declared,
    /// Since the check was declared or edited.
    outcomes: Vec<bool>,
    health: ServerHealth,
}

struct World {
    now: Instant,
    declared: Declarations,
    checker: Checker,
    known: BTreeMap<(ServiceId, RealServerKey), Known>,
    in_flight: Vec<Probe>,
    /// Start of the latest probe of every target that has been checked without a break since.
    started: HashMap<Arc<ProbeSpec>, Instant>,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            now,
            declared: Declarations::default(),
            checker: Checker::new(now),
            known: BTreeMap::new(),
            in_flight: Vec::new(),
            started: HashMap::new(),
        }
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        let exists = |world: &Self, service: usize, server: usize| {
            let service = world.declared.0.service(&id(SERVICES[service]));
            let server = RealServerKey::from(at(SERVERS[server]));
            service.is_some_and(|service| service.servers.contains_key(&server))
        };
        match step {
            Step::Declare(service, server, check) => {
                self.declared
                    .declare(SERVICES[service], at(SERVERS[server]), check);
            }
            Step::SwitchOff(s, r) if exists(self, s, r) => {
                self.declared.switch_off(SERVICES[s], at(SERVERS[r]));
            }
            Step::Weigh(s, r, weight) if exists(self, s, r) => {
                self.declared.weigh(SERVICES[s], at(SERVERS[r]), weight);
            }
            Step::RemoveServer(s, r) => self.declared.remove_server(SERVICES[s], at(SERVERS[r])),
            Step::RemoveService(s) => self.declared.remove_service(SERVICES[s]),
            Step::SwitchOff(..) | Step::Weigh(..) => {}
            Step::Wait(time) => self.now += time,
            Step::Start(room) => self.start(room)?,
            Step::Finish(index, outcome) => self.finish(index, outcome)?,
        }
        self.checker.sync(&self.declared.0, self.now);
        self.follow_declarations();
        self.compare()
    }

    fn start(&mut self, room: usize) -> Result<(), TestCaseError> {
        let probes = self.checker.start_due(self.now, room);
        prop_assert!(probes.len() <= room);
        for probe in probes {
            let twice = self.in_flight.iter().any(|other| other.spec == probe.spec);
            prop_assert!(!twice, "two probes of {:?} at a time", probe.spec);
            let least = (probe.spec.period / 2).min(rhythm::SOON);
            if let Some(before) = self.started.insert(Arc::clone(&probe.spec), self.now) {
                let pause = self.now - before;
                prop_assert!(pause >= least, "{pause:?} after the probe before");
            }
            self.in_flight.push(probe);
        }
        Ok(())
    }

    fn finish(
        &mut self,
        index: prop::sample::Index,
        outcome: Outcome,
    ) -> Result<(), TestCaseError> {
        if self.in_flight.is_empty() {
            return Ok(());
        }
        let probe = self
            .in_flight
            .swap_remove(index.index(self.in_flight.len()));
        let mut expected = Vec::new();
        for ((service, server), known) in &mut self.known {
            if known.declared.spec != *probe.spec {
                continue;
            }
            let from = known.health.verdict;
            known.learn(&outcome);
            let to = known.health.verdict;
            if from != to {
                let reason = known.health.last_failure.clone();
                expected.push(Transition {
                    service: service.clone(),
                    server: *server,
                    from,
                    to,
                    reason: reason.filter(|_| to == Verdict::Down),
                });
            }
        }
        let transitions = self.checker.finish(probe.id, outcome, self.now);
        prop_assert_eq!(transitions, expected);
        Ok(())
    }

    fn follow_declarations(&mut self) {
        let mut before = std::mem::take(&mut self.known);
        for service in self.declared.0.services() {
            for server in service.servers.values() {
                let Some(declared) = Declared::of(server) else {
                    continue;
                };
                let key = (service.id.clone(), server.key);
                let known = match before.remove(&key) {
                    Some(known) if known.declared == declared => known,
                    edited => Known {
                        declared,
                        outcomes: Vec::new(),
                        health: edited.map(|known| known.health).unwrap_or_default(),
                    },
                };
                self.known.insert(key, known);
            }
        }
        let known = &self.known;
        self.started
            .retain(|spec, _| known.values().any(|k| k.declared.spec == **spec));
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let mut expected = HealthView::default();
        for ((service, server), known) in &self.known {
            expected.set(service.clone(), *server, known.health.clone());
        }
        prop_assert_eq!(self.checker.view(), &expected);
        assert_consistent(&self.checker);
        // Nobody is forgotten: every target is in flight, or due within a period and a half.
        for target in self.checker.targets.values() {
            let latest = self.now + target.spec.period.mul_f64(1.5).max(rhythm::SOON);
            match target.phase {
                Phase::Waiting { due, .. } => prop_assert!(due <= latest),
                Phase::InFlight { .. } => {
                    prop_assert!(self.in_flight.iter().any(|p| p.spec == target.spec));
                }
            }
        }
        let targets: HashSet<_> = self.known.values().map(|k| &k.declared.spec).collect();
        let waiting = self
            .checker
            .targets
            .values()
            .filter(|t| !t.users.is_empty())
            .count();
        prop_assert_eq!(waiting, targets.len());
        Ok(())
    }
}

impl Known {
    fn learn(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Success => self.outcomes.push(true),
            Outcome::Failure(_) => self.outcomes.push(false),
            Outcome::Inconclusive(_) => {}
        }
        if let Outcome::Failure(reason) | Outcome::Inconclusive(reason) = outcome {
            self.health.last_failure = Some(Arc::clone(reason));
        }
        let thresholds = self.declared.thresholds;
        for (healthy, threshold, verdict) in [
            (true, thresholds.up, Verdict::Up),
            (false, thresholds.down, Verdict::Down),
        ] {
            let threshold = usize::try_from(threshold.get()).unwrap();
            let latest = self.outcomes.iter().rev().take(threshold);
            if latest.filter(|outcome| **outcome == healthy).count() == threshold {
                self.health.verdict = verdict;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_view_is_what_the_outcomes_since_the_last_edit_say(
        steps in prop::collection::vec(a_step(), 1..120),
    ) {
        let mut world = World::new();
        for step in steps {
            world.take(step)?;
        }
        // A restart knows the same servers, and nothing about them.
        let mut restarted = Checker::new(world.now);
        restarted.sync(&world.declared.0, world.now);
        let unknown = restarted.view().iter().map(|(service, server, health)| {
            assert_eq!(health, &ServerHealth::default());
            (service.clone(), *server)
        });
        prop_assert!(unknown.eq(world.known.keys().cloned()));
    }
}
