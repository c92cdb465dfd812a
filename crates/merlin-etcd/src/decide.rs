//! From a command to the one transaction that carries it out. Pure.
//!
//! [`Catalog::apply`](merlin_model::Catalog::apply) decides, as it does for every store: existence,
//! merging and conflicts are its business alone. What it decided holds as long as the records it
//! looked at are as they were, and that is what the guards say. A decision is made on a copy that
//! may lag, so it counts only once a transaction has found every guard to hold: an acceptance
//! writes in that transaction, and a refusal or a deletion of nothing is confirmed by one that
//! writes nothing. If a guard fails, somebody was faster: catch up and decide again.
//!
//! | command | looked at | guard |
//! |---|---|---|
//! | any about a service | its record | unchanged, or absent |
//! | any about a server | its record, and the service's | both unchanged, or absent |
//! | one that claims a key | every service record | no newer one than those looked at |
//! | refused for a key's holder | the holder's record | unchanged |

use merlin_model::catalog::{Applied, RealServer, VirtualService};
use merlin_model::{
    Change, Command, Invalid, Mutation, RealServerKey, Rejection, Revision, ServiceId,
};

use crate::records;
use crate::replica::{Record, Replica};

/// What a command comes to, if the guards hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether anything changes, or why it is refused.
    pub answer: Result<bool, Rejection>,
    pub guards: Vec<Guard>,
    pub writes: Vec<Write>,
}

/// What must still be so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    Absent {
        key: String,
    },
    Unchanged {
        key: String,
        since: Revision,
    },
    /// No key that begins so was put after the revision.
    Quiet {
        prefix: String,
        since: Revision,
    },
}

/// What is to be done, all of it or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Put {
        key: String,
        value: Vec<u8>,
    },
    Delete {
        key: String,
    },
    /// Every key that begins so.
    DeleteAll {
        prefix: String,
    },
}

/// Decides on what is known. The command's request id is not looked at: stores keep the answers
/// to requests in their own way.
pub fn decide(replica: &Replica, command: &Command) -> Decision {
    let subject = Subject::of(replica, &command.mutation);
    let mut guards = subject.guards();
    if let Some(changed) = subject.passed_over_since() {
        let outcome = subject.judge_passed_over(changed, command.expected_revision);
        return match outcome {
            Ok(writes) => accepted(writes, guards),
            Err(rejection) => refused(rejection, guards),
        };
    }
    let nameless = Command {
        request_id: None,
        ..command.clone()
    };
    match replica.catalog().clone().apply(&nameless) {
        Ok(Applied { changes, .. }) => {
            guards.extend(claim_guards(replica, &changes));
            let writes = changes.iter().flat_map(|change| subject.writes(change));
            match (writes.collect::<Vec<_>>(), &command.mutation) {
                // The earlier system left the servers behind when it deleted a service.
                (writes, Mutation::DeleteService { id })
                    if writes.is_empty() && replica.has_servers(id) =>
                {
                    accepted(deletion(replica, id), guards)
                }
                (writes, _) => accepted(writes, guards),
            }
        }
        Err(rejection) => {
            if let Rejection::KeyTaken { holder, .. } = &rejection {
                guards.push(service_guard(replica, holder));
            }
            refused(rejection, guards)
        }
    }
}

fn accepted(writes: Vec<Write>, guards: Vec<Guard>) -> Decision {
    Decision {
        answer: Ok(!writes.is_empty()),
        guards,
        writes,
    }
}

fn refused(rejection: Rejection, guards: Vec<Guard>) -> Decision {
    Decision {
        answer: Err(rejection),
        guards,
        writes: Vec::new(),
    }
}

/// What a mutation is about, as it is kept.
struct Subject<'a> {
    replica: &'a Replica,
    mutation: &'a Mutation,
    id: &'a ServiceId,
    service: Option<&'a Record<VirtualService>>,
    server: Option<ServerSubject<'a>>,
}

struct ServerSubject<'a> {
    key: &'a RealServerKey,
    /// Where its record is or will be.
    path: String,
    record: Option<&'a Record<RealServer>>,
}

impl ServerSubject<'_> {
    fn delete(&self) -> Write {
        Write::Delete {
            key: self.path.clone(),
        }
    }
}

impl<'a> Subject<'a> {
    fn of(replica: &'a Replica, mutation: &'a Mutation) -> Self {
        let (id, key) = match mutation {
            Mutation::CreateService { id, .. }
            | Mutation::UpdateService { id, .. }
            | Mutation::DeleteService { id } => (id, None),
            Mutation::CreateServer { service, key, .. }
            | Mutation::UpdateServer { service, key, .. }
            | Mutation::DeleteServer { service, key } => (service, Some(key)),
        };
        let server = key.map(|key| match replica.server_record(id, key) {
            Some((name, record)) => ServerSubject {
                key,
                path: replica.layout().named_server(id, name),
                record: Some(record),
            },
            None => ServerSubject {
                key,
                path: replica.layout().server(id, key),
                record: None,
            },
        });
        Self {
            replica,
            mutation,
            id,
            service: replica.service_record(id),
            server,
        }
    }

    fn guards(&self) -> Vec<Guard> {
        let service = service_guard(self.replica, self.id);
        let Some(server) = &self.server else {
            return vec![service];
        };
        let guard = guard(
            &server.path,
            server.record.map(|record| record.stored.changed),
        );
        match self.mutation {
            // Whatever becomes of the service, the server goes.
            Mutation::DeleteServer { .. } => vec![guard],
            _ => vec![service, guard],
        }
    }

    /// When the addressed object last changed, if its record is passed over: it is not in the
    /// catalog, or only as it was last readable.
    fn passed_over_since(&self) -> Option<Revision> {
        let holder = self.replica.catalog().service(self.id);
        let (changed, is_good) = match &self.server {
            None => {
                let record = self.service?;
                (
                    record.stored.changed,
                    record.is_readable() && holder.is_some(),
                )
            }
            Some(server) => {
                let record = server.record?;
                let is_in = holder.is_some_and(|h| h.servers.contains_key(server.key));
                (record.stored.changed, record.is_readable() && is_in)
            }
        };
        (!is_good).then_some(changed)
    }

    /// A record that is passed over can be deleted, and is in the way until then.
    fn judge_passed_over(
        &self,
        changed: Revision,
        expected: Option<Revision>,
    ) -> Result<Vec<Write>, Rejection> {
        if let Some(expected) = expected
            && changed != expected
        {
            let actual = Some(changed);
            return Err(Rejection::Conflict { expected, actual });
        }
        match (self.mutation, &self.server) {
            (Mutation::DeleteService { .. }, _) => Ok(deletion(self.replica, self.id)),
            (Mutation::DeleteServer { .. }, Some(server)) => Ok(vec![server.delete()]),
            (Mutation::CreateServer { .. }, Some(server)) => Err(Rejection::ServerExists {
                service: self.id.clone(),
                key: *server.key,
            }),
            (Mutation::CreateService { .. }, _) => Err(Rejection::ServiceExists(self.id.clone())),
            (_, server) => {
                let (field, path) = match server {
                    Some(server) => ("key", server.path.clone()),
                    None => ("id", self.replica.layout().service(self.id)),
                };
                let problem = self.replica.problem_at(self.id, &path).unwrap_or_default();
                let reason =
                    format!("its record {path} is passed over ({problem}): delete it first");
                Err(Invalid::new(field, reason).into())
            }
        }
    }

    fn writes(&self, change: &Change) -> Vec<Write> {
        let layout = self.replica.layout();
        match change {
            Change::ServicePut(service) => {
                let before = self.service.map(|record| &*record.stored.value);
                let put = Write::Put {
                    key: layout.service(self.id),
                    value: records::write_service(service, before),
                };
                if self.service.is_some() {
                    return vec![put];
                }
                // A new service has no servers, whatever an earlier one of its name left behind.
                let prefix = layout.servers_of(self.id);
                vec![put, Write::DeleteAll { prefix }]
            }
            Change::ServiceDeleted { id, .. } => deletion(self.replica, id),
            Change::ServerPut { service, server } => {
                let subject = self.server.as_ref();
                let before = subject
                    .and_then(|s| s.record)
                    .map(|record| &*record.stored.value);
                let key = match subject {
                    Some(subject) => subject.path.clone(),
                    None => layout.server(service, &server.key),
                };
                let value = records::write_server(service, server, before);
                vec![Write::Put { key, value }]
            }
            Change::ServerDeleted { .. } => match &self.server {
                Some(server) => vec![server.delete()],
                // Goes with its service.
                None => Vec::new(),
            },
        }
    }
}

/// A service goes with all its servers.
fn deletion(replica: &Replica, id: &ServiceId) -> Vec<Write> {
    let layout = replica.layout();
    vec![
        Write::Delete {
            key: layout.service(id),
        },
        Write::DeleteAll {
            prefix: layout.servers_of(id),
        },
    ]
}

fn service_guard(replica: &Replica, id: &ServiceId) -> Guard {
    let record = replica.service_record(id);
    guard(
        &replica.layout().service(id),
        record.map(|record| record.stored.changed),
    )
}

fn guard(key: &str, changed: Option<Revision>) -> Guard {
    let key = key.to_owned();
    match changed {
        Some(since) => Guard::Unchanged { key, since },
        None => Guard::Absent { key },
    }
}

/// A key is free, and its servers suit it, as far as the records known of tell. No newer ones may
/// have come, from nodes of the earlier system either, which know of no such rule.
fn claim_guards(replica: &Replica, changes: &[Change]) -> Vec<Guard> {
    let since = replica.revision();
    let claimant = changes.iter().find_map(|change| match change {
        Change::ServicePut(service) => Some(service),
        _ => None,
    });
    let Some(service) = claimant else {
        return Vec::new();
    };
    let services = Guard::Quiet {
        prefix: replica.layout().services(),
        since,
    };
    match replica.catalog().service(&service.id) {
        Some(before) if before.key == service.key => Vec::new(),
        Some(_) => {
            let prefix = replica.layout().servers_of(&service.id);
            vec![services, Guard::Quiet { prefix, since }]
        }
        None => vec![services],
    }
}

#[cfg(test)]
mod tests;
