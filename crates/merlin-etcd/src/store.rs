//! The store of one node, as the daemon uses it.

use std::sync::Arc;
use std::time::Duration;

use merlin_model::store::{Consistency, ProposeError, ReadError};
use merlin_model::{Catalog, Command, EventRing, Reply};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::publish::{Publisher, Views};
use crate::replica::Replica;
use crate::status::{Backend, Status};
use crate::v3;

/// Cheap to clone; every clone is the same store.
#[derive(Clone, Debug)]
pub struct EtcdStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    views: Views,
    driver: Arc<v3::Shared>,
    stop: CancellationToken,
    task: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl EtcdStore {
    /// Begins to follow etcd, whether it answers or not.
    pub fn open(config: Config) -> Self {
        let backend = config.backend;
        let replica = Replica::new(config.layout.clone());
        let status = Status::starting(backend);
        let (publisher, views) = Publisher::new(replica, config.last_known.clone(), status);
        let driver = v3::Shared::new(views.clone());
        let stop = CancellationToken::new();
        publisher.found(Backend::Etcd3);
        let task = tokio::spawn(v3::run(
            config,
            publisher,
            Arc::clone(&driver),
            stop.clone(),
        ));
        Self {
            inner: Arc::new(Inner {
                views,
                driver,
                stop,
                task: std::sync::Mutex::new(Some(task)),
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
        self.inner.driver.propose(&command, timeout).await
    }

    /// The catalog, as fresh as asked for.
    pub async fn read(
        &self,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<Arc<Catalog>, ReadError> {
        match consistency {
            Consistency::Linearizable => self.inner.driver.read(timeout).await,
            Consistency::Stale => Ok(Arc::clone(&self.inner.views.catalog.borrow())),
        }
    }

    /// Lets go of etcd. Harmless when repeated.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        let task = self.inner.task.lock().ok().and_then(|mut task| task.take());
        if let Some(task) = task
            && let Err(panic) = task.await
        {
            tracing::error!(%panic, "following the store ended in a panic");
        }
    }
}

impl Drop for Inner {
    /// A store that is forgotten instead of shut down does not go on by itself.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
