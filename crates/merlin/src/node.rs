//! This node, as the API, the HTTP pages and the metrics see it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use merlin_etcd::{Problem, Removal};
use merlin_ipvs::Handle;
use merlin_model::table::{Counters, DestinationKey, Key, LiveDestination, LiveService};
use merlin_model::{Catalog, HealthView, ServerHealth, ServiceId, Verdict, VirtualService};
use merlin_proto::{types, v1};
use merlin_reconcile::Status;
use tokio::sync::watch;

use crate::rejoin::Applicant;
use crate::store::Store;

/// Handles to everything that knows something about this node. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Node(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) name: String,
    /// Where clients on other hosts are answered by TLS.
    pub(crate) api: Option<SocketAddr>,
    pub(crate) started: Instant,
    pub(crate) store: Store,
    /// Absent when the node serves the API only.
    pub(crate) dataplane: Option<Dataplane>,
    pub(crate) health: watch::Receiver<HealthView>,
    pub(crate) probes: Arc<merlin_health::Metrics>,
    pub(crate) applicant: Applicant,
}

/// The table this node programs, and how that goes.
#[derive(Debug)]
pub(crate) struct Dataplane {
    /// `ipvs` or `memory`.
    pub(crate) kind: &'static str,
    pub(crate) table: Handle,
    pub(crate) status: watch::Receiver<Status>,
}

impl Node {
    pub(crate) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    /// This node as it asks a cluster in; none when it is about to begin anew.
    pub(crate) fn applicant(&self) -> Option<&Applicant> {
        Some(&self.0.applicant).filter(|applicant| !applicant.is_leaving())
    }

    /// What is free of the file system with the data directory, in percent.
    pub(crate) fn disk_free(&self) -> Option<u32> {
        self.0.applicant.disk_free()
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.0.store.catalog().borrow())
    }

    pub(crate) fn health(&self) -> HealthView {
        self.0.health.borrow().clone()
    }

    pub(crate) fn probes(&self) -> merlin_health::metrics::Counts {
        self.0.probes.read()
    }

    pub(crate) fn started(&self) -> Instant {
        self.0.started
    }

    pub(crate) fn reconciler_status(&self) -> Option<watch::Receiver<Status>> {
        Some(self.0.dataplane.as_ref()?.status.clone())
    }

    pub(crate) fn reconciler(&self) -> Option<Status> {
        let dataplane = self.0.dataplane.as_ref()?;
        Some(dataplane.status.borrow().clone())
    }

    /// Which history this node's revisions belong to.
    pub(crate) fn incarnation(&self) -> String {
        self.0.store.incarnation()
    }

    /// What is wrong with the node as a whole.
    pub(crate) fn problems(&self) -> Vec<String> {
        let store = self.0.store.status();
        let unavailable = store
            .unavailable
            .map(|reason| format!("store: {reason}; the kernel keeps its rules"));
        let dataplane = self.reconciler().and_then(|status| status.dataplane_error);
        let dataplane = dataplane.map(|reason| format!("data plane: {reason}"));
        unavailable.into_iter().chain(dataplane).collect()
    }

    /// What keeps the node from being ready.
    pub(crate) fn unready(&self) -> Vec<String> {
        let pending = self
            .reconciler()
            .is_some_and(|status| !status.first_pass_done);
        let pending = pending.then(|| "data plane: the first reconcile is not done".to_owned());
        self.problems().into_iter().chain(pending).collect()
    }

    pub(crate) fn status(&self) -> v1::NodeStatus {
        let store = self.0.store.status();
        let reconciler = self.reconciler();
        let (mut up, mut down, mut unknown) = (0, 0, 0);
        for (_, _, health) in self.health().iter() {
            match health.verdict {
                Verdict::Up => up += 1,
                Verdict::Down => down += 1,
                Verdict::Unknown => unknown += 1,
            }
        }
        let mut status = v1::NodeStatus {
            name: self.0.name.clone(),
            id: self.0.store.node_id(),
            error: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: prost_types::Duration::try_from(self.0.started.elapsed()).ok(),
            store: Some(v1::node_status::Store {
                backend: store.backend.to_owned(),
                available: store.unavailable.is_none(),
                error: store.unavailable.unwrap_or_default(),
                role: store.role.to_owned(),
                leader: store.leader,
                cluster_id: store.cluster,
                lag: store
                    .lag
                    .filter(|lag| !lag.is_zero())
                    .and_then(|lag| lag.try_into().ok()),
                passed_over: store.passed_over.into_iter().map(passed_over).collect(),
                held_removal: store.held.map(held_removal),
            }),
            catalog_revision: self.catalog().revision().0,
            health: Some(v1::node_status::Health { up, down, unknown }),
            dataplane: "none".to_owned(),
            api_addr: self.0.api.map(|addr| addr.to_string()).unwrap_or_default(),
            ..Default::default()
        };
        if let (Some(dataplane), Some(reconciler)) = (&self.0.dataplane, reconciler) {
            status.dataplane = dataplane.kind.to_owned();
            status.reconciling = true;
            status.programmed_revision = reconciler.programmed.0;
            status.dataplane_error = reconciler.dataplane_error.unwrap_or_default();
            status.drift = Some(v1::node_status::Drift {
                repaired: reconciler.counts.drift_repaired,
                foreign_services: reconciler.foreign.len() as u64,
            });
            status.failures = reconciler
                .failures
                .values()
                .map(|failure| v1::node_status::Failure {
                    service_id: failure
                        .service
                        .as_ref()
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                    operation: failure.operation.to_string(),
                    reason: failure.reason.clone(),
                })
                .collect();
        }
        status
    }

    /// What the table holds and does right now.
    pub(crate) async fn live(&self, request: &v1::LiveRequest) -> v1::NodeTable {
        let mut answer = v1::NodeTable {
            name: self.0.name.clone(),
            id: self.0.store.node_id(),
            ..Default::default()
        };
        let Some(dataplane) = &self.0.dataplane else {
            answer.error = "this node programs no data plane (--reconcile=false)".to_owned();
            return answer;
        };
        let table = match dataplane.table.live().await {
            Ok(table) => table,
            Err(error) => {
                answer.error = error.to_string();
                return answer;
            }
        };
        let catalog = self.catalog();
        let declared: HashMap<Key, &Arc<VirtualService>> = catalog
            .services()
            .map(|service| (Key::from(&service.key), service))
            .collect();
        let health = self.health();
        let wanted = |id: &str| request.service_id.is_empty() || request.service_id == id;
        answer.services = table
            .iter()
            .map(|(key, live)| live_service(key, live, declared.get(key).copied(), &health))
            .filter(|service| wanted(&service.service_id))
            .collect();
        answer
    }
}

pub(crate) fn held_removal(removal: Removal) -> v1::HeldRemoval {
    v1::HeldRemoval {
        revision: removal.revision.0,
        services: removal.services as u64,
        of: removal.of as u64,
    }
}

fn passed_over(problem: Problem) -> v1::node_status::PassedOver {
    v1::node_status::PassedOver {
        key: problem.key,
        reason: problem.reason,
    }
}

fn live_service(
    key: &Key,
    live: &LiveService,
    declared: Option<&Arc<VirtualService>>,
    health: &HealthView,
) -> v1::LiveService {
    let health_of = |at: &DestinationKey| {
        let service = declared?;
        let checked = service.servers.get(at)?.check.spec().is_some();
        checked.then(|| health.get(&service.id, at).cloned().unwrap_or_default())
    };
    v1::LiveService {
        service_id: declared
            .map(|service| service.id.to_string())
            .unwrap_or_default(),
        key: Some(wire_key(key)),
        scheduler: live.service.scheduler.clone(),
        counters: Some(counters(&live.counters)),
        servers: live
            .destinations
            .iter()
            .map(|(at, destination)| live_server(at, destination, health_of(at)))
            .collect(),
    }
}

fn live_server(
    at: &DestinationKey,
    live: &LiveDestination,
    health: Option<ServerHealth>,
) -> v1::LiveServer {
    let verdict = match health.as_ref().map(|health| health.verdict) {
        None => v1::HealthVerdict::Unchecked,
        Some(Verdict::Unknown) => v1::HealthVerdict::Unknown,
        Some(Verdict::Up) => v1::HealthVerdict::Up,
        Some(Verdict::Down) => v1::HealthVerdict::Down,
    };
    v1::LiveServer {
        key: Some(types::real_server::Key {
            ip: at.address.to_string(),
            port: at.port.into(),
        }),
        weight: live.destination.weight,
        active_connections: live.active_connections,
        inactive_connections: live.inactive_connections,
        counters: Some(counters(&live.counters)),
        health: verdict.into(),
        last_failure: health
            .and_then(|health| health.last_failure)
            .map(|reason| reason.to_string())
            .unwrap_or_default(),
    }
}

fn wire_key(key: &Key) -> types::virtual_service::Key {
    use merlin_model::{Family, Protocol};
    let mut wire = types::virtual_service::Key::default();
    match *key {
        Key::Address {
            protocol,
            address,
            port,
        } => {
            wire.ip = address.to_string();
            wire.port = port.into();
            // A foreign service may be of a protocol the API has no name for: it stays unset.
            for (known, name) in [
                (Protocol::Tcp, types::Protocol::Tcp),
                (Protocol::Udp, types::Protocol::Udp),
                (Protocol::Sctp, types::Protocol::Sctp),
            ] {
                if known.number() == protocol {
                    wire.set_protocol(name);
                }
            }
        }
        Key::Fwmark { family, mark } => {
            wire.fwmark = mark;
            wire.set_family(match family {
                Family::Ipv4 => types::AddressFamily::Ipv4,
                Family::Ipv6 => types::AddressFamily::Ipv6,
            });
        }
    }
    wire
}

fn counters(counters: &Counters) -> v1::Counters {
    v1::Counters {
        connections: counters.connections,
        packets_in: counters.packets_in,
        packets_out: counters.packets_out,
        bytes_in: counters.bytes_in,
        bytes_out: counters.bytes_out,
    }
}

/// Verdict counts of one service, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Verdicts {
    pub(crate) up: u64,
    pub(crate) down: u64,
    pub(crate) unknown: u64,
}

/// Counts verdicts by service.
pub(crate) fn verdicts(health: &HealthView) -> HashMap<ServiceId, Verdicts> {
    let mut counts: HashMap<ServiceId, Verdicts> = HashMap::new();
    for (service, _, health) in health.iter() {
        let verdicts = counts.entry(service.clone()).or_default();
        match health.verdict {
            Verdict::Up => verdicts.up += 1,
            Verdict::Down => verdicts.down += 1,
            Verdict::Unknown => verdicts.unknown += 1,
        }
    }
    counts
}
