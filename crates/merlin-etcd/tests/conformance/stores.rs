//! The stores, each with a few nodes on the same catalog.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use merlin_etcd::{Backend, EtcdStore};
use merlin_model::store::{Consistency, ProposeError, ReadError};
use merlin_model::{Catalog, Command, EventRing, Reply};
use merlin_raft::RaftStore;
use tokio::sync::watch;

use crate::support::{DEADLINE, Etcd, Options, address};

/// One node's store.
#[derive(Clone, Debug)]
pub(crate) enum Store {
    Raft(RaftStore),
    Etcd(EtcdStore),
}

/// Nodes on one catalog, and what they need to live.
pub(crate) struct Fixture {
    pub(crate) nodes: Vec<Store>,
    _keeps: Box<dyn Any>,
}

/// Enough to get into each other's way.
const NODES: usize = 5;

impl Store {
    pub(crate) async fn propose(&self, command: Command) -> Result<Reply, ProposeError> {
        match self {
            Self::Raft(store) => store.propose(command, DEADLINE).await,
            Self::Etcd(store) => store.propose(command, DEADLINE).await,
        }
    }

    pub(crate) async fn read(&self) -> Result<Arc<Catalog>, ReadError> {
        match self {
            Self::Raft(store) => store.read(Consistency::Linearizable, DEADLINE).await,
            Self::Etcd(store) => store.read(Consistency::Linearizable, DEADLINE).await,
        }
    }

    pub(crate) fn catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        match self {
            Self::Raft(store) => store.catalog(),
            Self::Etcd(store) => store.catalog(),
        }
    }

    pub(crate) fn events(&self) -> watch::Receiver<EventRing> {
        match self {
            Self::Raft(store) => store.events(),
            Self::Etcd(store) => store.events(),
        }
    }
}

/// A cluster of one that many use at once; clusters of several are tested with the crate.
pub(crate) async fn raft() -> Fixture {
    let dir = tempfile::tempdir().expect("a directory");
    let listen = std::net::SocketAddr::from((address(), 4284));
    let store = RaftStore::open(merlin_raft::Config {
        data_dir: dir.path().join("data"),
        node_name: "node".to_owned(),
        advertise: listen.to_string(),
        advertise_guessed: false,
        peer_addr: listen,
        level: merlin_raft::Level::LATEST,
        snapshot_every: None,
        timers: merlin_raft::Timers {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(400),
            promote_after: Duration::from_millis(100),
        },
    });
    let store = store.await.expect("a cluster of one");
    let ready = store.read(Consistency::Linearizable, DEADLINE).await;
    ready.expect("it leads itself");
    Fixture {
        nodes: vec![Store::Raft(store); NODES],
        _keeps: Box::new(dir),
    }
}

pub(crate) async fn etcd3() -> Fixture {
    etcd(Backend::Etcd3).await
}

pub(crate) async fn etcd2() -> Fixture {
    etcd(Backend::Etcd2).await
}

async fn etcd(backend: Backend) -> Fixture {
    let options = Options {
        v2: backend == Backend::Etcd2,
        ..Options::default()
    };
    let etcd = Etcd::cluster(1, &options).await;
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        nodes.push(Store::Etcd(etcd.store_on(backend).await));
    }
    Fixture {
        nodes,
        _keeps: Box::new(etcd),
    }
}
