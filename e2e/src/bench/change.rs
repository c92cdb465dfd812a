//! One change of a loaded daemon's catalog, until the kernel has it.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use merlin_ipvs::{Dataplane, Kernel};
use merlin_model::table::{DestinationKey, Key};
use merlin_model::{Catalog, Scheduler};
use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::types::{ForwardMethod, Protocol, RealServer, VirtualService};
use merlin_proto::types::{real_server, virtual_service};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::workload::{PORT, Workload};
use super::{Scale, fresh_namespace, percentile, row};
use crate::poll::eventually;
use crate::programs;

const DIRECTORY: &str = "/run/bench-merlin";
const START: Duration = Duration::from_secs(20);
const LOAD: Duration = Duration::from_secs(90);
const CHANGE: Duration = Duration::from_secs(5);
/// Writes under way at a time while the catalog is loaded.
const WRITERS: usize = 50;

/// A daemon, killed with its owner.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn single(scale: Scale) -> Result<Vec<String>> {
    fresh_namespace()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let log = fs::File::create("/run/bench-merlin.log")?;
    let daemon = Command::new(programs::locate("merlin")?)
        .args(["run", "--node-name", "bench"])
        .args(["--data-dir", &format!("{DIRECTORY}/data")])
        .args(["--run-dir", &format!("{DIRECTORY}/run")])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting merlin")?;
    let _daemon = Daemon(daemon);
    runtime.block_on(measure(scale)).with_context(|| {
        let log = fs::read_to_string("/run/bench-merlin.log").unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(3).collect();
        format!("the daemon's last words: {tail:?}")
    })
}

async fn measure(scale: Scale) -> Result<Vec<String>> {
    let workload = Workload {
        services: scale.services,
        servers: scale.servers,
        scheduler: Scheduler::Rr,
    };
    let deadline = Instant::now() + START;
    let mut client = loop {
        match MerlinClient::connect("http://127.0.0.1:4282").await {
            Ok(client) => break client,
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    tokio::time::timeout(LOAD, load(&client, workload))
        .await
        .context("loading the catalog took too long")??;
    let mut kernel = Kernel::open()?;
    let last = scale.services - 1;
    let catalog = workload.catalog()?;
    let key = key_of(&catalog, last)?;
    eventually(START, || {
        let table = kernel.read(&[key])?;
        let entry = table
            .services
            .get(&key)
            .context("the last service is missing")?;
        ensure!(
            entry.destinations.len() == usize::from(scale.servers),
            "servers are missing"
        );
        Ok(())
    })?;

    let (mut accepted, mut asked, mut rival) = (vec![], vec![], vec![]);
    for n in 0..scale.changes {
        // The first one warms up.
        let service = n * 7 % scale.services;
        let weight = 2 + u32::from(n);
        let key = key_of(&catalog, service)?;
        let start = Instant::now();
        client.update_server(server(service, 0, weight)).await?;
        let answered = Instant::now();
        await_weight(&mut kernel, key, service, weight)?;
        let done = Instant::now();
        if n > 0 {
            accepted.push(done - answered);
            asked.push(done - start);
        }
    }
    for n in 0..scale.changes.min(20) {
        // Another server, so that the daemon's are left alone.
        let (vip, to) = (Workload::service(n), Workload::server(n, 1));
        let start = Instant::now();
        let status = Command::new("ipvsadm")
            .args([
                "-e",
                "-t",
                &format!("{vip}:{PORT}"),
                "-r",
                &format!("{to}:{PORT}"),
            ])
            .args(["-m", "-w", "9"])
            .status()?;
        ensure!(status.success(), "ipvsadm -e: {status}");
        rival.push(start.elapsed());
    }
    let title = format!("change, {} x {} loaded", scale.services, scale.servers);
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
    Ok([
        of("merlin, accepted -> kernel", &accepted),
        of("merlin, asked -> kernel", &asked),
        of("ipvsadm -e, no store, one host", &rival),
    ]
    .concat())
}

fn key_of(catalog: &Catalog, service: u16) -> Result<Key> {
    let id = merlin_model::ServiceId::new(&format!("s{service}"))?;
    let service = catalog.service(&id).context("no such service")?;
    Ok(Key::from(&service.key))
}

fn await_weight(kernel: &mut Kernel, key: Key, service: u16, weight: u32) -> Result<()> {
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

async fn load(client: &MerlinClient<Channel>, workload: Workload) -> Result<()> {
    let mut writers = JoinSet::new();
    for service in 0..workload.services {
        if writers.len() >= WRITERS {
            writers.join_next().await.context("no writer")???;
        }
        let mut client = client.clone();
        writers.spawn(async move {
            client.create_service(declared(service)).await?;
            for n in 0..workload.servers {
                client.create_server(server(service, n, 1)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(written) = writers.join_next().await {
        written??;
    }
    Ok(())
}

fn declared(service: u16) -> VirtualService {
    VirtualService {
        id: format!("s{service}"),
        key: Some(virtual_service::Key {
            ip: Workload::service(service).to_string(),
            port: PORT.into(),
            protocol: Protocol::Tcp.into(),
            ..Default::default()
        }),
        config: Some(virtual_service::Config {
            scheduler: "rr".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn server(service: u16, n: u8, weight: u32) -> RealServer {
    RealServer {
        service_id: format!("s{service}"),
        key: Some(real_server::Key {
            ip: Workload::server(service, n).to_string(),
            port: PORT.into(),
        }),
        config: Some(real_server::Config {
            weight: Some(weight),
            forward: ForwardMethod::Masq.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}
