//! The etcd 3 store against real etcd members, and what can go wrong between them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod away;
mod crowd;
mod records;

use std::net::SocketAddr;
use std::time::Duration;

use merlin_etcd::{EtcdStore, Layout};
use merlin_model::catalog::VirtualService;
use merlin_model::command::ServerPatch;
use merlin_model::store::{Consistency, ProposeError};
use merlin_model::{
    Command, Forwarding, HealthCheck, Mutation, Protocol, RealServerConfig, RealServerKey,
    RequestId, Revision, Scheduler, ServiceConfig, ServiceId, ServiceKey, Timestamp, Weight,
};

use crate::support::{DEADLINE, eventually};

fn id(id: &str) -> ServiceId {
    ServiceId::new(id).unwrap()
}

fn key(at: &str) -> ServiceKey {
    let at: SocketAddr = at.parse().unwrap();
    ServiceKey::Address {
        address: at.ip(),
        port: at.port(),
        protocol: Protocol::Tcp,
    }
}

fn at(at: &str) -> RealServerKey {
    at.parse::<SocketAddr>().unwrap().into()
}

fn command(mutation: Mutation) -> Command {
    Command::new(Timestamp(1), mutation)
}

/// A service of the number, on an address of its own.
fn create(n: u16) -> Command {
    let [high, low] = n.to_be_bytes();
    command(Mutation::CreateService {
        id: id(&format!("s{n}")),
        key: key(&format!("10.0.{high}.{low}:80")),
        config: ServiceConfig::new(Scheduler::Wrr),
    })
}

fn delete(n: u16) -> Command {
    command(Mutation::DeleteService {
        id: id(&format!("s{n}")),
    })
}

fn create_server(n: u16, address: &str) -> Command {
    command(Mutation::CreateServer {
        service: id(&format!("s{n}")),
        key: at(address),
        config: RealServerConfig::new(Weight::new(1).unwrap(), Forwarding::Masq),
        check: HealthCheck::default(),
    })
}

fn set_weight(n: u16, address: &str, weight: u32) -> Command {
    command(Mutation::UpdateServer {
        service: id(&format!("s{n}")),
        key: at(address),
        patch: ServerPatch {
            weight: Some(Weight::new(weight).unwrap()),
            ..ServerPatch::default()
        },
    })
}

fn named(request: &str, command: Command) -> Command {
    Command {
        request_id: Some(RequestId::new(request).unwrap()),
        ..command
    }
}

/// The key and bytes of the record that an old node writes for a service.
fn record(n: u16) -> (String, Vec<u8>) {
    let Mutation::CreateService { id, key, config } = create(n).mutation else {
        unreachable!("it creates a service")
    };
    let service = VirtualService {
        id: id.clone(),
        key,
        config,
        created: Revision::ZERO,
        changed: Revision::ZERO,
        servers: imbl::OrdMap::new(),
    };
    let value = merlin_etcd::records::write_service(&service, None);
    (Layout::default().service(&id), value)
}

fn holds(store: &EtcdStore, n: u16) -> bool {
    store
        .catalog()
        .borrow()
        .service(&id(&format!("s{n}")))
        .is_some()
}

async fn accepted(store: &EtcdStore, command: Command) -> Revision {
    store.propose(command, DEADLINE).await.unwrap().revision
}

/// Retries until the command is decided, as a client would, always with the same request id.
async fn insist(store: &EtcdStore, command: Command) -> Revision {
    assert!(command.request_id.is_some());
    let until = tokio::time::Instant::now() + DEADLINE;
    loop {
        match store.propose(command.clone(), Duration::from_secs(5)).await {
            Ok(reply) => return reply.revision,
            Err(ProposeError::Unavailable { .. } | ProposeError::Unknown { .. })
                if tokio::time::Instant::now() < until =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Both hold the same, and it is what etcd holds.
async fn converged(stores: &[EtcdStore]) {
    let truth = stores[0]
        .read(Consistency::Linearizable, DEADLINE)
        .await
        .unwrap();
    let what = "every node holds what etcd holds";
    eventually(what, || {
        stores.iter().all(|store| {
            let catalog = store.catalog();
            let catalog = catalog.borrow();
            catalog.services().eq(truth.services())
        })
    })
    .await;
}
