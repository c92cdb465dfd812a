//! Replays the history by revision.
//!
//! Which write made a revision is known from its acknowledgement, or from what a watch or a read
//! showed of it: values are unique. Where nothing is known, a single legal write of unknown outcome
//! is taken; where there are several, the replay goes on from the next read that shows everything.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::versions::Versions;
use super::{Law, Violations};
use crate::model::{Catalog, judge};
use crate::ops::{Event, History, Moment, Outcome, ReadRecord, Revision, Serial, WriteRecord};

/// What made a revision.
#[derive(Clone, Debug, Default)]
pub(super) struct Step {
    /// Index into the history's writes.
    pub(super) write: Option<usize>,
    pub(super) events: Vec<Event>,
    /// Before this moment the revision cannot have been there.
    pub(super) invoked: Moment,
    pub(super) verified: bool,
}

#[derive(Debug, Default)]
pub(super) struct Replay {
    /// The first one made revision 1.
    pub(super) steps: Vec<Step>,
    pub(super) versions: Versions,
    /// For each step, the latest moment at which any step up to it was asked for.
    invoked: Vec<Moment>,
}

impl Replay {
    pub(super) fn last(&self) -> Revision {
        self.steps.len() as Revision
    }

    pub(super) fn step(&self, revision: Revision) -> Option<&Step> {
        let index = usize::try_from(revision.checked_sub(1)?).ok()?;
        self.steps.get(index)
    }

    /// The newest revision that can have been there at a moment.
    pub(super) fn ceiling(&self, at: Moment) -> Revision {
        self.invoked.partition_point(|invoked| *invoked < at) as Revision
    }

    /// Whether everything is known about these revisions.
    pub(super) fn is_verified(&self, from: Revision, to: Revision) -> bool {
        (from..=to).all(|revision| self.step(revision).is_none_or(|step| step.verified))
    }

    pub(super) fn unverified(&self) -> usize {
        self.steps.iter().filter(|step| !step.verified).count()
    }
}

/// What is known about a revision before the replay.
#[derive(Debug, Default)]
struct Evidence<'a> {
    acknowledged: Option<usize>,
    /// By a watch.
    told: Option<&'a [Event]>,
    /// By a read: an object that last changed then.
    shown: Option<Event>,
}

struct Replayer<'a> {
    history: &'a History,
    evidence: BTreeMap<Revision, Evidence<'a>>,
    reads: BTreeMap<Revision, Vec<&'a ReadRecord>>,
    by_value: HashMap<Serial, usize>,
    /// Where each write that happened did.
    used: HashMap<usize, Revision>,
    catalog: Catalog,
    /// Whether `catalog` is what it was at the revision before.
    known: bool,
    /// The last catalog that was known, while none is.
    lost: Catalog,
}

pub(super) fn replay(history: &History, violations: &mut Violations) -> Replay {
    let mut replayer = Replayer::new(history, violations);
    let mut replay = Replay::default();
    let newest = replayer.newest();
    replayer.look(0, violations);
    for revision in 1..=newest {
        let step = replayer.step(revision, violations);
        if replayer.known {
            replay.versions.step(revision, &step.events);
        }
        if replayer.look(revision, violations) {
            let (lost, found) = (&replayer.lost, &replayer.catalog);
            replay.versions.jump(revision, lost, found);
        }
        let latest = replay.invoked.last().copied().unwrap_or(0);
        replay.invoked.push(latest.max(step.invoked));
        replay.steps.push(step);
    }
    replay
}

impl<'a> Replayer<'a> {
    fn new(history: &'a History, violations: &mut Violations) -> Self {
        let mut evidence: BTreeMap<Revision, Evidence<'a>> = BTreeMap::new();
        let mut by_value = HashMap::new();
        for (index, record) in history.writes.iter().enumerate() {
            if let Some(value) = record.write.action.value() {
                by_value.insert(value, index);
            }
            let Outcome::Done {
                revision,
                changed: true,
            } = record.outcome
            else {
                continue;
            };
            let known = evidence.entry(revision).or_default();
            if let Some(other) = known.acknowledged.replace(index) {
                let other = history.writes[other];
                let what = format!("{other}, and also {record}");
                violations.add(Law::OneWritePerRevision, what);
            }
        }
        for frame in history.watches.iter().flat_map(|watch| &watch.frames) {
            if !frame.events.is_empty() {
                let known = evidence.entry(frame.revision).or_default();
                known.told.get_or_insert(&frame.events);
            }
        }
        let mut reads: BTreeMap<Revision, Vec<&ReadRecord>> = BTreeMap::new();
        for read in &history.reads {
            for event in changes(&read.content) {
                let (Event::ServicePut { changed, .. } | Event::ServerPut { changed, .. }) = event
                else {
                    continue;
                };
                evidence.entry(changed).or_default().shown = Some(event);
            }
            reads.entry(read.revision).or_default().push(read);
        }
        Self {
            history,
            evidence,
            reads,
            by_value,
            used: HashMap::new(),
            catalog: Catalog::default(),
            known: true,
            lost: Catalog::default(),
        }
    }

    fn newest(&self) -> Revision {
        let evidence = self
            .evidence
            .last_key_value()
            .map(|(revision, _)| *revision);
        let reads = self.reads.last_key_value().map(|(revision, _)| *revision);
        evidence.max(reads).unwrap_or(0)
    }

    fn step(&mut self, revision: Revision, violations: &mut Violations) -> Step {
        let evidence = self.evidence.remove(&revision).unwrap_or_default();
        let write = match (evidence.acknowledged, evidence.told, evidence.shown) {
            (Some(index), ..) => Some(index),
            (None, Some(told), _) => self.author(revision, told, violations),
            (None, None, Some(shown)) => self.author(revision, &[shown], violations),
            (None, None, None) if self.is_nothing(revision) => {
                return Step {
                    verified: self.known,
                    ..Step::default()
                };
            }
            (None, None, None) if self.history.gaps.contains(&revision) => None,
            (None, None, None) => self.only_candidate(revision, violations),
        };
        let Some(index) = write else {
            // Without a write there are the events at most.
            if let Some(told) = evidence.told {
                force(&mut self.catalog, told);
            } else if self.known {
                self.known = false;
                self.lost = self.catalog.clone();
            }
            return Step {
                events: evidence.told.unwrap_or_default().to_vec(),
                ..Step::default()
            };
        };
        let record = &self.history.writes[index];
        if let Some(before) = self.used.insert(index, revision) {
            let what = format!("{record} happened at {before} and again at {revision}");
            violations.add(Law::AtMostOnce, what);
        }
        let mut step = Step {
            write: Some(index),
            invoked: record.start,
            verified: self.known,
            events: evidence.told.unwrap_or_default().to_vec(),
        };
        if !self.known {
            return step;
        }
        match self.catalog.apply(&record.write, revision) {
            Ok(events) if !events.is_empty() => step.events = events,
            answer => {
                let why = match answer {
                    Err(refusal) => format!("{refusal:?}"),
                    Ok(_) => "there was nothing to do".into(),
                };
                let what = format!("{record}, but after the writes before it: {why}");
                violations.add(Law::AnswersFollow, what);
                force(&mut self.catalog, &step.events);
            }
        }
        step
    }

    /// The write whose effect was seen.
    fn author(
        &self,
        revision: Revision,
        events: &[Event],
        violations: &mut Violations,
    ) -> Option<usize> {
        let author = match *events.last()? {
            Event::ServicePut { value, .. } | Event::ServerPut { value, .. } => {
                self.by_value.get(&value).copied()
            }
            Event::ServiceDeleted { service, .. } => self.deletion(service, None),
            Event::ServerDeleted { service, server } => self.deletion(service, Some(server)),
        };
        let Some(index) = author else {
            let what = format!("nobody asked for revision {revision}: {events:?}");
            violations.add(Law::OnlyWhatWasWritten, what);
            return None;
        };
        let record = &self.history.writes[index];
        match record.outcome {
            Outcome::Unknown => {}
            Outcome::Done { .. } => {
                let what = format!("{record}, and it is also revision {revision}");
                violations.add(Law::AtMostOnce, what);
                return None;
            }
            Outcome::Refused(_) | Outcome::Nothing => {
                let what = format!("{record}, but it is revision {revision}");
                violations.add(Law::RefusedChangesNothing, what);
            }
        }
        Some(index)
    }

    /// A deletion that may have happened, and has not been found yet.
    fn deletion(&self, service: Serial, server: Option<Serial>) -> Option<usize> {
        let writes = self.history.writes.iter().enumerate();
        let fitting = |(index, record): &(usize, &WriteRecord)| {
            let action = record.write.action;
            action.value().is_none()
                && (action.service(), action.server()) == (service, server)
                && !matches!(record.outcome, Outcome::Done { .. })
                && !self.used.contains_key(index)
        };
        // A refused one is only blamed where nobody else can be. Of several that are alike the first
        // to be asked for is taken: a later one may not have been asked for yet.
        let likely = |record: &WriteRecord| {
            let legal = !self.known || judge(&self.catalog, &record.write) == Ok(true);
            let unknown = record.outcome == Outcome::Unknown;
            (unknown, legal, Reverse(record.start))
        };
        let author = writes
            .filter(fitting)
            .max_by_key(|(_, record)| likely(record));
        Some(author?.0)
    }

    fn only_candidate(&self, revision: Revision, violations: &mut Violations) -> Option<usize> {
        if !self.known {
            return None;
        }
        let candidates = self.candidates();
        match candidates[..] {
            [only] => Some(only),
            [] => {
                let what = format!("nobody can have made revision {revision}");
                violations.add(Law::OnlyWhatWasWritten, what);
                None
            }
            _ => None,
        }
    }

    /// Whether it is a gap that no write can hide in.
    fn is_nothing(&self, revision: Revision) -> bool {
        self.known && self.history.gaps.contains(&revision) && self.candidates().is_empty()
    }

    /// Writes of unknown outcome that could happen now, and have not been seen otherwise.
    fn candidates(&self) -> Vec<usize> {
        let seen: HashSet<Serial> = self
            .evidence
            .values()
            .flat_map(|evidence| {
                evidence
                    .told
                    .unwrap_or_default()
                    .iter()
                    .chain(&evidence.shown)
            })
            .filter_map(|event| match event {
                Event::ServicePut { value, .. } | Event::ServerPut { value, .. } => Some(*value),
                _ => None,
            })
            .collect();
        let writes = self.history.writes.iter().enumerate();
        let candidates = writes.filter(|(index, record)| {
            record.outcome == Outcome::Unknown
                && !self.used.contains_key(index)
                && judge(&self.catalog, &record.write) == Ok(true)
                && !record
                    .write
                    .action
                    .value()
                    .is_some_and(|v| seen.contains(&v))
        });
        candidates.map(|(index, _)| index).collect()
    }

    /// Compares what was read at a revision. Says whether the catalog is known again thereby.
    fn look(&mut self, revision: Revision, violations: &mut Violations) -> bool {
        let mut resumed = false;
        for read in self.reads.remove(&revision).unwrap_or_default() {
            if !self.known {
                self.catalog = (*read.content).clone();
                self.known = true;
                resumed = true;
            }
            if let Some(difference) = difference(&self.catalog, &read.content) {
                let ReadRecord { node, .. } = read;
                let what = format!("a read at n{node} shows revision {revision}, but {difference}");
                violations.add(Law::ReadsShowARevision, what);
            }
        }
        resumed
    }
}

fn changes(catalog: &Catalog) -> impl Iterator<Item = Event> {
    catalog.services.iter().flat_map(|(id, service)| {
        let servers = service.servers.iter();
        let servers = servers.map(|(server, held)| held.put(*id, *server));
        std::iter::once(service.put(*id)).chain(servers)
    })
}

/// Does what was seen to have happened, whether or not it should have.
fn force(catalog: &mut Catalog, events: &[Event]) {
    use crate::model::{Server, Service};
    for event in events {
        match *event {
            Event::ServicePut {
                service,
                port,
                value,
                created,
                changed,
            } => {
                let kept = catalog.services.remove(&service);
                let servers = kept.map(|kept| kept.servers).unwrap_or_default();
                let put = Service {
                    port,
                    value,
                    created,
                    changed,
                    servers,
                };
                catalog.services.insert(service, put);
            }
            Event::ServiceDeleted { service, .. } => {
                catalog.services.remove(&service);
            }
            Event::ServerPut {
                service,
                server,
                value,
                created,
                changed,
            } => {
                if let Some(service) = catalog.services.get_mut(&service) {
                    let put = Server {
                        value,
                        created,
                        changed,
                    };
                    service.servers.insert(server, put);
                }
            }
            Event::ServerDeleted { service, server } => {
                if let Some(service) = catalog.services.get_mut(&service) {
                    service.servers.remove(&server);
                }
            }
        }
    }
}

/// The first thing in which two catalogs differ.
fn difference(expected: &Catalog, found: &Catalog) -> Option<String> {
    if expected == found {
        return None;
    }
    let ids = expected.services.keys().chain(found.services.keys());
    for id in ids.collect::<std::collections::BTreeSet<_>>() {
        match (expected.services.get(id), found.services.get(id)) {
            (expected, found) if expected == found => {}
            (Some(expected), Some(found)) => {
                let servers = expected.servers.keys().chain(found.servers.keys());
                for server in servers.collect::<std::collections::BTreeSet<_>>() {
                    let (expected, found) =
                        (expected.servers.get(server), found.servers.get(server));
                    if expected != found {
                        return Some(format!(
                            "server {server} of s{id} is {found:?} instead of {expected:?}"
                        ));
                    }
                }
                let (put, found) = (expected.put(*id), found.put(*id));
                return Some(format!("s{id} is {found:?} instead of {put:?}"));
            }
            (Some(_), None) => return Some(format!("s{id} is missing")),
            (None, _) => return Some(format!("s{id} should not be there")),
        }
    }
    None
}
