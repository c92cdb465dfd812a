//! Reads that see every write acknowledged before them.
//!
//! The leader names a position in the log and has a quorum confirm that it still leads; a read is
//! served from the local catalog once that position is applied here. One confirmation serves all
//! reads that were waiting when it began.

use merlin_model::store::ReadError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::consensus::{Consensus, Leadership};
use crate::peers::Peers;
use crate::proposer::Origin;

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
    deadline: Instant,
    answer: oneshot::Sender<Result<u64, String>>,
}

impl ReadIndex {
    pub(crate) fn start(consensus: Consensus, peers: Peers) -> Self {
        let (queue, asked) = mpsc::channel(QUEUE);
        tokio::spawn(run(consensus, peers, asked));
        Self { queue }
    }

    pub(crate) async fn get(&self, origin: Origin, deadline: Instant) -> Result<u64, ReadError> {
        let unavailable = |reason: &str| ReadError::Unavailable {
            reason: reason.into(),
        };
        let (answer, position) = oneshot::channel();
        let asked = Asked {
            origin,
            deadline,
            answer,
        };
        let ask = async {
            let stopping = "the store is shutting down";
            let sent = self.queue.send(asked).await;
            sent.map_err(|_| unavailable(stopping))?;
            let position = position.await.map_err(|_| unavailable(stopping))?;
            position.map_err(|reason| unavailable(&reason))
        };
        let late = |_| unavailable("no quorum confirmed the read in time");
        timeout_at(deadline, ask).await.map_err(late)?
    }
}

async fn run(consensus: Consensus, peers: Peers, mut queue: mpsc::Receiver<Asked>) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, QUEUE).await > 0 {
        batch.retain(|asked| !asked.answer.is_closed());
        let Some(deadline) = batch.iter().map(|asked| asked.deadline).max() else {
            continue;
        };
        let position = match consensus.leadership() {
            Leadership::Leading => match timeout_at(deadline, consensus.read_index()).await {
                Ok(position) => position,
                Err(_) => continue,
            },
            Leadership::Following(leader) => {
                for stray in batch.extract_if(.., |asked| asked.origin == Origin::Peer) {
                    let _ = stray.answer.send(Err("this node is not the leader".into()));
                }
                if batch.is_empty() {
                    continue;
                }
                peers.read_index(leader, deadline).await
            }
            Leadership::None { reason } => Err(reason),
        };
        for asked in batch.drain(..) {
            let _ = asked.answer.send(position.clone());
        }
    }
}
