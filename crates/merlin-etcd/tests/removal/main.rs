//! A store that loses its catalog does not take the nodes' with it, and neither does one that is away.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

#[path = "../support/mod.rs"]
mod support;

use merlin_etcd::{AcceptError, Backend, Config, EtcdStore, Keep, MaxRemoval, Removal};
use merlin_model::store::Consistency;
use merlin_model::{Mutation, Protocol, Revision, Scheduler, ServiceConfig, ServiceId, ServiceKey};
use support::{DEADLINE, Etcd, Options, command, connected, eventually, names};
use tempfile::TempDir;

/// An etcd with a dozen services, and a node on it that keeps its last catalog.
struct Fixture {
    etcd: Etcd,
    config: Config,
    _dir: TempDir,
}

impl Fixture {
    async fn new(backend: Backend) -> (Self, EtcdStore) {
        let options = Options {
            v2: backend == Backend::Etcd2,
            ..Options::default()
        };
        let etcd = Etcd::cluster(1, &options).await;
        let dir = TempDir::new().unwrap();
        let config = Config {
            backend: Some(backend),
            keep: Some(Keep::in_dir(dir.path())),
            max_removal: MaxRemoval::default(),
            ..etcd.config()
        };
        let store = EtcdStore::open(config.clone());
        connected(&store).await;
        for n in 0..12 {
            propose(&store, create(n)).await;
        }
        eventually("it has all", || names(&store).len() == 12).await;
        let fixture = Self {
            etcd,
            config,
            _dir: dir,
        };
        (fixture, store)
    }

    /// As the node does when it starts again.
    async fn restarted(&self, store: EtcdStore) -> EtcdStore {
        store.shutdown().await;
        EtcdStore::open(self.config.clone())
    }

    /// etcd starts again with nothing.
    async fn wipe(&mut self) {
        self.etcd.member().kill();
        std::fs::remove_dir_all(self.etcd.data_dir(0)).unwrap();
        self.etcd.member().start();
    }
}

fn create(n: u16) -> Mutation {
    Mutation::CreateService {
        id: id(n),
        key: ServiceKey::Address {
            address: [10, 0, 0, 1].into(),
            port: 80 + n,
            protocol: Protocol::Tcp,
        },
        config: ServiceConfig::new(Scheduler::Rr),
    }
}

fn id(n: u16) -> ServiceId {
    ServiceId::new(&format!("s{n}")).unwrap()
}

async fn propose(store: &EtcdStore, mutation: Mutation) {
    store.propose(command(mutation), DEADLINE).await.unwrap();
}

async fn held(store: &EtcdStore) -> Removal {
    eventually("a removal is held back", || store.status().held.is_some()).await;
    store.status().held.unwrap()
}

async fn a_wiped_etcd_is_not_obeyed_until_somebody_says_so(backend: Backend) {
    let (mut fixture, store) = Fixture::new(backend).await;
    fixture.wipe().await;
    let removal = held(&store).await;
    assert_eq!((removal.services, removal.of), (12, 12));
    assert_eq!(names(&store).len(), 12);
    // What the store holds is told truthfully, and commands are decided on it.
    let read = store
        .read(Consistency::Linearizable, DEADLINE)
        .await
        .unwrap();
    assert_eq!(read.services().len(), 0);
    propose(&store, create(0)).await;
    eventually("the size is news", || {
        store.status().held.is_some_and(|held| held.services == 11)
    })
    .await;
    assert_eq!(names(&store).len(), 12);
    // Nor after a restart.
    let store = fixture.restarted(store).await;
    let removal = held(&store).await;
    assert_eq!((removal.services, names(&store).len()), (11, 12));

    let other = Some(Revision(removal.revision.0 + 1));
    assert_eq!(
        store.accept_removal(other),
        Err(AcceptError::Moved(removal.revision))
    );
    assert_eq!(store.accept_removal(Some(removal.revision)), Ok(removal));
    assert_eq!(names(&store), ["s0"]);
    assert_eq!(store.status().held, None);
    assert_eq!(store.accept_removal(None), Err(AcceptError::NothingHeld));
    propose(&store, create(1)).await;
    eventually("it is followed again", || names(&store) == ["s0", "s1"]).await;
    store.shutdown().await;
}

/// Its connections are gone, and nobody may have noticed.
async fn who_asks_after_a_restart_of_etcd_is_answered(backend: Backend) {
    let (mut fixture, store) = Fixture::new(backend).await;
    for n in 0..4 {
        fixture.etcd.member().kill();
        fixture.etcd.member().start();
        let read = store.read(Consistency::Linearizable, DEADLINE).await;
        assert_eq!(read.unwrap().services().len(), 12 + usize::from(n));
        propose(&store, create(12 + n)).await;
    }
    store.shutdown().await;
}

async fn services_that_come_back_need_nobody(backend: Backend) {
    let (mut fixture, store) = Fixture::new(backend).await;
    fixture.wipe().await;
    held(&store).await;
    for n in 0..12 {
        propose(&store, create(n)).await;
        assert_eq!(names(&store).len(), 12);
    }
    eventually("nothing is held", || store.status().held.is_none()).await;
    propose(&store, create(12)).await;
    eventually("it is followed again", || names(&store).len() == 13).await;
    store.shutdown().await;
}

async fn what_an_operator_deletes_one_by_one_goes(backend: Backend) {
    let (_fixture, store) = Fixture::new(backend).await;
    for n in 0..12 {
        propose(&store, Mutation::DeleteService { id: id(n) }).await;
    }
    eventually("all are gone", || names(&store).is_empty()).await;
    assert_eq!(store.status().held, None);
    store.shutdown().await;
}

async fn more_is_allowed_by_the_flag(backend: Backend) {
    let (mut fixture, store) = Fixture::new(backend).await;
    fixture.config.max_removal = MaxRemoval::ALL;
    let store = fixture.restarted(store).await;
    connected(&store).await;
    fixture.wipe().await;
    eventually("all are gone", || names(&store).is_empty()).await;
    store.shutdown().await;
}

async fn a_node_that_starts_while_etcd_is_away_knows_the_last_catalog(backend: Backend) {
    let (mut fixture, store) = Fixture::new(backend).await;
    fixture.etcd.member().kill();
    let store = fixture.restarted(store).await;
    assert_eq!(names(&store).len(), 12);
    assert!(!store.status().is_connected());
    let read = store.read(
        Consistency::Linearizable,
        std::time::Duration::from_millis(200),
    );
    assert!(read.await.is_err());
    fixture.etcd.member().start();
    connected(&store).await;
    assert_eq!(names(&store).len(), 12);
    assert_eq!(store.status().held, None);
    store.shutdown().await;
}

macro_rules! on {
    ($($backend:ident = $name:ident),*: $($case:ident),* $(,)?) => { on!(@ [$($backend = $name),*] $($case)*); };
    (@ $backends:tt $($case:ident)*) => { $(on!(# $backends $case);)* };
    (# [$($backend:ident = $name:ident),*] $case:ident) => {
        mod $case {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$case(merlin_etcd::Backend::$backend).await;
                }
            )*
        }
    };
}

on!(Etcd3 = etcd3, Etcd2 = etcd2:
    a_wiped_etcd_is_not_obeyed_until_somebody_says_so,
    who_asks_after_a_restart_of_etcd_is_answered,
    services_that_come_back_need_nobody,
    what_an_operator_deletes_one_by_one_goes,
    more_is_allowed_by_the_flag,
    a_node_that_starts_while_etcd_is_away_knows_the_last_catalog,
);
