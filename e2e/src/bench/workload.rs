//! One set of rules, in the form each contender takes.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use merlin_model::{
    Catalog, Command, Forwarding, HealthCheck, Mutation, Protocol, RealServerConfig, RealServerKey,
    Scheduler, ServiceConfig, ServiceId, ServiceKey, Timestamp, Weight,
};
use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::types::{self, ForwardMethod, RealServer, VirtualService};
use merlin_proto::types::{real_server, virtual_service};
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// So many services, each with so many real servers of its own.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    pub services: u16,
    pub servers: u8,
    pub scheduler: Scheduler,
}

/// Writes under way at a time while a catalog is loaded.
const WRITERS: usize = 64;

/// Where every service and server listens.
pub const PORT: u16 = 80;

impl Workload {
    #[must_use]
    pub fn rules(&self) -> usize {
        usize::from(self.services) * usize::from(self.servers)
    }

    #[must_use]
    pub fn service(n: u16) -> IpAddr {
        let [high, low] = n.to_be_bytes();
        Ipv4Addr::new(10, 64, high, low).into()
    }

    #[must_use]
    pub fn server(service: u16, n: u8) -> IpAddr {
        let [high, low] = service.to_be_bytes();
        Ipv4Addr::new(10, 128 + high, low, n + 1).into()
    }

    pub fn catalog(&self) -> Result<Catalog> {
        let mut catalog = Catalog::default();
        let mut declare = |mutation| catalog.apply(&Command::new(Timestamp(0), mutation));
        for service in 0..self.services {
            let id = ServiceId::new(&format!("s{service}"))?;
            declare(Mutation::CreateService {
                id: id.clone(),
                key: ServiceKey::Address {
                    address: Self::service(service),
                    port: PORT,
                    protocol: Protocol::Tcp,
                },
                config: ServiceConfig::new(self.scheduler),
            })?;
            for server in 0..self.servers {
                declare(Mutation::CreateServer {
                    service: id.clone(),
                    key: RealServerKey::new(Self::server(service, server), PORT),
                    config: RealServerConfig::new(Weight::new(1)?, Forwarding::Masq),
                    check: HealthCheck::default(),
                })?;
            }
        }
        Ok(catalog)
    }

    /// As `ipvsadm --save -n` would have written them.
    pub fn restore(&self) -> Result<String> {
        let mut rules = String::new();
        let scheduler = self.scheduler.name();
        for service in 0..self.services {
            let vip = Self::service(service);
            writeln!(rules, "-A -t {vip}:{PORT} -s {scheduler}")?;
            for server in 0..self.servers {
                let server = Self::server(service, server);
                writeln!(rules, "-a -t {vip}:{PORT} -r {server}:{PORT} -m -w 1")?;
            }
        }
        Ok(rules)
    }

    /// As keepalived's configuration, without checks: it programs such servers at once.
    pub fn keepalived(&self) -> Result<String> {
        let mut config = String::new();
        let scheduler = self.scheduler.name();
        for service in 0..self.services {
            let vip = Self::service(service);
            writeln!(config, "virtual_server {vip} {PORT} {{")?;
            writeln!(
                config,
                "  lvs_sched {scheduler}\n  lvs_method NAT\n  protocol TCP"
            )?;
            for server in 0..self.servers {
                let server = Self::server(service, server);
                writeln!(
                    config,
                    "  real_server {server} {PORT} {{ \n    weight 1\n  }}"
                )?;
            }
            writeln!(config, "}}")?;
        }
        Ok(config)
    }
}

/// Declares all of it through the API, from service number `first` on.
pub async fn load(client: &MerlinClient<Channel>, workload: Workload, first: u16) -> Result<()> {
    let mut writers = JoinSet::new();
    for service in first..workload.services {
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

/// A service as the API takes it.
#[must_use]
pub fn declared(service: u16) -> VirtualService {
    VirtualService {
        id: format!("s{service}"),
        key: Some(virtual_service::Key {
            ip: Workload::service(service).to_string(),
            port: PORT.into(),
            protocol: types::Protocol::Tcp.into(),
            ..Default::default()
        }),
        config: Some(virtual_service::Config {
            scheduler: "rr".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// One of its real servers.
#[must_use]
pub fn server(service: u16, n: u8, weight: u32) -> RealServer {
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
