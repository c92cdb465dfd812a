//! What several test files need: short ways to build catalogs and a table that obeys plans.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use merlin_model::command::{CheckPatch, KeyPatch, ServerPatch, ServicePatch};
use merlin_model::table::{Entry, Operation, Table};
use merlin_model::{
    Catalog, Command, Forwarding, HealthCheck, HealthView, Mutation, Protocol, RealServerConfig,
    RealServerKey, Scheduler, ServerHealth, ServiceConfig, ServiceId, ServiceKey, Timestamp,
    Verdict, Weight,
};

pub(crate) fn id(id: &str) -> ServiceId {
    ServiceId::new(id).unwrap()
}

pub(crate) fn tcp(at: &str) -> ServiceKey {
    let at: SocketAddr = at.parse().unwrap();
    ServiceKey::Address {
        address: at.ip(),
        port: at.port(),
        protocol: Protocol::Tcp,
    }
}

pub(crate) fn server(at: &str) -> RealServerKey {
    at.parse::<SocketAddr>().unwrap().into()
}

pub(crate) fn checked() -> HealthCheck {
    HealthCheck {
        endpoint: Some("http://:80/health".parse().unwrap()),
        period: Duration::from_secs(5),
        timeout: Duration::from_secs(1),
        up_threshold: 2,
        down_threshold: 1,
    }
}

pub(crate) fn create_service(name: &str, key: ServiceKey, scheduler: Scheduler) -> Mutation {
    Mutation::CreateService {
        id: id(name),
        key,
        config: ServiceConfig::new(scheduler),
    }
}

pub(crate) fn create_server(service: &str, at: &str, weight: u32, check: HealthCheck) -> Mutation {
    Mutation::CreateServer {
        service: id(service),
        key: server(at),
        config: RealServerConfig::new(Weight::new(weight).unwrap(), Forwarding::Route),
        check,
    }
}

pub(crate) fn set_weight(service: &str, at: &str, weight: u32) -> Mutation {
    Mutation::UpdateServer {
        service: id(service),
        key: server(at),
        patch: ServerPatch {
            weight: Some(Weight::new(weight).unwrap()),
            ..ServerPatch::default()
        },
    }
}

pub(crate) fn set_check(service: &str, at: &str, check: HealthCheck) -> Mutation {
    Mutation::UpdateServer {
        service: id(service),
        key: server(at),
        patch: ServerPatch {
            check: CheckPatch {
                endpoint: Some(check.endpoint),
                period: Some(check.period),
                timeout: Some(check.timeout),
                up_threshold: NonZeroU32::new(check.up_threshold),
                down_threshold: NonZeroU32::new(check.down_threshold),
            },
            ..ServerPatch::default()
        },
    }
}

pub(crate) fn move_service(name: &str, key: ServiceKey) -> Mutation {
    let key = match key {
        ServiceKey::Address {
            address,
            port,
            protocol,
        } => KeyPatch::Address {
            address: Some(address),
            port: NonZeroU16::new(port),
            protocol: Some(protocol),
        },
        ServiceKey::Fwmark { mark, family } => KeyPatch::Fwmark {
            mark,
            family: Some(family),
        },
    };
    Mutation::UpdateService {
        id: id(name),
        patch: ServicePatch {
            key: Some(key),
            ..ServicePatch::default()
        },
    }
}

pub(crate) fn set_scheduler(name: &str, scheduler: Scheduler) -> Mutation {
    Mutation::UpdateService {
        id: id(name),
        patch: ServicePatch {
            scheduler: Some(scheduler),
            ..ServicePatch::default()
        },
    }
}

pub(crate) fn delete_service(name: &str) -> Mutation {
    Mutation::DeleteService { id: id(name) }
}

pub(crate) fn delete_server(service: &str, at: &str) -> Mutation {
    Mutation::DeleteServer {
        service: id(service),
        key: server(at),
    }
}

/// A catalog after mutations that it has to accept.
pub(crate) fn catalog(mutations: impl IntoIterator<Item = Mutation>) -> Catalog {
    let mut catalog = Catalog::default();
    change(&mut catalog, mutations);
    catalog
}

pub(crate) fn change(catalog: &mut Catalog, mutations: impl IntoIterator<Item = Mutation>) {
    for mutation in mutations {
        catalog
            .apply(&Command::new(Timestamp(0), mutation))
            .unwrap();
    }
}

pub(crate) fn judge(view: &mut HealthView, service: &str, at: &str, verdict: Verdict) {
    let health = ServerHealth {
        verdict,
        last_failure: None,
    };
    view.set(id(service), server(at), health);
}

/// Carries out one operation the way the kernel would, or says what the kernel would refuse.
pub(crate) fn carry_out(table: &mut Table, operation: &Operation) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("{operation}: {why}"));
    let services = &mut table.services;
    match operation {
        Operation::AddService(key, service) => {
            let entry = Entry {
                service: service.clone(),
                destinations: BTreeMap::new(),
            };
            match services.insert(*key, entry) {
                Some(_) => refuse("exists"),
                None => Ok(()),
            }
        }
        Operation::EditService(key, service) => match services.get_mut(key) {
            Some(entry) => {
                entry.service = service.clone();
                Ok(())
            }
            None => refuse("no such service"),
        },
        Operation::DeleteService(key) => match services.remove(key) {
            Some(_) => Ok(()),
            None => refuse("no such service"),
        },
        Operation::AddDestination(key, at, destination)
        | Operation::EditDestination(key, at, destination) => {
            let Some(entry) = services.get_mut(key) else {
                return refuse("no such service");
            };
            let adds = matches!(operation, Operation::AddDestination(..));
            match (adds, entry.destinations.insert(*at, *destination)) {
                (true, Some(_)) => refuse("exists"),
                (false, None) => refuse("no such destination"),
                _ => Ok(()),
            }
        }
        Operation::DeleteDestination(key, at) => {
            let gone = services
                .get_mut(key)
                .and_then(|entry| entry.destinations.remove(at));
            match gone {
                Some(_) => Ok(()),
                None => refuse("no such destination"),
            }
        }
    }
}
