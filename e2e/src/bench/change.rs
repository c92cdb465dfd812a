//! One change of a large catalog, until the kernels of three nodes have it.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use merlin_ipvs::{Dataplane, Kernel};
use merlin_model::Catalog;
use merlin_model::Scheduler;
use merlin_model::table::{DestinationKey, Key};
use merlin_proto::types::merlin_client::MerlinClient;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use super::workload::{PORT, Workload, load, server};
use super::{percentile, row};
use crate::lab::{Lab, Shape};
use crate::merlin::Merlin;
use crate::poll::eventually;

const SHAPE: Shape = Shape {
    balancers: 3,
    servers: 0,
};
/// For a catalog to be loaded, and for nodes to have it.
const LOAD: Duration = Duration::from_secs(240);
const CHANGE: Duration = Duration::from_secs(20);

/// How large the catalog is, and how often it changes.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub services: u16,
    pub servers: u8,
    pub changes: u16,
    /// What the nodes are told about checking the whole table.
    pub sync_period: &'static str,
}

/// The second is checked as often as nobody would, so that most changes meet a check.
pub const FULL: [Scale; 3] = [
    Scale {
        services: 1_000,
        servers: 10,
        changes: 103,
        sync_period: "1m",
    },
    Scale {
        services: 10_000,
        servers: 5,
        changes: 103,
        sync_period: "1m",
    },
    Scale {
        services: 10_000,
        servers: 5,
        changes: 203,
        sync_period: "2s",
    },
];
/// Enough to see that everything runs.
pub const QUICK: [Scale; 1] = [Scale {
    services: 20,
    servers: 3,
    changes: 8,
    sync_period: "1m",
}];

/// Loads three nodes, and changes one weight at a time, through one node after the other.
pub fn three_nodes(scale: Scale) -> Result<Vec<String>> {
    let lab = Lab::new(SHAPE)?;
    let measured = measure(&lab, scale);
    measured.with_context(|| lab.logs())
}

fn measure(lab: &Lab, scale: Scale) -> Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let workload = Workload {
        services: scale.services,
        servers: scale.servers,
        scheduler: Scheduler::Rr,
    };
    let catalog = workload.catalog()?;
    let [first, others @ ..] = &lab.balancers[..] else {
        anyhow::bail!("no balancers")
    };
    let flags = format!("--reconcile-sync-period {}", scale.sync_period);
    let first = Merlin::start_new(lab, first, &flags)?;
    let client = client(&runtime, &first)?;
    let loading = Instant::now();
    runtime.block_on(async {
        let loaded = tokio::time::timeout(LOAD, load(&client, workload, 0)).await;
        loaded.context("loading the catalog took too long")?
    })?;
    let loaded = loading.elapsed();
    let others = first.join_by(others)?;
    let nodes: Vec<_> = [first].into_iter().chain(others).collect();
    nodes[0].await_voters(nodes.len())?;
    let mut kernels = Vec::new();
    let mut clients = Vec::new();
    for node in &nodes {
        let mut kernel = node.host().namespace.enter(|| Ok(Kernel::open()?))?;
        await_complete(&mut kernel, workload)?;
        kernels.push(kernel);
        clients.push(self::client(&runtime, node)?);
    }

    let (mut accepted, mut asked) = (vec![], vec![]);
    for n in 0..scale.changes {
        let service = n * 7 % scale.services;
        let weight = 2 + u32::from(n);
        let key = key_of(&catalog, service)?;
        let client = &mut clients[usize::from(n) % nodes.len()];
        let start = Instant::now();
        runtime.block_on(client.update_server(server(service, 0, weight)))?;
        let answered = Instant::now();
        for kernel in &mut kernels {
            await_weight(kernel, key, service, weight)?;
        }
        // The first one through each node warms up.
        if usize::from(n) >= nodes.len() {
            accepted.push(answered.elapsed());
            asked.push(start.elapsed());
        }
    }
    let rival = nodes[0].host().namespace.enter(|| rival(scale))?;
    let title = format!(
        "change, {} x {}, checks every {}",
        scale.services, scale.servers, scale.sync_period
    );
    let of = |name: &str, times: &[Duration]| {
        [50, 99].map(|percent| {
            row(
                &title,
                name,
                percentile(times, percent),
                &format!("p{percent}"),
            )
        })
    };
    let mut lines = vec![row(&title, "loaded through the API in", loaded, "")];
    lines.extend(of("accepted -> in three kernels", &accepted));
    lines.extend(of("asked -> in three kernels", &asked));
    lines.extend(of("ipvsadm -e, no store, one kernel", &rival));
    Ok(lines)
}

fn client(runtime: &Runtime, node: &Merlin<'_>) -> Result<MerlinClient<Channel>> {
    let socket = format!("unix://{}", node.socket().display());
    let channel = runtime.block_on(Endpoint::from_shared(socket)?.connect())?;
    Ok(MerlinClient::new(channel))
}

/// Asks the kernel, not `/proc/net/ip_vs`: where several namespaces have services, that list leaves
/// some out, since it counts those of the others whenever it goes on.
pub(super) fn await_complete(kernel: &mut Kernel, workload: Workload) -> Result<()> {
    let wanted = usize::from(workload.services) + workload.rules();
    eventually(LOAD, || {
        let table = kernel.dump()?;
        let rules = |entry: &merlin_model::table::Entry| 1 + entry.destinations.len();
        let found: usize = table.services.values().map(rules).sum();
        ensure!(found == wanted, "{found} of {wanted} rules");
        Ok(())
    })
}

/// Without a store: a program that edits one server of another service each time.
fn rival(scale: Scale) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for n in 0..scale.changes.min(20) {
        let (vip, to) = (Workload::service(n), Workload::server(n, 1));
        let start = Instant::now();
        let status = Command::new("ipvsadm")
            .args(["-e", "-t", &format!("{vip}:{PORT}")])
            .args(["-r", &format!("{to}:{PORT}"), "-m", "-w", "9"])
            .status()?;
        ensure!(status.success(), "ipvsadm -e: {status}");
        times.push(start.elapsed());
    }
    Ok(times)
}

pub(super) fn key_of(catalog: &Catalog, service: u16) -> Result<Key> {
    let id = merlin_model::ServiceId::new(&format!("s{service}"))?;
    let service = catalog.service(&id).context("no such service")?;
    Ok(Key::from(&service.key))
}

pub(super) fn await_weight(kernel: &mut Kernel, key: Key, service: u16, weight: u32) -> Result<()> {
    let at = DestinationKey::new(Workload::server(service, 0), PORT);
    let deadline = Instant::now() + CHANGE;
    loop {
        let table = kernel.read(&[key])?;
        let entry = table.services.get(&key);
        let destination = entry.and_then(|entry| entry.destinations.get(&at));
        if destination.is_some_and(|destination| destination.weight == weight) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "a change did not arrive within {CHANGE:?}"
        );
        std::thread::sleep(Duration::from_micros(200));
    }
}
