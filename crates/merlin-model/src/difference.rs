//! What has to be done to make one catalog hold what another one does.
//!
//! [`difference`] is how a file is imported and how a catalog moves from one store to another. What
//! it answers with keeps live traffic whole:
//!
//! * What both catalogs have is edited, never deleted and added, and only in the fields that differ.
//! * Services come first, then new and edited servers, then the servers to remove, then the services
//!   to remove, so a service never has fewer servers than it had before and has after.
//! * A key never passes from one service to another: nothing can do that without a moment in which
//!   nobody answers. It is refused, and an operator who means it does it by hand.
//! * Every step was tried on a copy: a rejection is known before anything is done.
//!
//! Revisions are not compared. Each step carries the one its object must still be at.

mod fields;
#[cfg(test)]
mod tests;

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};

use crate::catalog::{Catalog, RealServer, Revision, VirtualService};
use crate::command::{
    CheckPatch, Command, ForwardingPatch, KeyPatch, Mutation, PersistencePatch, Rejection,
    ServerPatch, ServicePatch, Timestamp,
};
use crate::server::{Forwarding, HealthCheck, RealServerKey};
use crate::service::{ServiceId, ServiceKey};

pub use fields::FieldChange;

/// What becomes of objects that the new catalog does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    Keep,
    Remove,
}

/// The steps from one catalog to another, in the order that keeps traffic whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub steps: Vec<Step>,
    /// What only the old catalog has and [`Extra::Keep`] leaves there.
    pub kept: Vec<Object>,
}

/// One object's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub object: Object,
    pub mutation: Mutation,
    /// Revision that last changed the object; 0 when it must not exist.
    pub expected: Revision,
    /// Empty for removals.
    pub fields: Vec<FieldChange>,
}

/// A service, or a real server of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub service: ServiceId,
    pub server: Option<RealServerKey>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Add,
    Edit,
    Remove,
}

/// Steps of one stage do not depend on each other; every stage needs the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    PutServices,
    PutServers,
    DeleteServers,
    DeleteServices,
}

/// No order of steps leads from one catalog to the other without harm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DifferenceError {
    #[error(
        "service {to}: key: {key} belongs to service {from}, and passing it on would interrupt its \
         traffic; delete or edit {from} first if that is meant"
    )]
    Handover {
        key: ServiceKey,
        from: ServiceId,
        to: ServiceId,
    },
    #[error(
        "service {0}: key.port: a service cannot be edited to take every port; delete it first if \
         that is meant"
    )]
    EveryPort(ServiceId),
    #[error("{object}: {rejection}")]
    Rejected {
        object: Object,
        rejection: Rejection,
    },
}

/// The steps that make `old` hold what `new` holds.
pub fn difference(
    old: &Catalog,
    new: &Catalog,
    extra: Extra,
) -> Result<Difference, DifferenceError> {
    let mut difference = Difference::default();
    for wanted in new.services() {
        match old.holder(&wanted.key) {
            Some(holder) if holder.id != wanted.id => {
                return Err(DifferenceError::Handover {
                    key: wanted.key,
                    from: holder.id.clone(),
                    to: wanted.id.clone(),
                });
            }
            _ => {}
        }
        let present = old.service(&wanted.id).map(|service| &**service);
        difference.put_service(present, wanted)?;
        for server in wanted.servers.values() {
            let present = present.and_then(|service| service.servers.get(&server.key));
            difference.put_server(&wanted.id, present.map(|server| &**server), server);
        }
    }
    for present in old.services() {
        match new.service(&present.id) {
            None => {
                let object = Object::service(&present.id);
                let id = present.id.clone();
                let mutation = Mutation::DeleteService { id };
                difference.remove(extra, object, mutation, present.changed);
            }
            Some(wanted) => {
                let gone = |key: &&RealServerKey| !wanted.servers.contains_key(*key);
                for key in present.servers.keys().filter(gone) {
                    let (service, key) = (present.id.clone(), *key);
                    let object = Object::server(&service, &key);
                    let changed = present.servers[&key].changed;
                    let mutation = Mutation::DeleteServer { service, key };
                    difference.remove(extra, object, mutation, changed);
                }
            }
        }
    }
    difference.steps.sort_by_key(Step::stage);
    difference.rehearse(old)?;
    Ok(difference)
}

// === impl Difference ===

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// How many steps do this.
    pub fn count(&self, action: Action) -> usize {
        let does = |step: &&Step| step.action() == action;
        self.steps.iter().filter(does).count()
    }

    /// The steps stage by stage.
    pub fn stages(&self) -> impl Iterator<Item = &[Step]> {
        self.steps.chunk_by(|a, b| a.stage() == b.stage())
    }

    fn put_service(
        &mut self,
        present: Option<&VirtualService>,
        wanted: &VirtualService,
    ) -> Result<(), DifferenceError> {
        let mutation = match present {
            None => Mutation::CreateService {
                id: wanted.id.clone(),
                key: wanted.key,
                config: wanted.config,
            },
            Some(present) => {
                let patch = ServicePatch {
                    key: key_patch(&wanted.id, &present.key, &wanted.key)?,
                    ..config_patch(present, wanted)
                };
                if patch == ServicePatch::default() {
                    return Ok(());
                }
                let id = wanted.id.clone();
                Mutation::UpdateService { id, patch }
            }
        };
        self.steps.push(Step {
            object: Object::service(&wanted.id),
            mutation,
            expected: present.map_or(Revision::ZERO, |present| present.changed),
            fields: Vec::new(),
        });
        Ok(())
    }

    fn put_server(
        &mut self,
        service: &ServiceId,
        present: Option<&RealServer>,
        wanted: &RealServer,
    ) {
        let (id, key) = (service.clone(), wanted.key);
        let mutation = match present {
            None => Mutation::CreateServer {
                service: id,
                key,
                config: wanted.config,
                check: wanted.check.clone(),
            },
            Some(present) => {
                let patch = server_patch(present, wanted);
                if patch == ServerPatch::default() {
                    return;
                }
                let service = id;
                Mutation::UpdateServer {
                    service,
                    key,
                    patch,
                }
            }
        };
        self.steps.push(Step {
            object: Object::server(service, &key),
            mutation,
            expected: present.map_or(Revision::ZERO, |present| present.changed),
            fields: Vec::new(),
        });
    }

    fn remove(&mut self, extra: Extra, object: Object, mutation: Mutation, expected: Revision) {
        match extra {
            Extra::Keep => self.kept.push(object),
            Extra::Remove => self.steps.push(Step {
                object,
                mutation,
                expected,
                fields: Vec::new(),
            }),
        }
    }

    /// Tries every step on a copy, and sees what it does.
    fn rehearse(&mut self, old: &Catalog) -> Result<(), DifferenceError> {
        let mut copy = old.clone();
        for step in &mut self.steps {
            let before = fields::shown(&copy, &step.object);
            copy.apply(&Command::new(Timestamp::default(), step.mutation.clone()))
                .map_err(|rejection| DifferenceError::Rejected {
                    object: step.object.clone(),
                    rejection,
                })?;
            step.fields = fields::changes(before, fields::shown(&copy, &step.object));
        }
        Ok(())
    }
}

impl Step {
    pub fn action(&self) -> Action {
        match self.mutation {
            Mutation::CreateService { .. } | Mutation::CreateServer { .. } => Action::Add,
            Mutation::UpdateService { .. } | Mutation::UpdateServer { .. } => Action::Edit,
            Mutation::DeleteService { .. } | Mutation::DeleteServer { .. } => Action::Remove,
        }
    }

    pub fn stage(&self) -> Stage {
        match self.mutation {
            Mutation::CreateService { .. } | Mutation::UpdateService { .. } => Stage::PutServices,
            Mutation::CreateServer { .. } | Mutation::UpdateServer { .. } => Stage::PutServers,
            Mutation::DeleteServer { .. } => Stage::DeleteServers,
            Mutation::DeleteService { .. } => Stage::DeleteServices,
        }
    }
}

impl Object {
    pub fn service(id: &ServiceId) -> Self {
        Self {
            service: id.clone(),
            server: None,
        }
    }

    pub fn server(service: &ServiceId, key: &RealServerKey) -> Self {
        Self {
            service: service.clone(),
            server: Some(*key),
        }
    }
}

// === patches ===

fn key_patch(
    id: &ServiceId,
    present: &ServiceKey,
    wanted: &ServiceKey,
) -> Result<Option<KeyPatch>, DifferenceError> {
    if present == wanted {
        return Ok(None);
    }
    Ok(Some(match *wanted {
        ServiceKey::Fwmark { mark, family } => KeyPatch::Fwmark {
            mark,
            family: Some(family),
        },
        ServiceKey::Address {
            address,
            port,
            protocol,
        } => {
            // An absent port is the present one, and the port of a former firewall mark is 0.
            let expressible = port != 0 || present.is_portless();
            if !expressible {
                return Err(DifferenceError::EveryPort(id.clone()));
            }
            KeyPatch::Address {
                address: Some(address),
                port: NonZeroU16::new(port),
                protocol: Some(protocol),
            }
        }
    }))
}

fn config_patch(present: &VirtualService, wanted: &VirtualService) -> ServicePatch {
    // A netmask follows a service to another address family, unless the patch says where to.
    let moves = present.key.family() != wanted.key.family();
    let (present, wanted) = (&present.config, &wanted.config);
    let persistence = match wanted.persistence {
        None => PersistencePatch {
            timeout: Some(0),
            ..PersistencePatch::default()
        },
        Some(persistence) => PersistencePatch {
            timeout: Some(persistence.timeout.get()),
            netmask: Some(persistence.netmask),
            engine: Some(persistence.engine),
        },
    };
    ServicePatch {
        key: None,
        scheduler: changed(&present.scheduler, &wanted.scheduler),
        flags: (present.flags != wanted.flags).then(|| wanted.flags.iter().collect()),
        persistence: (moves || present.persistence != wanted.persistence).then_some(persistence),
        one_packet: changed(&present.one_packet, &wanted.one_packet),
    }
}

fn server_patch(present: &RealServer, wanted: &RealServer) -> ServerPatch {
    let (from, to) = (&present.config, &wanted.config);
    let forwarding = match to.forwarding {
        Forwarding::Route => ForwardingPatch::Route,
        Forwarding::Masq => ForwardingPatch::Masq,
        Forwarding::Tunnel(tunnel) => ForwardingPatch::Tunnel(Some(tunnel)),
    };
    ServerPatch {
        weight: changed(&from.weight, &to.weight),
        forwarding: (from.forwarding != to.forwarding).then_some(forwarding),
        upper_threshold: changed(&from.thresholds.upper(), &to.thresholds.upper()),
        lower_threshold: changed(&from.thresholds.lower(), &to.thresholds.lower()),
        check: check_patch(&present.check, &wanted.check),
    }
}

/// Fields of a check that is switched off and that the new catalog leaves open stay as they are:
/// they have no effect, and are there for when the check is switched on again.
fn check_patch(present: &HealthCheck, wanted: &HealthCheck) -> CheckPatch {
    let interval = |from, to: std::time::Duration| changed(from, &to).filter(|to| !to.is_zero());
    let threshold = |from, to| changed(from, &to).and_then(NonZeroU32::new);
    CheckPatch {
        endpoint: changed(&present.endpoint, &wanted.endpoint),
        period: interval(&present.period, wanted.period),
        timeout: interval(&present.timeout, wanted.timeout),
        up_threshold: threshold(&present.up_threshold, wanted.up_threshold),
        down_threshold: threshold(&present.down_threshold, wanted.down_threshold),
    }
}

fn changed<T: PartialEq + Clone>(from: &T, to: &T) -> Option<T> {
    (from != to).then(|| to.clone())
}

// === in words ===

impl Action {
    /// As in a diff.
    pub fn sign(self) -> char {
        match self {
            Self::Add => '+',
            Self::Edit => '~',
            Self::Remove => '-',
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Edit => "edit",
            Self::Remove => "remove",
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            None => write!(f, "service {}", self.service),
            Some(key) => write!(f, "server {} {key}", self.service),
        }
    }
}

/// One line, such as `~ server web 10.1.0.1:80: config.weight 1 -> 2`.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action().sign(), self.object)?;
        for (at, field) in self.fields.iter().enumerate() {
            f.write_str(if at == 0 { ": " } else { ", " })?;
            match self.action() {
                Action::Edit => write!(f, "{field}")?,
                Action::Add | Action::Remove => write!(f, "{} {}", field.name, field.after)?,
            }
        }
        Ok(())
    }
}
