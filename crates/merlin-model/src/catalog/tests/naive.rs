//! A catalog as simple as can be: lists, searched from the front, every field merged by hand. It
//! knows the rules of single objects (`check`) but nothing of persistent maps and indexes.

use std::num::{NonZeroU16, NonZeroU32};

use crate::catalog::{Answer, RealServer, Revision};
use crate::command::{
    Command, ForwardingPatch, KeyPatch, Mutation, Rejection, Reply, RequestId, ServerPatch,
    ServicePatch, Timestamp,
};
use crate::server::{Forwarding, RealServerKey, Thresholds, Tunnel, port_required};
use crate::service::{
    Invalid, Netmask, Persistence, SchedulerFlags, ServiceConfig, ServiceId, ServiceKey,
};

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Service {
    pub(super) id: ServiceId,
    pub(super) key: ServiceKey,
    pub(super) config: ServiceConfig,
    pub(super) created: Revision,
    pub(super) changed: Revision,
    pub(super) servers: Vec<RealServer>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Naive {
    pub(super) revision: Revision,
    pub(super) services: Vec<Service>,
    pub(super) answers: Vec<(Timestamp, RequestId, Answer)>,
}

impl Naive {
    pub(super) fn apply(&mut self, command: &Command) -> Answer {
        if let Some(id) = &command.request_id
            && let Some((_, _, answer)) = self.answers.iter().find(|(_, known, _)| known == id)
        {
            return answer.clone();
        }
        let before = self.clone();
        let answer = self.mutate(command);
        if answer.is_err() {
            *self = before;
        }
        if let Some(id) = &command.request_id {
            self.answers.push((command.at, id.clone(), answer.clone()));
        }
        answer
    }

    fn find(&mut self, id: &ServiceId) -> Result<&mut Service, Rejection> {
        let mut services = self.services.iter_mut();
        services
            .find(|service| service.id == *id)
            .ok_or_else(|| Rejection::ServiceNotFound(id.clone()))
    }

    fn check_free(&self, key: &ServiceKey, id: &ServiceId) -> Result<(), Rejection> {
        let mut services = self.services.iter();
        match services.find(|other| other.key == *key && other.id != *id) {
            Some(holder) => Err(Rejection::KeyTaken {
                key: *key,
                holder: holder.id.clone(),
            }),
            None => Ok(()),
        }
    }

    fn actual(&mut self, mutation: &Mutation) -> Option<Revision> {
        let (id, key) = match mutation {
            Mutation::CreateService { id, .. }
            | Mutation::UpdateService { id, .. }
            | Mutation::DeleteService { id } => (id, None),
            Mutation::CreateServer { service, key, .. }
            | Mutation::UpdateServer { service, key, .. }
            | Mutation::DeleteServer { service, key } => (service, Some(key)),
        };
        let service = self.find(id).ok()?;
        match key {
            None => Some(service.changed),
            Some(key) => {
                let mut servers = service.servers.iter();
                Some(servers.find(|server| server.key == *key)?.changed)
            }
        }
    }

    fn mutate(&mut self, command: &Command) -> Answer {
        let actual = self.actual(&command.mutation);
        if let Some(expected) = command.expected_revision
            && expected != actual.unwrap_or_default()
        {
            return Err(Rejection::Conflict { expected, actual });
        }
        let next = self.revision.next();
        let mut changed = true;
        match command.mutation.clone() {
            Mutation::CreateService { id, key, config } => {
                config.check(&key)?;
                if actual.is_some() {
                    return Err(Rejection::ServiceExists(id));
                }
                self.check_free(&key, &id)?;
                self.services.push(Service {
                    id,
                    key,
                    config,
                    created: next,
                    changed: next,
                    servers: Vec::new(),
                });
            }
            Mutation::UpdateService { id, patch } => {
                let service = self.find(&id)?;
                edit_service(service, patch)?;
                service.changed = next;
                let edited = service.clone();
                edited.config.check(&edited.key)?;
                self.check_free(&edited.key, &id)?;
                let mut servers = edited.servers;
                servers.sort_by_key(|server| server.key);
                for server in servers {
                    server.config.check(&edited.key, &server.key)?;
                }
            }
            Mutation::DeleteService { id } => {
                changed = actual.is_some();
                self.services.retain(|service| service.id != id);
            }
            Mutation::CreateServer {
                service,
                key,
                config,
                check,
            } => {
                let portless = |holder: &mut Service| holder.key.is_portless();
                if key.port == 0 && !self.find(&service).is_ok_and(portless) {
                    return Err(port_required().into());
                }
                check.check()?;
                let holder = self.find(&service)?;
                config.check(&holder.key, &key)?;
                if actual.is_some() {
                    return Err(Rejection::ServerExists { service, key });
                }
                holder.servers.push(RealServer {
                    key,
                    config,
                    check,
                    created: next,
                    changed: next,
                });
            }
            Mutation::UpdateServer {
                service,
                key,
                patch,
            } => {
                let holder = self.find(&service)?;
                let mut servers = holder.servers.iter_mut();
                let server = servers
                    .find(|server| server.key == key)
                    .ok_or(Rejection::ServerNotFound { service, key })?;
                edit_server(server, patch)?;
                server.changed = next;
                server.config.check(&holder.key, &key)?;
                server.check.check()?;
            }
            Mutation::DeleteServer { service, key } => {
                changed = actual.is_some();
                if let Ok(holder) = self.find(&service) {
                    holder.servers.retain(|server| server.key != key);
                }
            }
        }
        if changed {
            self.revision = next;
        }
        Ok(Reply {
            revision: self.revision,
            changed,
        })
    }

    /// Services and their servers in the order of a listing.
    pub(super) fn sorted(&self) -> Vec<Service> {
        let mut services = self.services.clone();
        services.sort_by(|a, b| a.id.cmp(&b.id));
        for service in &mut services {
            service
                .servers
                .sort_by_key(|server: &RealServer| server.key);
        }
        services
    }

    pub(super) fn server(
        &mut self,
        id: &ServiceId,
        key: &RealServerKey,
    ) -> Option<&mut RealServer> {
        let servers = &mut self.find(id).ok()?.servers;
        servers.iter_mut().find(|server| server.key == *key)
    }
}

fn edit_service(service: &mut Service, patch: ServicePatch) -> Result<(), Invalid> {
    let family = service.key.family();
    if let Some(patch) = patch.key {
        service.key = edit_key(service.key, patch)?;
    }
    let config = &mut service.config;
    if let Some(scheduler) = patch.scheduler {
        config.scheduler = scheduler;
    }
    if let Some(flags) = patch.flags {
        config.flags = SchedulerFlags::resolve(config.scheduler, &flags)?;
    }
    if let Some(one_packet) = patch.one_packet {
        config.one_packet = one_packet;
    }
    let host = Netmask::host(service.key.family());
    if let Some(persistence) = &mut config.persistence
        && persistence.netmask == Netmask::host(family)
    {
        persistence.netmask = host;
    }
    let Some(patch) = patch.persistence else {
        return Ok(());
    };
    let timeout = match (patch.timeout, config.persistence) {
        (Some(0), _) => {
            config.persistence = None;
            return Ok(());
        }
        (Some(seconds), _) => seconds,
        (None, Some(current)) => current.timeout.get(),
        (None, None) => {
            return Err(Invalid::new(
                "config.persistence.timeout_seconds",
                "is required to switch persistence on",
            ));
        }
    };
    if timeout > Persistence::MAX_TIMEOUT {
        return Err(Invalid::new(
            "config.persistence.timeout_seconds",
            format!("{timeout} is out of range: 0 (off) to 2678400"),
        ));
    }
    let mut persistence = config.persistence.unwrap_or(Persistence {
        timeout: NonZeroU32::MIN,
        netmask: host,
        engine: None,
    });
    persistence.timeout = NonZeroU32::new(timeout).unwrap();
    if let Some(netmask) = patch.netmask {
        persistence.netmask = netmask;
    }
    if let Some(engine) = patch.engine {
        persistence.engine = engine;
    }
    config.persistence = Some(persistence);
    Ok(())
}

fn edit_key(key: ServiceKey, patch: KeyPatch) -> Result<ServiceKey, Invalid> {
    let missing = |field| Invalid::new(field, "is required to change the kind of key");
    Ok(match patch {
        KeyPatch::Fwmark { mark, family } => ServiceKey::Fwmark {
            mark,
            family: family.unwrap_or(key.family()),
        },
        KeyPatch::Address {
            address,
            port,
            protocol,
        } => {
            let (a, p, t) = match key {
                ServiceKey::Address {
                    address,
                    port,
                    protocol,
                } => (Some(address), port, Some(protocol)),
                ServiceKey::Fwmark { .. } => (None, 0, None),
            };
            ServiceKey::Address {
                address: address.or(a).ok_or(missing("key.ip"))?,
                port: port.map_or(p, NonZeroU16::get),
                protocol: protocol.or(t).ok_or(missing("key.protocol"))?,
            }
        }
    })
}

fn edit_server(server: &mut RealServer, patch: ServerPatch) -> Result<(), Invalid> {
    let config = &mut server.config;
    if let Some(weight) = patch.weight {
        config.weight = weight;
    }
    match (patch.forwarding, config.forwarding) {
        (None, _) | (Some(ForwardingPatch::Tunnel(None)), Forwarding::Tunnel(_)) => {}
        (Some(ForwardingPatch::Route), _) => config.forwarding = Forwarding::Route,
        (Some(ForwardingPatch::Masq), _) => config.forwarding = Forwarding::Masq,
        (Some(ForwardingPatch::Tunnel(tunnel)), _) => {
            config.forwarding = Forwarding::Tunnel(tunnel.unwrap_or(Tunnel::Ipip));
        }
    }
    let upper = patch.upper_threshold.unwrap_or(config.thresholds.upper());
    let lower = patch.lower_threshold.unwrap_or(config.thresholds.lower());
    config.thresholds = Thresholds::new(upper, lower)?;
    let (check, patch) = (&mut server.check, patch.check);
    if let Some(endpoint) = patch.endpoint {
        check.endpoint = endpoint;
    }
    if let Some(period) = patch.period {
        check.period = period;
    }
    if let Some(timeout) = patch.timeout {
        check.timeout = timeout;
    }
    if let Some(threshold) = patch.up_threshold {
        check.up_threshold = threshold.get();
    }
    if let Some(threshold) = patch.down_threshold {
        check.down_threshold = threshold.get();
    }
    Ok(())
}
