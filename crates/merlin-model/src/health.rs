//! What one node has observed about the real servers it checks.

use std::sync::Arc;

use imbl::OrdMap;

use crate::server::RealServerKey;
use crate::service::ServiceId;

/// What consecutive probes have shown. `Unknown` is not `Down`: it decides nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    #[default]
    Unknown,
    Up,
    Down,
}

/// The verdict on one real server and why the last failed probe failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerHealth {
    pub verdict: Verdict,
    /// Reason of the most recent failure, kept after a recovery.
    pub last_failure: Option<Arc<str>>,
}

/// Health of every checked real server of every service. Cheap to clone and to compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthView {
    servers: OrdMap<(ServiceId, RealServerKey), ServerHealth>,
}

impl HealthView {
    pub fn get(&self, service: &ServiceId, server: &RealServerKey) -> Option<&ServerHealth> {
        self.servers.get(&(service.clone(), *server))
    }

    /// `Unknown` where there is no check or no verdict yet.
    pub fn verdict(&self, service: &ServiceId, server: &RealServerKey) -> Verdict {
        self.get(service, server)
            .map_or(Verdict::Unknown, |health| health.verdict)
    }

    pub fn set(&mut self, service: ServiceId, server: RealServerKey, health: ServerHealth) {
        self.servers.insert((service, server), health);
    }

    pub fn remove(&mut self, service: &ServiceId, server: &RealServerKey) {
        self.servers.remove(&(service.clone(), *server));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ServiceId, &RealServerKey, &ServerHealth)> {
        self.servers
            .iter()
            .map(|((service, server), health)| (service, server, health))
    }

    /// Services whose health differs between the two views; costs what differs, not what is held.
    pub fn changed_services(&self, earlier: &Self) -> std::collections::BTreeSet<ServiceId> {
        use imbl::ordmap::DiffItem;
        earlier
            .servers
            .diff(&self.servers)
            .map(|item| match item {
                DiffItem::Add((service, _), _)
                | DiffItem::Remove((service, _), _)
                | DiffItem::Update {
                    new: ((service, _), _),
                    ..
                } => service.clone(),
            })
            .collect()
    }
}
