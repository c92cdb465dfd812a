//! Clients that use merlin, each for its own reason, until they are told to stop.

mod health;
pub mod monitor;
pub mod watcher;
pub(crate) mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Odd};
use crate::lab::Lab;
use crate::model::{CHECKED, Catalog};
use crate::ops::{Life, Node, Outcome, Revision, Serial, Write};
use crate::recorder::Recorder;

/// What all clients share.
#[derive(Debug)]
pub struct Shared<S = Lab> {
    pub lab: Arc<S>,
    pub recorder: Arc<Recorder>,
    pub stop: CancellationToken,
    serials: AtomicU32,
    /// Different in every run, so that request ids are.
    pub run: u64,
}

/// How many clients of each kind.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub writers: u32,
    /// Pause between two operations of a writer, on average.
    pub pause: Duration,
}

/// Where clients work: the lab, or a cluster in this process.
pub trait Site: Send + Sync + 'static {
    type Client: Speaks;

    fn size(&self) -> Node;
    fn life(&self, node: Node) -> Life;
    fn client(self: &Arc<Self>, node: Node) -> Self::Client;
}

/// A connection to one node.
pub trait Speaks: Send + Sync {
    /// One attempt at a write.
    fn write(
        &self,
        write: &Write,
        id: Option<&str>,
        patience: Duration,
    ) -> impl Future<Output = Result<Outcome, Odd>> + Send;

    /// Nothing when there is no answer.
    fn read(
        &self,
        stale: bool,
        patience: Duration,
    ) -> impl Future<Output = Option<Result<(Revision, Catalog), Odd>>> + Send;
}

impl Site for Lab {
    type Client = Client;

    fn size(&self) -> Node {
        Node::try_from(self.machines.len()).unwrap_or(Node::MAX)
    }

    fn life(&self, node: Node) -> Life {
        self.machine(node).life()
    }

    fn client(self: &Arc<Self>, node: Node) -> Client {
        Client::new(self.machine(node))
    }
}

impl Speaks for Client {
    async fn write(
        &self,
        write: &Write,
        id: Option<&str>,
        patience: Duration,
    ) -> Result<Outcome, Odd> {
        self.write(write, id, patience).await
    }

    async fn read(
        &self,
        stale: bool,
        patience: Duration,
    ) -> Option<Result<(Revision, Catalog), Odd>> {
        self.read(stale, patience).await.ok()
    }
}

impl<S: Site> Shared<S> {
    #[must_use]
    pub fn new(lab: Arc<S>, recorder: Arc<Recorder>, run: u64) -> Self {
        Self {
            lab,
            recorder,
            stop: CancellationToken::new(),
            serials: AtomicU32::new(CHECKED.end() + 1),
            run,
        }
    }

    pub(crate) fn serial(&self) -> Serial {
        self.serials.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn any_node(&self, dice: &mut StdRng) -> Node {
        dice.random_range(1..=self.lab.size())
    }
}

/// Starts every client. Each ends soon after the stop; an error is one of this program.
pub fn start(shared: &Arc<Shared>, load: Load, dice: &mut StdRng) -> JoinSet<Result<()>> {
    let mut clients = JoinSet::new();
    for _ in 0..load.writers {
        let dice = StdRng::seed_from_u64(dice.random());
        clients.spawn(writer::run(Arc::clone(shared), load.pause, dice));
    }
    for server in CHECKED {
        let dice = StdRng::seed_from_u64(dice.random());
        clients.spawn(health::run(Arc::clone(shared), server, dice));
    }
    for node in shared.lab.nodes() {
        let dice = StdRng::seed_from_u64(dice.random());
        clients.spawn(watcher::run(Arc::clone(shared), dice));
        clients.spawn(monitor::run(Arc::clone(shared), node));
    }
    clients
}
