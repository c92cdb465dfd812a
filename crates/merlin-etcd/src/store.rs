//! The store of one node, as the daemon uses it.

use std::error::Error;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use merlin_model::store::{Consistency, ProposeError, ReadError};
use merlin_model::{Catalog, Command, EventRing, Reply, Revision};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::guard::{AcceptError, Removal};
use crate::keep::{self, Keep};
use crate::publish::{Publisher, Views};
use crate::replica::Replica;
use crate::status::{Backend, Status};
use crate::{find, v2, v3};

/// Cheap to clone; every clone is the same store.
#[derive(Clone, Debug)]
pub struct EtcdStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    views: Views,
    publisher: Publisher,
    driver: Arc<OnceLock<Driver>>,
    stop: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// One of etcd's two APIs, once it is known which.
#[derive(Debug)]
enum Driver {
    V3(Arc<v3::Shared>),
    V2(Arc<v2::Shared>),
}

impl EtcdStore {
    /// Begins to follow etcd, whether it answers or not.
    pub fn open(config: Config) -> Self {
        let replica = Replica::new(config.layout.clone());
        let status = Status::starting(config.backend);
        let last_known = config.keep.as_ref().map(last_known).unwrap_or_default();
        let (publisher, views) = Publisher::new(replica, last_known, status, config.max_removal);
        let stop = CancellationToken::new();
        let keeping = config.keep.clone().map(|keep| {
            let catalog = views.catalog.clone();
            tokio::spawn(keep::run(keep, catalog, stop.clone()))
        });
        let driver = Arc::new(OnceLock::new());
        let following = follow(
            config,
            publisher.clone(),
            views.clone(),
            Arc::clone(&driver),
            stop.clone(),
        );
        Self {
            inner: Arc::new(Inner {
                views,
                publisher,
                driver,
                stop,
                tasks: Mutex::new(
                    keeping
                        .into_iter()
                        .chain([tokio::spawn(following)])
                        .collect(),
                ),
            }),
        }
    }

    /// The catalog as this node last knew it.
    pub fn catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        self.inner.views.catalog.clone()
    }

    /// The catalog's recent changes as this node saw them.
    pub fn events(&self) -> watch::Receiver<EventRing> {
        self.inner.views.events.clone()
    }

    pub fn status(&self) -> Status {
        self.inner.views.status.borrow().clone()
    }

    /// The records behind the catalog.
    pub fn replica(&self) -> watch::Receiver<Replica> {
        self.inner.views.replica.clone()
    }

    /// Has the store decide a command.
    pub async fn propose(
        &self,
        command: Command,
        timeout: Duration,
    ) -> Result<Reply, ProposeError> {
        match self.inner.driver.get() {
            Some(Driver::V3(driver)) => driver.propose(&command, timeout).await,
            Some(Driver::V2(driver)) => driver.propose(&command, timeout).await,
            None => Err(ProposeError::Unavailable {
                reason: self.not_found(),
            }),
        }
    }

    /// The catalog, as fresh as asked for.
    pub async fn read(
        &self,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<Arc<Catalog>, ReadError> {
        match consistency {
            Consistency::Stale => Ok(Arc::clone(&self.inner.views.catalog.borrow())),
            Consistency::Linearizable => match self.inner.driver.get() {
                Some(Driver::V3(driver)) => driver.read(timeout).await,
                Some(Driver::V2(driver)) => driver.read(timeout).await,
                None => Err(ReadError::Unavailable {
                    reason: self.not_found(),
                }),
            },
        }
    }

    fn not_found(&self) -> String {
        let reason = self.inner.views.status.borrow().unavailable.clone();
        reason.unwrap_or_else(|| "the records have not been found yet".to_owned())
    }

    /// Lets go of etcd. Harmless when repeated.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        let tasks = self
            .inner
            .tasks
            .lock()
            .map(|mut tasks| std::mem::take(&mut *tasks));
        for task in tasks.unwrap_or_default() {
            if let Err(panic) = task.await {
                tracing::error!(%panic, "following the store ended in a panic");
            }
        }
    }

    /// Lets a removal pass that is held back; with a revision, only the one of that catalog.
    pub fn accept_removal(&self, revision: Option<Revision>) -> Result<Removal, AcceptError> {
        self.inner.publisher.accept(revision)
    }
}

fn last_known(keep: &Keep) -> Catalog {
    keep.load()
        .unwrap_or_else(|error| {
            let reason = error.source();
            tracing::warn!(%error, reason, "starting without the last known catalog");
            None
        })
        .unwrap_or_default()
}

/// Finds out which API to use if that was left open, and follows etcd with it until told to stop.
async fn follow(
    config: Config,
    publisher: Publisher,
    views: Views,
    driver: Arc<OnceLock<Driver>>,
    stop: CancellationToken,
) {
    let finding = stop.run_until_cancelled(find::backend(&config, &publisher));
    let Some(backend) = finding.await else {
        return;
    };
    publisher.found(backend);
    match backend {
        Backend::Etcd3 => {
            let shared = v3::Shared::new(views);
            driver.get_or_init(|| Driver::V3(Arc::clone(&shared)));
            v3::run(config, publisher, shared, stop).await;
        }
        Backend::Etcd2 => {
            let shared = v2::Shared::new(views);
            driver.get_or_init(|| Driver::V2(Arc::clone(&shared)));
            v2::run(config, publisher, shared, stop).await;
        }
    }
}

impl Drop for Inner {
    /// A store that is forgotten instead of shut down does not go on by itself.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
