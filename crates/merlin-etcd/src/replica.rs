//! What this node knows of the records, and the catalog they amount to. Pure.
//!
//! A store that anybody may write to can hold anything: records that cannot be read, servers of no
//! service, two services on the same key. The rules that make one catalog of it are here, and they
//! depend on the records alone, so that every node makes the same one:
//!
//! * A record that cannot be read is a [`Problem`]. One that could be read before stays in the
//!   catalog as it was: it says nothing about what ought to change, and live traffic is not the
//!   price of somebody's typing error.
//! * Of services that share a key, the one created first has it. The others are problems until
//!   the key is free.
//! * A server whose service is not in the catalog, or that does not suit it, is a problem.
//!
//! Invariants: `catalog` is what the rules make of `holdings`, and the cost of a step depends on
//! the services it touches, not on how many there are.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};
use merlin_model::catalog::{RealServer, VirtualService};
use merlin_model::{Catalog, Change, RealServerKey, Revision, ServiceId, ServiceKey};

use crate::layout::{Layout, Place};
use crate::records::{self, Reading, Unreadable};

/// A value as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub value: Bytes,
    /// Revisions of the store that created and last changed the key.
    pub created: Revision,
    pub changed: Revision,
}

/// A record that is passed over, in whole or in part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub key: String,
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.reason)
    }
}

/// Whether a list continues what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    Same,
    Another,
}

/// The records at one revision. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    layout: Layout,
    holdings: OrdMap<ServiceId, Arc<Holding>>,
    /// Who wants a key, the one who has it first.
    claims: OrdMap<ServiceKey, OrdSet<(Revision, ServiceId)>>,
    /// Keys among the records that stand for nothing.
    strays: OrdMap<String, Problem>,
    /// Everything that is passed over.
    problems: OrdSet<Problem>,
    catalog: Catalog,
}

/// All records about one service.
#[derive(Clone, Debug, Default)]
struct Holding {
    service: Option<Record<VirtualService>>,
    /// By the last segment of their keys.
    servers: OrdMap<String, Record<RealServer>>,
    /// What of it is passed over.
    problems: Vec<Problem>,
}

/// One record. A service's object has no servers.
#[derive(Clone, Debug)]
pub(crate) struct Record<T> {
    pub(crate) stored: Stored,
    /// As last readable.
    object: Option<Arc<T>>,
    /// Why the present value cannot be read.
    unreadable: Option<String>,
    /// What in the present value was passed over.
    passed_over: Option<String>,
}

impl Replica {
    /// Nothing is known yet.
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            ..Self::default()
        }
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Newest change of a record that is known of.
    pub fn revision(&self) -> Revision {
        self.catalog.revision()
    }

    /// How many keys there are among the records, misplaced ones too.
    pub fn len(&self) -> usize {
        let records = |h: &Arc<Holding>| h.servers.len() + usize::from(h.service.is_some());
        self.holdings.values().map(records).sum::<usize>() + self.strays.len()
    }

    pub fn is_empty(&self) -> bool {
        self.holdings.is_empty() && self.strays.is_empty()
    }

    /// Everything that is passed over, in the order of the keys.
    pub fn problems(&self) -> &OrdSet<Problem> {
        &self.problems
    }

    /// Takes over one step of the store: the keys that changed, with what they hold now. Answers
    /// what that changed in the catalog.
    pub fn step(
        &mut self,
        revision: Revision,
        updates: impl IntoIterator<Item = (Vec<u8>, Option<Stored>)>,
    ) -> Vec<Change> {
        let mut touched = BTreeSet::new();
        for (key, stored) in updates {
            touched.extend(self.put(&key, stored));
        }
        self.settle(revision.max(self.revision()), touched)
    }

    /// Takes over a complete list of the keys below the prefix, with the one that tells of the last
    /// deletion. Answers what that changed in the catalog; the steps between are not known.
    ///
    /// Of another history, that of a store that was wiped or restored, revisions may be smaller.
    pub fn relist(
        &mut self,
        history: History,
        list: impl IntoIterator<Item = (Vec<u8>, Stored)>,
    ) -> Vec<Change> {
        let mut absent: BTreeSet<Vec<u8>> = self.keys().map(String::into_bytes).collect();
        let mut newest = Revision::ZERO;
        let mut touched = BTreeSet::new();
        let deleted = self.layout.deleted().into_bytes();
        for (key, stored) in list {
            if key == deleted || self.layout.place(&key).is_some() {
                newest = newest.max(stored.changed);
            }
            absent.remove(&key);
            touched.extend(self.put(&key, Some(stored)));
        }
        for key in absent {
            touched.extend(self.put(&key, None));
        }
        let revision = match history {
            History::Same => newest.max(self.revision()),
            History::Another => newest,
        };
        self.settle(revision, touched)
    }

    /// Every key among the records.
    pub fn keys(&self) -> impl Iterator<Item = String> {
        let of_holding = |(id, holding): (&ServiceId, &Arc<Holding>)| {
            let service = holding.service.is_some().then(|| self.layout.service(id));
            let servers = holding.servers.keys();
            let servers = servers.map(|name| self.layout.named_server(id, name));
            service.into_iter().chain(servers).collect::<Vec<_>>()
        };
        let records = self.holdings.iter().flat_map(of_holding);
        records.chain(self.strays.keys().cloned())
    }

    pub(crate) fn service_record(&self, id: &ServiceId) -> Option<&Record<VirtualService>> {
        self.holdings.get(id)?.service.as_ref()
    }

    /// The record of a server and the name it is kept under.
    pub(crate) fn server_record(
        &self,
        id: &ServiceId,
        key: &RealServerKey,
    ) -> Option<(&str, &Record<RealServer>)> {
        let servers = &self.holdings.get(id)?.servers;
        let canonical = key.to_string();
        if let Some((name, record)) = servers.get_key_value(&canonical) {
            return Some((name, record));
        }
        let in_catalog = |record: &Record<RealServer>| {
            record
                .object
                .as_ref()
                .is_some_and(|server| server.key == *key)
        };
        let mut by_name = servers.iter().map(|(name, record)| (name.as_str(), record));
        by_name.find(|(_, record)| in_catalog(record))
    }

    /// Why the record at the path is passed over.
    pub(crate) fn problem_at(&self, id: &ServiceId, path: &str) -> Option<&str> {
        let problems = &self.holdings.get(id)?.problems;
        let problem = problems.iter().find(|problem| problem.key == path)?;
        Some(&problem.reason)
    }

    /// When a record was last changed: the service's own, or that of a server by its name.
    pub(crate) fn changed(&self, id: &ServiceId, server: Option<&str>) -> Option<Revision> {
        Some(self.stored(id, server)?.changed)
    }

    /// What a record holds.
    pub(crate) fn value(&self, id: &ServiceId, server: Option<&str>) -> Option<&Bytes> {
        Some(&self.stored(id, server)?.value)
    }

    fn stored(&self, id: &ServiceId, server: Option<&str>) -> Option<&Stored> {
        let holding = self.holdings.get(id)?;
        match server {
            None => Some(&holding.service.as_ref()?.stored),
            Some(name) => Some(&holding.servers.get(name)?.stored),
        }
    }

    /// The servers kept for a service, whether or not they suit it.
    pub(crate) fn servers(&self, id: &ServiceId) -> impl Iterator<Item = &RealServer> {
        let holding = self.holdings.get(id).into_iter();
        let records = holding.flat_map(|holding| holding.servers.values());
        records.filter_map(|record| record.object.as_deref())
    }

    /// Other services that want the key of this one.
    pub(crate) fn rivals(&self, id: &ServiceId) -> impl Iterator<Item = &ServiceId> {
        let claim = self.service_record(id).and_then(Record::claim);
        let claims = claim.and_then(|(key, _)| self.claims.get(&key));
        let claimants = claims.into_iter().flatten().map(|(_, claimant)| claimant);
        claimants.filter(move |claimant| *claimant != id)
    }

    /// Whether any server is kept for the service, whatever it says.
    pub(crate) fn has_servers(&self, id: &ServiceId) -> bool {
        let holding = self.holdings.get(id);
        holding.is_some_and(|holding| !holding.servers.is_empty())
    }

    /// Notes what a key holds now. Answers which services that concerns.
    fn put(&mut self, key: &[u8], stored: Option<Stored>) -> Option<ServiceId> {
        let (id, server) = match self.layout.place(key)? {
            Place::Service(id) => (id, None),
            Place::Server { service, name } => (service, Some(name)),
            Place::Misplaced { reason } => {
                let key = String::from_utf8_lossy(key).into_owned();
                match stored {
                    Some(_) => {
                        let problem = Problem {
                            key: key.clone(),
                            reason,
                        };
                        self.problems.insert(problem.clone());
                        self.strays.insert(key, problem);
                    }
                    None => {
                        let problem = self.strays.remove(&key);
                        problem.map(|problem| self.problems.remove(&problem));
                    }
                }
                return None;
            }
        };
        let mut holding = self.holdings.remove(&id).unwrap_or_default();
        let records = Arc::make_mut(&mut holding);
        match server {
            None => {
                let before = records.service.take();
                self.release(&id, before.as_ref());
                let read = |stored| Record::read(stored, before, |v| records::read_service(&id, v));
                records.service = stored.map(read);
                self.claim(&id, records.service.as_ref());
            }
            Some(name) => {
                let before = records.servers.remove(&name);
                if let Some(stored) = stored {
                    let read = |value: &[u8]| records::read_server(&id, &name, value);
                    let record = Record::read(stored, before, read);
                    records.servers.insert(name, record);
                }
            }
        }
        if records.service.is_some() || !records.servers.is_empty() {
            self.holdings.insert(id.clone(), holding);
        } else {
            self.forget(&holding.problems);
        }
        Some(id)
    }

    fn claim(&mut self, id: &ServiceId, record: Option<&Record<VirtualService>>) {
        if let Some((key, created)) = record.and_then(Record::claim) {
            let claim = (created, id.clone());
            self.claims.entry(key).or_default().insert(claim);
        }
    }

    fn release(&mut self, id: &ServiceId, record: Option<&Record<VirtualService>>) {
        if let Some((key, created)) = record.and_then(Record::claim) {
            let claims = self.claims.entry(key).or_default();
            claims.remove(&(created, id.clone()));
            if claims.is_empty() {
                self.claims.remove(&key);
            }
        }
    }

    /// Brings the catalog up to date with what is held for the services.
    fn settle(&mut self, revision: Revision, touched: BTreeSet<ServiceId>) -> Vec<Change> {
        let touched = self.with_rivals(touched);
        // Deletions first: they free keys.
        let (mut changes, mut puts) = (Vec::new(), Vec::new());
        for id in touched {
            let before = self.catalog.service(&id).cloned();
            match (before, self.judge(&id)) {
                (before, Some(after)) => puts.extend(difference(before.as_deref(), &after)),
                (Some(before), None) => changes.extend(deletion(&before)),
                (None, None) => {}
            }
        }
        changes.append(&mut puts);
        self.catalog.follow(revision, &changes);
        changes
    }

    /// The services, and those that have or want the same keys: they win or lose by the step.
    fn with_rivals(&self, touched: BTreeSet<ServiceId>) -> BTreeSet<ServiceId> {
        let key_before = |id| self.catalog.service(id).map(|service| service.key);
        let key_after = |id| Some(self.service_record(id)?.claim()?.0);
        let keys: BTreeSet<ServiceKey> = touched
            .iter()
            .flat_map(|id| [key_before(id), key_after(id)])
            .flatten()
            .collect();
        let claims = keys.iter().filter_map(|key| self.claims.get(key));
        let rivals = claims.flatten().map(|(_, id)| id.clone());
        rivals.chain(touched.iter().cloned()).collect()
    }

    fn forget(&mut self, problems: &[Problem]) {
        for problem in problems {
            self.problems.remove(problem);
        }
    }

    /// Applies the rules to one service: what of it is in the catalog, and what is passed over.
    fn judge(&mut self, id: &ServiceId) -> Option<VirtualService> {
        let mut holding = self.holdings.remove(id)?;
        let (service, problems) = self.apply_rules(id, &holding);
        self.forget(&holding.problems);
        self.problems.extend(problems.iter().cloned());
        Arc::make_mut(&mut holding).problems = problems;
        self.holdings.insert(id.clone(), holding);
        service
    }

    fn apply_rules(
        &self,
        id: &ServiceId,
        holding: &Holding,
    ) -> (Option<VirtualService>, Vec<Problem>) {
        let mut problems = Problems(Vec::new());
        let service_key = self.layout.service(id);
        let mut service = None;
        if let Some(record) = &holding.service {
            problems.of_record(&service_key, record);
            match record.object.as_deref().map(|object| self.usable(object)) {
                Some(Ok(usable)) => service = Some(usable),
                Some(Err(reason)) => problems.add(&service_key, reason),
                None => {}
            }
        }
        // In the order of their creation: the first spelling of an address has it.
        let mut servers: Vec<_> = holding.servers.iter().collect();
        servers.sort_by_key(|(name, record)| (record.stored.created, *name));
        for (name, record) in servers {
            let key = self.layout.named_server(id, name);
            problems.of_record(&key, record);
            let Some(server) = &record.object else {
                continue;
            };
            match service.as_mut().map(|service| adopt(service, server)) {
                Some(Ok(())) => {}
                Some(Err(reason)) => problems.add(&key, reason),
                None => problems.add(&key, format!("service {id} is not in the catalog")),
            }
        }
        (service, problems.0)
    }

    /// A service that may stand in the catalog, or why not.
    fn usable(&self, service: &VirtualService) -> Result<VirtualService, String> {
        service.check().map_err(|invalid| invalid.to_string())?;
        let claims = self.claims.get(&service.key);
        match claims.and_then(|claims| claims.get_min()) {
            Some((_, holder)) if *holder != service.id => Err(format!(
                "{} belongs to service {holder}, which was there first",
                service.key
            )),
            _ => Ok(service.clone()),
        }
    }
}

// === impl Record ===

impl<T> Record<T> {
    pub(crate) fn is_readable(&self) -> bool {
        self.unreadable.is_none()
    }

    /// Reads a value that took the place of `before`'s.
    fn read(
        stored: Stored,
        before: Option<Self>,
        read: impl FnOnce(&[u8]) -> Result<Reading<T>, Unreadable>,
    ) -> Self
    where
        T: Dated,
    {
        match read(&stored.value) {
            Ok(Reading {
                mut object,
                passed_over,
            }) => {
                object.set_revisions(stored.created, stored.changed);
                Self {
                    stored,
                    object: Some(Arc::new(object)),
                    unreadable: None,
                    passed_over,
                }
            }
            Err(unreadable) => Self {
                stored,
                object: before.and_then(|before| before.object),
                unreadable: Some(with_source(&unreadable)),
                passed_over: None,
            },
        }
    }
}

impl Record<VirtualService> {
    /// The key it wants, and since when.
    fn claim(&self) -> Option<(ServiceKey, Revision)> {
        let service = self.object.as_ref()?;
        Some((service.key, service.created))
    }
}

/// What has revisions that only the store knows.
trait Dated {
    fn set_revisions(&mut self, created: Revision, changed: Revision);
}

impl Dated for VirtualService {
    fn set_revisions(&mut self, created: Revision, changed: Revision) {
        (self.created, self.changed) = (created, changed);
    }
}

impl Dated for RealServer {
    fn set_revisions(&mut self, created: Revision, changed: Revision) {
        (self.created, self.changed) = (created, changed);
    }
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

// === the rules' results ===

/// Problems of one service, as they are found.
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, key: &str, reason: impl Into<String>) {
        let (key, reason) = (key.to_owned(), reason.into());
        self.0.push(Problem { key, reason });
    }

    fn of_record<T>(&mut self, key: &str, record: &Record<T>) {
        match (&record.unreadable, &record.object) {
            (Some(reason), Some(_)) => {
                self.add(key, format!("{reason}; kept as it was last readable"));
            }
            (Some(reason), None) => self.add(key, reason.clone()),
            (None, _) => {}
        }
        if let Some(passed_over) = &record.passed_over {
            self.add(key, passed_over.clone());
        }
    }
}

/// Gives a service one of its servers, or says what keeps them apart.
fn adopt(service: &mut VirtualService, server: &Arc<RealServer>) -> Result<(), String> {
    let suits = server.config.check(&service.key, &server.key);
    suits.map_err(|invalid| invalid.to_string())?;
    if service.servers.contains_key(&server.key) {
        return Err(format!("{} is there under another name", server.key));
    }
    service.servers.insert(server.key, Arc::clone(server));
    Ok(())
}

fn deletion(service: &VirtualService) -> Vec<Change> {
    let server_deleted = |key: &RealServerKey| Change::ServerDeleted {
        service: service.id.clone(),
        key: *key,
    };
    let mut changes: Vec<_> = service.servers.keys().map(server_deleted).collect();
    changes.push(Change::ServiceDeleted {
        id: service.id.clone(),
        key: service.key,
    });
    changes
}

/// What leads from one state of a service to the next: first the service, with the servers it had,
/// then those.
fn difference(before: Option<&VirtualService>, after: &VirtualService) -> Vec<Change> {
    let servers = before
        .map(|before| before.servers.clone())
        .unwrap_or_default();
    let mut changes = Vec::new();
    let put = VirtualService {
        servers: servers.clone(),
        ..after.clone()
    };
    if before != Some(&put) {
        changes.push(Change::ServicePut(Arc::new(put)));
    }
    let of_servers = servers.diff(&after.servers).map(|item| match item {
        DiffItem::Add(_, server)
        | DiffItem::Update {
            new: (_, server), ..
        } => Change::ServerPut {
            service: after.id.clone(),
            server: Arc::clone(server),
        },
        DiffItem::Remove(key, _) => Change::ServerDeleted {
            service: after.id.clone(),
            key: *key,
        },
    });
    changes.extend(of_servers);
    changes
}

#[cfg(test)]
mod tests;
