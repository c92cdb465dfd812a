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
use tonic::Status;

use crate::checker::Law;
use crate::client::{Client, Odd};
use crate::lab::{Lab, Store};
use crate::model::{CHECKED, Catalog};
use crate::ops::{Life, Node, Outcome, ReadRecord, Revision, Serial, Write};
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
    /// Whether a change of several objects is one step, and keeping its answer belongs to it.
    /// Without that, a write is not safe to be sent again, and a deletion is seen piece by piece.
    fn has_transactions(&self) -> bool;
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

    fn read(
        &self,
        stale: bool,
        patience: Duration,
    ) -> impl Future<Output = Result<Result<(Revision, Catalog), Odd>, Status>> + Send;
}

impl Site for Lab {
    type Client = Client;

    fn size(&self) -> Node {
        Node::try_from(self.machines.len()).unwrap_or(Node::MAX)
    }

    fn life(&self, node: Node) -> Life {
        self.machine(node).life()
    }

    fn has_transactions(&self) -> bool {
        self.store != Store::Etcd2
    }

    fn client(self: &Arc<Self>, node: Node) -> Client {
        Client::new(self.machine(node))
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

    /// Notes that a node answered what merlin cannot say.
    pub(crate) fn odd(&self, node: Node, odd: &Odd) {
        let law = match odd {
            Odd::Garbled(_) => Law::OnlyWhatWasWritten,
            Odd::NoRevision | Odd::Refused(_) => Law::AnswersFollow,
        };
        self.recorder
            .violation(law, format!("n{node} answered: {odd}"));
    }

    /// Reads of both kinds from every node, at the end, when all of them are well.
    pub(crate) async fn last_reads(&self, patience: Duration) {
        for node in 1..=self.lab.size() {
            for stale in [false, true] {
                let start = self.recorder.clock.now();
                match self.lab.client(node).read(stale, patience).await {
                    Ok(Ok((revision, content))) => self.recorder.read(ReadRecord {
                        start,
                        end: self.recorder.clock.now(),
                        node,
                        life: self.lab.life(node),
                        stale,
                        revision,
                        content: Arc::new(content),
                    }),
                    Ok(Err(odd)) => self.odd(node, &odd),
                    Err(status) => {
                        let what = format!("n{node} at the end: {}", status.message());
                        self.recorder.violation(Law::Convergence, what);
                    }
                }
            }
        }
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
