//! A catalog that is kept in etcd: how soon three kernels have what anybody writes there, what the
//! nodes ask of etcd for it, and how long a node takes to begin.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use merlin_ipvs::Kernel;
use merlin_model::Scheduler;
use prost::Message;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use super::change::{await_complete, await_weight, key_of};
use super::stores::{PutRequest, put, put_together};
use super::workload::{Workload, declared, server};
use super::{percentile, row};
use crate::etcd::Etcd;
use crate::lab::{Host, Lab, Shape};
use crate::merlin::Merlin;

const SHAPE: Shape = Shape {
    balancers: 3,
    servers: 0,
};

/// Keys in one transaction: etcd takes 128 of them.
const TOGETHER: usize = 100;

/// How large the catalog is, and how often it changes.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub services: u16,
    pub servers: u8,
    pub changes: u16,
    /// For how long the nodes are watched while nothing happens.
    pub idle: Duration,
}

pub const FULL: [Scale; 2] = [
    Scale {
        services: 10,
        servers: 5,
        changes: 103,
        idle: Duration::from_secs(60),
    },
    Scale {
        services: 10_000,
        servers: 5,
        changes: 103,
        idle: Duration::from_secs(60),
    },
];
/// Enough to see that everything runs.
pub const QUICK: [Scale; 1] = [Scale {
    services: 20,
    servers: 3,
    changes: 8,
    idle: Duration::from_secs(2),
}];

/// Three nodes and three members, and somebody who writes to etcd as the earlier system did.
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
    let etcd = Etcd::start(lab, &lab.balancers)?;
    let writer = connect(&runtime, &etcd, &lab.balancers[0], 0)?;
    fill(&runtime, &writer, scale)?;

    let flags = format!("-store-endpoints {} -store-backend etcd3", etcd.endpoints());
    let mut kernels = Vec::new();
    let mut starts = Vec::new();
    let mut nodes = Vec::new();
    for host in &lab.balancers {
        let mut kernel = host.namespace.enter(|| Ok(Kernel::open()?))?;
        let mut node = Merlin::new(lab, host, &flags)?;
        let start = Instant::now();
        node.launch()?;
        await_complete(&mut kernel, workload)?;
        starts.push(start.elapsed());
        kernels.push(kernel);
        nodes.push(node);
    }
    for node in &mut nodes {
        node.await_ready()?;
    }

    let before = asked_of(&etcd)?;
    let (mut written, mut begun) = (vec![], vec![]);
    for n in 0..scale.changes {
        let service = n * 7 % scale.services;
        let weight = 2 + u32::from(n);
        let key = key_of(&catalog, service)?;
        let start = Instant::now();
        runtime.block_on(put(&writer, record(service, 0, weight)))?;
        let answered = Instant::now();
        for kernel in &mut kernels {
            await_weight(kernel, key, service, weight)?;
        }
        written.push(answered.elapsed());
        begun.push(start.elapsed());
    }
    let after = asked_of(&etcd)?;
    let per_change =
        (after - before - f64::from(scale.changes)) / f64::from(scale.changes) / nodes.len() as f64;
    // A minute is what is asked for, and a rate would hide what comes once in a while.
    std::thread::sleep(scale.idle);
    let minutes = scale.idle.as_secs_f64() / 60.0;
    let per_minute = (asked_of(&etcd)? - after) / minutes / nodes.len() as f64;

    let title = format!("etcd, {} x {}", scale.services, scale.servers);
    let mut lines = vec![];
    for (name, times) in [
        ("written -> in three kernels", &written),
        ("asked -> in three kernels", &begun),
    ] {
        for percent in [50, 99] {
            let note = format!("p{percent}");
            lines.push(row(&title, name, percentile(times, percent), &note));
        }
    }
    let start = percentile(&starts, 50);
    lines.push(row(&title, "a node's start -> in its kernel", start, "p50"));
    for (name, requests) in [
        ("requests per change and node", per_change),
        ("requests per idle minute and node", per_minute),
    ] {
        lines.push(format!("{title:34} {name:34} {requests:>7.2}"));
    }
    Ok(lines)
}

fn connect(runtime: &Runtime, etcd: &Etcd<'_>, host: &Host, member: usize) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(etcd.url(member))?;
    // A socket stays where it was made.
    host.namespace
        .enter(|| Ok(runtime.block_on(endpoint.connect())?))
}

/// Writes the whole catalog, services before their servers.
fn fill(runtime: &Runtime, writer: &Channel, scale: Scale) -> Result<()> {
    let services = (0..scale.services).map(|service| {
        let declared = declared(service);
        PutRequest {
            key: format!("/merlin/services/{}", declared.id).into(),
            value: declared.encode_to_vec(),
        }
    });
    let servers = (0..scale.services)
        .flat_map(|service| (0..scale.servers).map(move |n| record(service, n, 1)));
    let records: Vec<_> = services.chain(servers).collect();
    for some in records.chunks(TOGETHER) {
        runtime.block_on(put_together(writer, some.to_vec()))?;
    }
    Ok(())
}

fn record(service: u16, n: u8, weight: u32) -> PutRequest {
    PutRequest::of(&server(service, n, weight))
}

/// How many messages the members have been sent by clients so far, by etcd's own count: requests,
/// and what is said on streams that are open. Watching etcd is none of its clients' business.
fn asked_of(etcd: &Etcd<'_>) -> Result<f64> {
    let mut asked = 0.0;
    for page in etcd.metrics()? {
        let counts = page
            .lines()
            .filter(|line| line.starts_with("grpc_server_msg_received_total"));
        let mut seen = false;
        for count in counts {
            let (_, count) = count.rsplit_once(' ').context("a sample without a value")?;
            asked += count.parse::<f64>()?;
            seen = true;
        }
        ensure!(seen, "etcd does not count messages");
    }
    Ok(asked)
}
