//! The store this node keeps its catalog in, whichever that is.
//!
//! The daemon sees one store: propose, read, watch, status. What only some stores have, it asks
//! that store for, and is told when there is none.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use merlin_etcd::{AcceptError, Backend, EtcdStore, Problem, Removal};
use merlin_model::store::{Consistency, ProposeError, ReadError};
use merlin_model::{Catalog, Command, EventRing, Reply, Revision};
use merlin_raft::{AskError, RaftStore, StoreFailed};
use tokio::sync::watch;

/// Cheap to clone; every clone is the same store.
#[derive(Clone, Debug)]
pub(crate) enum Store {
    Raft(RaftStore),
    Etcd(EtcdStore),
}

/// How the store is doing, in words that fit every store.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    /// `raft`, `etcd3`, `etcd2`, or `etcd` until it is known which.
    pub(crate) backend: &'static str,
    /// Why commands cannot be decided at the moment.
    pub(crate) unavailable: Option<String>,
    /// What part this node takes in the store; empty where it is a mere client.
    pub(crate) role: &'static str,
    /// 0 where there is none, or none is known.
    pub(crate) leader: u64,
    /// Which cluster keeps the catalog; empty while unknown.
    pub(crate) cluster: String,
    /// For how long the catalog may have missed changes, where there is a way to tell.
    pub(crate) lag: Option<Duration>,
    /// Records that are passed over, where there are any.
    pub(crate) passed_over: Vec<Problem>,
    /// A removal that is held back until an operator accepts it.
    pub(crate) held: Option<Removal>,
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
            Self::Etcd(etcd) => etcd.catalog(),
        }
    }

    /// The catalog's recent changes as this node knows them.
    pub(crate) fn events(&self) -> watch::Receiver<EventRing> {
        match self {
            Self::Raft(raft) => raft.events(),
            Self::Etcd(etcd) => etcd.events(),
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
            Self::Etcd(etcd) => etcd.propose(command, timeout).await,
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
            Self::Etcd(etcd) => etcd.read(consistency, timeout).await,
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
                    lag: None,
                    passed_over: Vec::new(),
                    held: None,
                }
            }
            Self::Etcd(etcd) => {
                let status = etcd.status();
                Status {
                    backend: status.backend.map_or("etcd", Backend::as_str),
                    lag: Some(status.lag()),
                    passed_over: status.problems.iter().cloned().collect(),
                    held: status.held,
                    unavailable: status.unavailable,
                    role: "",
                    leader: 0,
                    cluster: status.history,
                }
            }
        }
    }

    /// Lets a removal pass that is held back; with a revision, only the one of that catalog.
    pub(crate) fn accept_removal(
        &self,
        revision: Option<Revision>,
    ) -> Result<Removal, AcceptError> {
        match self {
            // What a quorum has decided is meant.
            Self::Raft(_) => Err(AcceptError::NothingHeld),
            Self::Etcd(etcd) => etcd.accept_removal(revision),
        }
    }

    /// Which history revisions belong to: those of different incarnations are not comparable.
    pub(crate) fn incarnation(&self) -> String {
        match self {
            Self::Raft(raft) => format!("{}/{}", raft.cluster_id(), raft.incarnation()),
            Self::Etcd(etcd) => etcd.status().history,
        }
    }

    /// This node's number; 0 where the store numbers no nodes.
    pub(crate) fn node_id(&self) -> u64 {
        match self {
            Self::Raft(raft) => raft.node_id(),
            Self::Etcd(_) => 0,
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
            // Nodes on etcd do not know of each other: whoever is asked speaks for itself.
            Self::Etcd(_) => vec![Peer {
                id: 0,
                name: String::new(),
            }],
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
            Self::Etcd(_) => Err(AskError::UnknownNode(node)),
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
            // Nobody asks.
            Self::Etcd(_) => drop(answerer),
        }
    }

    /// Ready when the store can go on no longer.
    pub(crate) async fn failed(&self) -> StoreFailed {
        match self {
            Self::Raft(raft) => raft.failed().await,
            // It comes back.
            Self::Etcd(_) => std::future::pending().await,
        }
    }

    /// Lets go of the store in order. Harmless when repeated.
    pub(crate) async fn shutdown(&self) {
        match self {
            Self::Raft(raft) => raft.shutdown().await,
            Self::Etcd(etcd) => etcd.shutdown().await,
        }
    }

    /// The embedded store: the one that has members, tokens and certificates.
    pub(crate) fn raft(&self) -> Option<&RaftStore> {
        match self {
            Self::Raft(raft) => Some(raft),
            Self::Etcd(_) => None,
        }
    }
}
