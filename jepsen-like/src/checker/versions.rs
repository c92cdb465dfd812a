//! Every object at every revision.

use std::collections::BTreeMap;

use crate::model::{Catalog, View};
use crate::ops::{Event, Revision, Serial};

/// Values with the revision each came with, ascending; `None` while there is no such object.
#[derive(Clone, Debug)]
pub(super) struct Line<T>(Vec<(Revision, Option<T>)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) port: u16,
    pub(super) value: Serial,
    pub(super) changed: Revision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldServer {
    pub(super) value: Serial,
    pub(super) changed: Revision,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Versions {
    pub(super) services: BTreeMap<Serial, Line<Held>>,
    pub(super) ports: BTreeMap<u16, Line<Serial>>,
    pub(super) servers: BTreeMap<(Serial, Serial), Line<HeldServer>>,
}

/// The objects as they were at a revision.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    pub(super) versions: &'a Versions,
    pub(super) revision: Revision,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + PartialEq> Line<T> {
    fn push(&mut self, revision: Revision, value: Option<T>) {
        if self.0.last().and_then(|(_, last)| *last) != value {
            self.0.push((revision, value));
        }
    }

    pub(super) fn at(&self, revision: Revision) -> Option<T> {
        let after = self.0.partition_point(|(from, _)| *from <= revision);
        self.0[..after].last()?.1
    }

    /// Every value it had at some revision from `low` to `high`.
    pub(super) fn within(
        &self,
        low: Revision,
        high: Revision,
    ) -> impl Iterator<Item = (Revision, Option<T>)> + '_ {
        let begins = self.0.partition_point(|(from, _)| *from <= low);
        let ends = self.0.partition_point(|(from, _)| *from <= high);
        let later = self.0[begins..ends.max(begins)].iter().copied();
        std::iter::once((low, self.at(low))).chain(later)
    }
}

impl Versions {
    pub(super) fn step(&mut self, revision: Revision, events: &[Event]) {
        for event in events {
            match *event {
                Event::ServicePut {
                    service,
                    port,
                    value,
                    changed,
                    ..
                } => {
                    let held = Held {
                        port,
                        value,
                        changed,
                    };
                    let line = self.services.entry(service).or_default();
                    line.push(revision, Some(held));
                    let line = self.ports.entry(port).or_default();
                    line.push(revision, Some(service));
                }
                Event::ServiceDeleted { service, port } => {
                    let line = self.services.entry(service).or_default();
                    line.push(revision, None);
                    let line = self.ports.entry(port).or_default();
                    line.push(revision, None);
                }
                Event::ServerPut {
                    service,
                    server,
                    value,
                    changed,
                    ..
                } => {
                    let held = HeldServer { value, changed };
                    let line = self.servers.entry((service, server)).or_default();
                    line.push(revision, Some(held));
                }
                Event::ServerDeleted { service, server } => {
                    let line = self.servers.entry((service, server)).or_default();
                    line.push(revision, None);
                }
            }
        }
    }

    /// Takes over a whole catalog, where the steps to it are not known.
    pub(super) fn jump(&mut self, revision: Revision, from: &Catalog, to: &Catalog) {
        let mut events = Vec::new();
        for (id, service) in &from.services {
            let kept = to.services.get(id);
            for server in service.servers.keys() {
                if kept.is_none_or(|kept| !kept.servers.contains_key(server)) {
                    let (service, server) = (*id, *server);
                    events.push(Event::ServerDeleted { service, server });
                }
            }
            if kept.is_none() {
                let (service, port) = (*id, service.port);
                events.push(Event::ServiceDeleted { service, port });
            }
        }
        for (id, service) in &to.services {
            events.push(service.put(*id));
            let servers = service.servers.iter();
            events.extend(servers.map(|(server, held)| held.put(*id, *server)));
        }
        self.step(revision, &events);
    }

    /// The servers a service ever had.
    pub(super) fn servers_of(
        &self,
        service: Serial,
    ) -> impl Iterator<Item = (Serial, &Line<HeldServer>)> {
        let servers = self
            .servers
            .range((service, Serial::MIN)..=(service, Serial::MAX));
        servers.map(|((_, server), line)| (*server, line))
    }
}

impl View for At<'_> {
    fn service(&self, service: Serial) -> Option<Revision> {
        let line = self.versions.services.get(&service)?;
        Some(line.at(self.revision)?.changed)
    }

    fn holder(&self, port: u16) -> Option<Serial> {
        self.versions.ports.get(&port)?.at(self.revision)
    }

    fn server(&self, service: Serial, server: Serial) -> Option<Revision> {
        let line = self.versions.servers.get(&(service, server))?;
        Some(line.at(self.revision)?.changed)
    }
}
