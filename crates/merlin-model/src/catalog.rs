//! The catalog and the one function that changes it.
//!
//! Invariants, which [`Catalog::apply`] keeps and the tests below assert:
//!
//! * No two services share a key, and `keys` is exactly the inverse of `services`.
//! * Every object's `created` is at most its `changed`, which is at most `revision`.
//! * A refused command changes nothing at all; an accepted one that changes something raises
//!   `revision` by exactly one.
//! * The answers to the last `Requests::MAX` request ids are remembered.
//!
//! Maps are persistent data structures: a clone costs nothing and shares everything, so every
//! revision can be published whole.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use imbl::{OrdMap, Vector};

use crate::command::{Command, Mutation, Rejection, Reply, RequestId, Timestamp};
use crate::server::{HealthCheck, RealServerConfig, RealServerKey, port_required};
use crate::service::{Invalid, ServiceConfig, ServiceId, ServiceKey};

#[cfg(test)]
pub(crate) mod tests;

/// Number of a catalog state. 0 is the empty catalog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    pub const ZERO: Self = Self(0);

    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A declared virtual service and its real servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualService {
    pub id: ServiceId,
    pub key: ServiceKey,
    pub config: ServiceConfig,
    pub created: Revision,
    /// Revision that last changed the service itself; its servers have their own.
    pub changed: Revision,
    pub servers: OrdMap<RealServerKey, Arc<RealServer>>,
}

/// A declared real server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealServer {
    pub key: RealServerKey,
    pub config: RealServerConfig,
    pub check: HealthCheck,
    pub created: Revision,
    pub changed: Revision,
}

/// One object's step from one revision to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Created or updated, with the servers it has; those did not change.
    ServicePut(Arc<VirtualService>),
    ServiceDeleted {
        id: ServiceId,
        key: ServiceKey,
    },
    ServerPut {
        service: ServiceId,
        server: Arc<RealServer>,
    },
    ServerDeleted {
        service: ServiceId,
        key: RealServerKey,
    },
}

impl Change {
    /// The service that changed, or whose server did.
    pub fn service(&self) -> &ServiceId {
        match self {
            Self::ServicePut(service) => &service.id,
            Self::ServiceDeleted { id, .. } => id,
            Self::ServerPut { service, .. } | Self::ServerDeleted { service, .. } => service,
        }
    }
}

/// What an accepted command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub reply: Reply,
    /// Empty when nothing changed: a repeated request, or a deletion of what was not there.
    pub changes: Vec<Change>,
}

/// All virtual services and real servers at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    revision: Revision,
    services: OrdMap<ServiceId, Arc<VirtualService>>,
    keys: OrdMap<ServiceKey, ServiceId>,
    requests: Requests,
}

/// First answers to commands that carried a request id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Requests {
    answers: OrdMap<RequestId, Answer>,
    /// In order of arrival, oldest first.
    order: Vector<(Timestamp, RequestId)>,
}

/// The answer of an applied command.
pub type Answer = Result<Reply, Rejection>;

/// A remembered answer, as snapshots carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub at: Timestamp,
    pub id: RequestId,
    pub answer: Answer,
}

/// A stored catalog contradicts itself.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("services {first} and {second} share the key {key}")]
    SharedKey {
        first: ServiceId,
        second: ServiceId,
        key: ServiceKey,
    },
    #[error("service {0} appears twice")]
    Duplicate(ServiceId),
    #[error("{what} of service {service} is newer than the catalog's revision {revision}")]
    FromTheFuture {
        service: ServiceId,
        what: &'static str,
        revision: Revision,
    },
}

// === impl Catalog ===

impl Catalog {
    /// Rebuilds a catalog from its parts, refusing parts that contradict each other.
    pub fn restore(
        revision: Revision,
        services: impl IntoIterator<Item = VirtualService>,
        remembered: impl IntoIterator<Item = Remembered>,
    ) -> Result<Self, RestoreError> {
        let mut catalog = Self {
            revision,
            ..Self::default()
        };
        for service in services {
            if let Some(first) = catalog.keys.insert(service.key, service.id.clone()) {
                if first == service.id {
                    return Err(RestoreError::Duplicate(first));
                }
                let (second, key) = (service.id, service.key);
                return Err(RestoreError::SharedKey { first, second, key });
            }
            let newest = service.servers.values().map(|server| server.changed).max();
            let what = if service.changed > revision {
                Some("the record")
            } else {
                None
            }
            .or((newest > Some(revision)).then_some("a real server"));
            if let Some(what) = what {
                return Err(RestoreError::FromTheFuture {
                    service: service.id,
                    what,
                    revision,
                });
            }
            if catalog.services.contains_key(&service.id) {
                return Err(RestoreError::Duplicate(service.id));
            }
            catalog
                .services
                .insert(service.id.clone(), Arc::new(service));
        }
        catalog.requests = Requests::restore(remembered);
        Ok(catalog)
    }

    /// Goes on so many revisions later, as if commands had been there that nobody knows of.
    pub fn skip_revisions(&mut self, count: u64) {
        self.revision = Revision(self.revision.0.saturating_add(count));
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether no service was ever declared. Such a catalog says nothing about a kernel's table.
    pub fn is_pristine(&self) -> bool {
        self.revision == Revision::ZERO
    }

    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<VirtualService>> {
        self.services.values()
    }

    /// Services in the order of their ids, from the first one after this.
    pub fn services_after(
        &self,
        id: Option<&ServiceId>,
    ) -> impl Iterator<Item = &Arc<VirtualService>> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        let services = self
            .services
            .range::<_, ServiceId>((from, Bound::Unbounded));
        services.map(|(_, service)| service)
    }

    pub fn service(&self, id: &ServiceId) -> Option<&Arc<VirtualService>> {
        self.services.get(id)
    }

    /// The service that owns a key.
    pub fn holder(&self, key: &ServiceKey) -> Option<&Arc<VirtualService>> {
        self.keys.get(key).and_then(|id| self.services.get(id))
    }

    pub fn remembered(&self) -> impl Iterator<Item = Remembered> {
        self.requests.order.iter().filter_map(|(at, id)| {
            let answer = self.requests.answers.get(id)?.clone();
            Some(Remembered {
                at: *at,
                id: id.clone(),
                answer,
            })
        })
    }

    /// Services that differ between the two catalogs; costs what differs, not what is held.
    pub fn changed_services(&self, earlier: &Self) -> BTreeSet<ServiceId> {
        earlier
            .services
            .diff(&self.services)
            .map(|item| match item {
                DiffItem::Add(id, _) | DiffItem::Remove(id, _) => id.clone(),
                DiffItem::Update { new: (id, _), .. } => id.clone(),
            })
            .collect()
    }

    /// Applies one command. The answer depends on the catalog and the command alone.
    pub fn apply(&mut self, command: &Command) -> Result<Applied, Rejection> {
        if let Some(answer) = command
            .request_id
            .as_ref()
            .and_then(|id| self.requests.answers.get(id))
        {
            return answer.clone().map(|reply| Applied {
                reply,
                changes: Vec::new(),
            });
        }
        let outcome = self.mutate(command);
        if let Some(id) = &command.request_id {
            let answer = outcome
                .as_ref()
                .map(|applied| applied.reply)
                .map_err(Clone::clone);
            self.requests.remember(command.at, id.clone(), answer);
        }
        outcome
    }

    /// Takes over what a store elsewhere decided: one step to `revision`.
    ///
    /// A service that is put has exactly the servers it is put with. Which of two services owns a
    /// key is for whoever reads the store to say: after the step no two may share one.
    pub fn follow(&mut self, revision: Revision, changes: &[Change]) {
        self.revision = revision;
        for change in changes {
            match change {
                Change::ServicePut(service) => {
                    self.release_key(&service.id);
                    self.keys.insert(service.key, service.id.clone());
                    self.services
                        .insert(service.id.clone(), Arc::clone(service));
                }
                Change::ServiceDeleted { id, .. } => {
                    self.release_key(id);
                    self.services.remove(id);
                }
                Change::ServerPut { service, server } => {
                    if let Some(holder) = self.services.get_mut(service) {
                        let servers = &mut Arc::make_mut(holder).servers;
                        servers.insert(server.key, Arc::clone(server));
                    }
                }
                Change::ServerDeleted { service, key } => {
                    self.delete_server(service, key);
                }
            }
        }
    }

    /// Frees a service's key, unless another one has taken it over within the step.
    fn release_key(&mut self, id: &ServiceId) {
        if let Some(service) = self.services.get(id)
            && self.keys.get(&service.key) == Some(id)
        {
            self.keys.remove(&service.key);
        }
    }

    fn mutate(&mut self, command: &Command) -> Result<Applied, Rejection> {
        if let Some(expected) = command.expected_revision {
            let actual = self.last_change(&command.mutation);
            if actual.unwrap_or(Revision::ZERO) != expected {
                return Err(Rejection::Conflict { expected, actual });
            }
        }
        let next = self.revision.next();
        let changes = match &command.mutation {
            Mutation::CreateService { id, key, config } => {
                config.check(key)?;
                if self.services.contains_key(id) {
                    return Err(Rejection::ServiceExists(id.clone()));
                }
                self.check_free(key, id)?;
                let service = VirtualService {
                    id: id.clone(),
                    key: *key,
                    config: *config,
                    created: next,
                    changed: next,
                    servers: OrdMap::new(),
                };
                vec![Change::ServicePut(self.put(service))]
            }
            Mutation::UpdateService { id, patch } => {
                let current = self.existing(id)?;
                let (key, config) = patch.merge(&current.key, &current.config)?;
                config.check(&key)?;
                self.check_free(&key, id)?;
                for server in current.servers.values() {
                    server.config.check(&key, &server.key)?;
                }
                let service = VirtualService {
                    key,
                    config,
                    changed: next,
                    ..current.clone()
                };
                vec![Change::ServicePut(self.put(service))]
            }
            Mutation::DeleteService { id } => self.delete_service(id),
            Mutation::CreateServer {
                service,
                key,
                config,
                check,
            } => {
                // Before the look-up, so that a bad port is told apart from an unknown service.
                if key.port == 0
                    && !self
                        .services
                        .get(service)
                        .is_some_and(|s| s.key.is_portless())
                {
                    return Err(port_required().into());
                }
                check.check()?;
                let holder = self.existing(service)?;
                config.check(&holder.key, key)?;
                if holder.servers.contains_key(key) {
                    return Err(Rejection::ServerExists {
                        service: service.clone(),
                        key: *key,
                    });
                }
                let (config, check) = (*config, check.clone());
                let server = RealServer {
                    key: *key,
                    config,
                    check,
                    created: next,
                    changed: next,
                };
                vec![self.put_server(service, server)?]
            }
            Mutation::UpdateServer {
                service,
                key,
                patch,
            } => {
                let holder = self.existing(service)?;
                let current = holder
                    .servers
                    .get(key)
                    .ok_or_else(|| Rejection::ServerNotFound {
                        service: service.clone(),
                        key: *key,
                    })?;
                let (config, check) = patch.merge(&current.config, &current.check)?;
                config.check(&holder.key, key)?;
                check.check()?;
                let server = RealServer {
                    key: *key,
                    config,
                    check,
                    created: current.created,
                    changed: next,
                };
                vec![self.put_server(service, server)?]
            }
            Mutation::DeleteServer { service, key } => self.delete_server(service, key),
        };
        let changed = !changes.is_empty();
        if changed {
            self.revision = next;
        }
        Ok(Applied {
            reply: Reply {
                revision: self.revision,
                changed,
            },
            changes,
        })
    }

    /// When the object a mutation addresses last changed.
    fn last_change(&self, mutation: &Mutation) -> Option<Revision> {
        match mutation {
            Mutation::CreateService { id, .. }
            | Mutation::UpdateService { id, .. }
            | Mutation::DeleteService { id } => self.services.get(id).map(|s| s.changed),
            Mutation::CreateServer { service, key, .. }
            | Mutation::UpdateServer { service, key, .. }
            | Mutation::DeleteServer { service, key } => self
                .services
                .get(service)?
                .servers
                .get(key)
                .map(|s| s.changed),
        }
    }

    fn existing(&self, id: &ServiceId) -> Result<&VirtualService, Rejection> {
        self.services
            .get(id)
            .map(|service| &**service)
            .ok_or_else(|| Rejection::ServiceNotFound(id.clone()))
    }

    /// Checks that no service other than `id` owns `key`.
    fn check_free(&self, key: &ServiceKey, id: &ServiceId) -> Result<(), Rejection> {
        match self.keys.get(key) {
            Some(holder) if holder != id => Err(Rejection::KeyTaken {
                key: *key,
                holder: holder.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn put(&mut self, service: VirtualService) -> Arc<VirtualService> {
        let (id, key) = (service.id.clone(), service.key);
        let service = Arc::new(service);
        if let Some(before) = self.services.insert(id.clone(), Arc::clone(&service)) {
            self.keys.remove(&before.key);
        }
        self.keys.insert(key, id);
        service
    }

    fn delete_service(&mut self, id: &ServiceId) -> Vec<Change> {
        let Some(service) = self.services.remove(id) else {
            return Vec::new();
        };
        self.keys.remove(&service.key);
        let server_deleted = |key: &RealServerKey| Change::ServerDeleted {
            service: id.clone(),
            key: *key,
        };
        let mut changes: Vec<_> = service.servers.keys().map(server_deleted).collect();
        changes.push(Change::ServiceDeleted {
            id: id.clone(),
            key: service.key,
        });
        changes
    }

    fn put_server(&mut self, id: &ServiceId, server: RealServer) -> Result<Change, Rejection> {
        let server = Arc::new(server);
        let service = self
            .services
            .get_mut(id)
            .ok_or_else(|| Rejection::ServiceNotFound(id.clone()))?;
        Arc::make_mut(service)
            .servers
            .insert(server.key, Arc::clone(&server));
        Ok(Change::ServerPut {
            service: id.clone(),
            server,
        })
    }

    fn delete_server(&mut self, id: &ServiceId, key: &RealServerKey) -> Vec<Change> {
        let Some(service) = self.services.get_mut(id) else {
            return Vec::new();
        };
        if !service.servers.contains_key(key) {
            return Vec::new();
        }
        Arc::make_mut(service).servers.remove(key);
        vec![Change::ServerDeleted {
            service: id.clone(),
            key: *key,
        }]
    }
}

// === impl Requests ===

impl Requests {
    /// Bounds memory and snapshots. Nothing is forgotten for its age: a leader whose clock jumps
    /// ahead would make every answer old at once, and the retry of a request that has been carried
    /// out would be carried out again.
    const MAX: usize = 8192;

    /// Takes everything as it is: what the catalog remembered when it was stored is not judged
    /// again, or this replica could forget what the others still know.
    fn restore(remembered: impl IntoIterator<Item = Remembered>) -> Self {
        let mut requests = Self::default();
        for Remembered { at, id, answer } in remembered {
            requests.insert(at, id, answer);
        }
        requests
    }

    fn remember(&mut self, at: Timestamp, id: RequestId, answer: Answer) {
        while self.order.len() >= Self::MAX {
            if let Some((_, forgotten)) = self.order.pop_front() {
                self.answers.remove(&forgotten);
            }
        }
        self.insert(at, id, answer);
    }

    fn insert(&mut self, at: Timestamp, id: RequestId, answer: Answer) {
        if self.answers.insert(id.clone(), answer).is_none() {
            self.order.push_back((at, id));
        }
    }
}

impl VirtualService {
    /// Checks a service built from a stored record rather than by a command.
    pub fn check(&self) -> Result<(), Invalid> {
        self.config.check(&self.key)?;
        self.servers
            .values()
            .try_for_each(|server| server.config.check(&self.key, &server.key))
    }
}
