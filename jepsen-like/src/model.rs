//! What merlin promises to do with the writes of this program, in the smallest form.
//!
//! Written from the documentation and apart from merlin's own code on purpose: a mistake there
//! must not excuse itself here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ops::{Action, Event, Refusal, Revision, Serial, Write};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub port: u16,
    pub value: Serial,
    pub created: Revision,
    pub changed: Revision,
    pub servers: BTreeMap<Serial, Server>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub value: Serial,
    pub created: Revision,
    pub changed: Revision,
}

/// All services, as a read shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    pub services: BTreeMap<Serial, Service>,
}

/// What a node's data plane holds, by the port of the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub services: BTreeMap<u16, Virtual>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Virtual {
    pub scheduler: String,
    /// Weights.
    pub servers: BTreeMap<Serial, u32>,
}

/// What decides whether a write is accepted.
pub trait View {
    /// When the service last changed.
    fn service(&self, service: Serial) -> Option<Revision>;
    fn holder(&self, port: u16) -> Option<Serial>;
    /// When the server last changed.
    fn server(&self, service: Serial, server: Serial) -> Option<Revision>;
}

/// Whether the write changes something, or why it is refused.
pub fn judge(view: &impl View, write: &Write) -> Result<bool, Refusal> {
    let service = view.service(write.action.service());
    let server = write
        .action
        .server()
        .and_then(|server| view.server(write.action.service(), server));
    let object = match write.action.server() {
        Some(_) => server,
        None => service,
    };
    if let Some(expected) = write.expected
        && object.unwrap_or(0) != expected
    {
        return Err(Refusal::Conflict);
    }
    match write.action {
        Action::CreateService { port, .. } => match view.holder(port) {
            None if service.is_none() => Ok(true),
            _ => Err(Refusal::Exists),
        },
        Action::EditService { .. } => service.map(|_| true).ok_or(Refusal::NotFound),
        Action::DeleteService { .. } | Action::DeleteServer { .. } => Ok(object.is_some()),
        Action::CreateServer { .. } if service.is_none() => Err(Refusal::NotFound),
        Action::CreateServer { .. } if server.is_some() => Err(Refusal::Exists),
        Action::CreateServer { .. } => Ok(true),
        Action::EditServer { .. } => server.map(|_| true).ok_or(Refusal::NotFound),
    }
}

impl Catalog {
    /// The revisions that its objects tell.
    pub fn revisions(&self) -> impl Iterator<Item = Revision> {
        self.services.values().flat_map(|service| {
            let servers = service.servers.values();
            let servers = servers.flat_map(|server| [server.created, server.changed]);
            [service.created, service.changed]
                .into_iter()
                .chain(servers)
        })
    }

    /// Gives every revision in it another number.
    pub fn renumber(&mut self, number: impl Fn(Revision) -> Revision) {
        for service in self.services.values_mut() {
            service.created = number(service.created);
            service.changed = number(service.changed);
            for server in service.servers.values_mut() {
                server.created = number(server.created);
                server.changed = number(server.changed);
            }
        }
    }

    /// Does what the write says, as revision `next` if anything changes.
    pub fn apply(&mut self, write: &Write, next: Revision) -> Result<Vec<Event>, Refusal> {
        if !judge(self, write)? {
            return Ok(Vec::new());
        }
        let id = write.action.service();
        match write.action {
            Action::CreateService { port, value, .. } => {
                let service = Service {
                    port,
                    value,
                    created: next,
                    changed: next,
                    servers: BTreeMap::new(),
                };
                let event = service.put(id);
                self.services.insert(id, service);
                Ok(vec![event])
            }
            Action::DeleteService { .. } => {
                let gone = self.services.remove(&id).ok_or(Refusal::NotFound)?;
                let servers = gone.servers.keys().map(|server| Event::ServerDeleted {
                    service: id,
                    server: *server,
                });
                let mut events: Vec<_> = servers.collect();
                events.push(Event::ServiceDeleted {
                    service: id,
                    port: gone.port,
                });
                Ok(events)
            }
            action => {
                let service = self.services.get_mut(&id).ok_or(Refusal::NotFound)?;
                service.apply(id, action, next)
            }
        }
    }
}

impl Service {
    fn apply(&mut self, id: Serial, action: Action, next: Revision) -> Result<Vec<Event>, Refusal> {
        let event = match action {
            Action::EditService { value, .. } => {
                self.value = value;
                self.changed = next;
                self.put(id)
            }
            Action::CreateServer { server, value, .. } => {
                let made = Server {
                    value,
                    created: next,
                    changed: next,
                };
                self.servers.insert(server, made);
                made.put(id, server)
            }
            Action::EditServer { server, value, .. } => {
                let held = self.servers.get_mut(&server).ok_or(Refusal::NotFound)?;
                held.value = value;
                held.changed = next;
                held.put(id, server)
            }
            Action::DeleteServer { server, .. } => {
                self.servers.remove(&server);
                Event::ServerDeleted {
                    service: id,
                    server,
                }
            }
            Action::CreateService { .. } | Action::DeleteService { .. } => return Ok(Vec::new()),
        };
        Ok(vec![event])
    }

    /// The event that tells of this service.
    #[must_use]
    pub fn put(&self, service: Serial) -> Event {
        Event::ServicePut {
            service,
            port: self.port,
            value: self.value,
            created: self.created,
            changed: self.changed,
        }
    }
}

impl Server {
    #[must_use]
    pub fn put(&self, service: Serial, server: Serial) -> Event {
        Event::ServerPut {
            service,
            server,
            value: self.value,
            created: self.created,
            changed: self.changed,
        }
    }
}

impl View for Catalog {
    fn service(&self, service: Serial) -> Option<Revision> {
        Some(self.services.get(&service)?.changed)
    }

    fn holder(&self, port: u16) -> Option<Serial> {
        let mut holders = self.services.iter();
        holders
            .find(|(_, service)| service.port == port)
            .map(|(id, _)| *id)
    }

    fn server(&self, service: Serial, server: Serial) -> Option<Revision> {
        let service = self.services.get(&service)?;
        Some(service.servers.get(&server)?.changed)
    }
}

// === how serials become settings ===

/// Servers with these serials have a health check, which sometimes fails. They can be in every
/// service.
pub const CHECKED: std::ops::RangeInclusive<Serial> = 1..=4;

const SCHEDULERS: [&str; 6] = ["rr", "wrr", "lc", "wlc", "sed", "nq"];

/// The scheduler a service of this value has.
#[must_use]
pub fn scheduler(value: Serial) -> &'static str {
    SCHEDULERS[value as usize % SCHEDULERS.len()]
}

/// The weight a server of this value has: never 0, which means something else.
#[must_use]
pub fn weight(value: Serial) -> u32 {
    1 + value % 50_000
}
