//! Reads that see every write acknowledged before them.
//!
//! The leader names a position in the log and has a quorum confirm that it still leads; a read is
//! served from the local catalog once that position is applied here. One confirmation serves all
//! reads that were waiting when it began.

use std::time::Duration;

use merlin_model::store::ReadError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::consensus::{Consensus, Leadership};
use crate::peers::Peers;
use crate::proposer::Origin;
use crate::typ::LogId;

/// Reads that wait for the next confirmation. When it is full, readers wait, which their deadline
/// ends.
const QUEUE: usize = 1024;

/// Accepts questions for the read position. Cheap to clone; the task ends with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct ReadIndex {
    queue: mpsc::Sender<Asked>,
}

#[derive(Debug)]
struct Asked {
    origin: Origin,
    answer: oneshot::Sender<Result<u64, String>>,
}

impl ReadIndex {
    /// `patience` is how long one confirmation may take.
    pub(crate) fn start(consensus: Consensus, peers: Peers, patience: Duration) -> Self {
        let (queue, asked) = mpsc::channel(QUEUE);
        tokio::spawn(run(consensus, peers, patience, asked));
        Self { queue }
    }

    /// The position a read has to wait for that begins now. Whoever asks sets the deadline.
    pub(crate) async fn confirm(&self, origin: Origin) -> Result<u64, ReadError> {
        let unavailable = |reason: &str| ReadError::Unavailable {
            reason: reason.into(),
        };
        let stopping = || unavailable("the store is shutting down");
        let (answer, position) = oneshot::channel();
        let sent = self.queue.send(Asked { origin, answer }).await;
        sent.map_err(|_| stopping())?;
        let position = position.await.map_err(|_| stopping())?;
        position.map_err(|reason| unavailable(&reason))
    }

    /// Waits until everything is applied here that was acknowledged anywhere before.
    pub(crate) async fn catch_up(
        &self,
        applied: &watch::Receiver<Option<LogId>>,
    ) -> Result<(), ReadError> {
        let position = self.confirm(Origin::Here).await?;
        let mut applied = applied.clone();
        let reached = applied.wait_for(|applied| applied.is_some_and(|at| at.index >= position));
        match reached.await {
            Ok(_) => Ok(()),
            Err(_) => Err(ReadError::Unavailable {
                reason: "the store has stopped".into(),
            }),
        }
    }
}

async fn run(
    consensus: Consensus,
    peers: Peers,
    patience: Duration,
    mut queue: mpsc::Receiver<Asked>,
) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, QUEUE).await > 0 {
        // A read that the old leader confirmed would prolong its lease.
        let passage = consensus.pass().await;
        let position = match consensus.leadership() {
            Leadership::Leading => timeout(patience, consensus.read_index())
                .await
                .unwrap_or_else(|_| Err("no quorum confirmed the read in time".into())),
            Leadership::Following(leader) => {
                drop(passage);
                for stray in batch.extract_if(.., |asked| asked.origin == Origin::Peer) {
                    let _ = stray.answer.send(Err("this node is not the leader".into()));
                }
                if batch.is_empty() {
                    continue;
                }
                let position = peers.read_position(&leader, patience).await;
                position.map_err(|error| error.to_string())
            }
            Leadership::None { reason } => Err(reason),
        };
        for asked in batch.drain(..) {
            // Whoever asked may have given up.
            let _ = asked.answer.send(position.clone());
        }
    }
}
