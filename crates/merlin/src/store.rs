//! The store this node keeps its catalog in, whichever that is.
//!
//! The daemon sees one store: propose, read, watch, status. What only some stores have, it asks
//! that store for, and is told when there is none.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use merlin_model::store::{Consistency, ProposeError, ReadError};
use merlin_model::{Catalog, Command, EventRing, Reply};
use merlin_raft::{AskError, RaftStore, StoreFailed};
use tokio::sync::watch;

/// Cheap to clone; every clone is the same store.
#[derive(Clone, Debug)]
pub(crate) enum Store {
    Raft(RaftStore),
}

/// How the store is doing, in words that fit every store.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    /// `raft`, `etcd3` or `etcd2`.
    pub(crate) backend: &'static str,
    /// Why commands cannot be decided at the moment.
    pub(crate) unavailable: Option<String>,
    /// What part this node takes in the store; empty where it is a mere client.
    pub(crate) role: &'static str,
    /// 0 where there is none, or none is known.
    pub(crate) leader: u64,
    /// Which cluster keeps the catalog; empty while unknown.
    pub(crate) cluster: String,
}

/// Another daemon on the same catalog, or this one.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) id: u64,
    pub(crate) name: String,
}

impl Store {
    /// The catalog as this node knows it.
    pub(crate) fn catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        match self {
            Self::Raft(raft) => raft.catalog(),
        }
    }

    /// The catalog's recent changes as this node knows them.
    pub(crate) fn events(&self) -> watch::Receiver<EventRing> {
        match self {
            Self::Raft(raft) => raft.events(),
        }
    }

    /// Has the store decide a command.
    pub(crate) async fn propose(
        &self,
        command: Command,
        timeout: Duration,
    ) -> Result<Reply, ProposeError> {
        match self {
            Self::Raft(raft) => raft.propose(command, timeout).await,
        }
    }

    /// The catalog, as fresh as asked for.
    pub(crate) async fn read(
        &self,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<Arc<Catalog>, ReadError> {
        match self {
            Self::Raft(raft) => raft.read(consistency, timeout).await,
        }
    }

    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Raft(raft) => {
                let status = raft.status();
                Status {
                    backend: "raft",
                    unavailable: status.unavailable,
                    role: status.role.as_str(),
                    leader: status.leader.unwrap_or_default(),
                    cluster: status.cluster.to_string(),
                }
            }
        }
    }

    /// Which history revisions belong to: those of different incarnations are not comparable.
    pub(crate) fn incarnation(&self) -> String {
        match self {
            Self::Raft(raft) => format!("{}/{}", raft.cluster_id(), raft.incarnation()),
        }
    }

    /// This node's number; 0 where the store numbers no nodes.
    pub(crate) fn node_id(&self) -> u64 {
        match self {
            Self::Raft(raft) => raft.node_id(),
        }
    }

    /// Every daemon the store knows of, this one included, in the order of their ids.
    pub(crate) fn peers(&self) -> Vec<Peer> {
        match self {
            Self::Raft(raft) => {
                let members = raft.status().members.into_iter();
                members
                    .map(|m| Peer {
                        id: m.id,
                        name: m.name,
                    })
                    .collect()
            }
        }
    }

    /// Asks the daemon of another node something.
    pub(crate) async fn ask(
        &self,
        node: u64,
        question: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, AskError> {
        match self {
            Self::Raft(raft) => raft.ask(node, question, timeout).await,
        }
    }

    /// Sets who answers what other daemons ask, once.
    pub(crate) fn set_answerer<F, A>(&self, answerer: F)
    where
        F: Fn(Bytes) -> A + Send + Sync + 'static,
        A: Future<Output = Bytes> + Send + 'static,
    {
        match self {
            Self::Raft(raft) => raft.set_answerer(answerer),
        }
    }

    /// Ready when the store can go on no longer.
    pub(crate) async fn failed(&self) -> StoreFailed {
        match self {
            Self::Raft(raft) => raft.failed().await,
        }
    }

    /// Lets go of the store in order. Harmless when repeated.
    pub(crate) async fn shutdown(&self) {
        match self {
            Self::Raft(raft) => raft.shutdown().await,
        }
    }

    /// The embedded store: the one that has members, tokens and certificates.
    pub(crate) fn raft(&self) -> Option<&RaftStore> {
        match self {
            Self::Raft(raft) => Some(raft),
        }
    }
}
