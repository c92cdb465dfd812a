//! Catalogs for tests: built by the same commands that build real ones.

#![allow(
    dead_code,
    reason = "not everybody who includes this module needs all of it"
)]

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use merlin_model::command::{CheckPatch, ServerPatch};
use merlin_model::{
    Catalog, Command, Family, Forwarding, HealthCheck, Mutation, RealServerConfig, RealServerKey,
    Scheduler, ServiceConfig, ServiceId, ServiceKey, Timestamp, Tunnel, Weight,
};

/// A catalog and the changes that health cares about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declarations(pub(crate) Catalog);

impl Declarations {
    /// Declares a real server and, if need be, its service; or edits its check.
    pub(crate) fn declare(&mut self, service: &str, server: SocketAddr, check: HealthCheck) {
        let (id, key) = (id(service), RealServerKey::from(server));
        if self.0.service(&id).is_none() {
            let mark = u32::try_from(self.0.revision().next().0).unwrap();
            self.apply(Mutation::CreateService {
                id: id.clone(),
                key: ServiceKey::Fwmark {
                    mark: NonZeroU32::new(mark).unwrap(),
                    family: Family::Ipv4,
                },
                config: ServiceConfig::new(Scheduler::Rr),
            });
        }
        let exists = self
            .0
            .service(&id)
            .is_some_and(|service| service.servers.contains_key(&key));
        self.apply(if exists {
            let patch = CheckPatch {
                endpoint: Some(check.endpoint),
                period: Some(check.period),
                timeout: Some(check.timeout),
                up_threshold: NonZeroU32::new(check.up_threshold),
                down_threshold: NonZeroU32::new(check.down_threshold),
            };
            update(id, key, |server| server.check = patch)
        } else {
            // A tunnel suits servers of either family.
            let config = RealServerConfig::new(
                Weight::new(1).unwrap(),
                Forwarding::Tunnel(Tunnel::default()),
            );
            Mutation::CreateServer {
                service: id,
                key,
                config,
                check,
            }
        });
    }

    pub(crate) fn switch_off(&mut self, service: &str, server: SocketAddr) {
        self.apply(update(id(service), server.into(), |server| {
            server.check.endpoint = Some(None);
        }));
    }

    pub(crate) fn weigh(&mut self, service: &str, server: SocketAddr, weight: u32) {
        self.apply(update(id(service), server.into(), |server| {
            server.weight = Some(Weight::new(weight).unwrap());
        }));
    }

    pub(crate) fn remove_server(&mut self, service: &str, server: SocketAddr) {
        self.apply(Mutation::DeleteServer {
            service: id(service),
            key: server.into(),
        });
    }

    pub(crate) fn remove_service(&mut self, service: &str) {
        self.apply(Mutation::DeleteService { id: id(service) });
    }

    fn apply(&mut self, mutation: Mutation) {
        self.0
            .apply(&Command::new(Timestamp(0), mutation))
            .expect("a test's declaration is valid");
    }
}

pub(crate) fn id(service: &str) -> ServiceId {
    ServiceId::new(service).unwrap()
}

pub(crate) fn check(
    endpoint: &str,
    period: Duration,
    timeout: Duration,
    (up_threshold, down_threshold): (u32, u32),
) -> HealthCheck {
    HealthCheck {
        endpoint: Some(endpoint.parse().unwrap()),
        period,
        timeout,
        up_threshold,
        down_threshold,
    }
}

fn update(service: ServiceId, key: RealServerKey, edit: impl FnOnce(&mut ServerPatch)) -> Mutation {
    let mut patch = ServerPatch::default();
    edit(&mut patch);
    Mutation::UpdateServer {
        service,
        key,
        patch,
    }
}
