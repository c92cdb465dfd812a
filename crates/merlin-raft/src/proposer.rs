//! From single commands to log entries.
//!
//! ```text
//! propose() --queue--> batching task --one entry--> consensus          on the leader
//!                                    --one call---> the leader's own   elsewhere
//! ```
//!
//! Consensus waits for the disk once for each entry, so commands that arrive together share one.
//!
//! Invariants:
//!
//! * A command reaches the log at most once: it is either taken by the task or given up by its
//!   caller, never both ([`Ticket`]). Only what was given up, or never left this node, is reported
//!   as `Unavailable`; after that the outcome is `Unknown`.
//! * A command that came from another node is not sent on.
//! * What is put into the log can be decoded: it was, here, by the version that leads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use merlin_model::store::ProposeError;
use merlin_model::{Reply, Timestamp};
use merlin_proto::log;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::consensus::{Consensus, Leadership};
use crate::peers::Peers;
use crate::typ::{Outcome, Proposal};

/// Commands in one entry. With more, single commands would wait for others' sake.
const BATCH_COMMANDS: usize = 128;

/// Bytes of commands in one entry, and of one command. Far below what the log takes in one entry,
/// and small enough for a heartbeat's time on a slow link.
pub(crate) const BATCH_BYTES: usize = 1 << 20;

/// Entries under way at once. While one waits for the followers the next can go to the disk, but
/// only a full one does: a small one costs three nodes as much, and fills up by waiting.
const IN_FLIGHT: usize = 2;

/// From so many commands in one entry on, those who asked for them are waited for to ask again.
const CROWD: usize = 8;

/// How long that is waited for.
const MOMENT: Duration = Duration::from_millis(1);

/// Commands that wait to be batched. When it is full, callers wait, which their deadline ends.
const QUEUE: usize = 1024;

pub(crate) type Decision = Result<Reply, ProposeError>;

/// Where a command came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Here,
    /// From a node that took this one for the leader.
    Peer,
}

/// Accepts commands. Cheap to clone; the task ends with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    command: log::Command,
    size: usize,
    origin: Origin,
    deadline: Instant,
    ticket: Ticket,
    answer: oneshot::Sender<Decision>,
}

/// Says whose a command is: whoever claims it first, the task that appends it or the caller that
/// gives it up.
#[derive(Clone, Debug, Default)]
struct Ticket(Arc<AtomicBool>);

impl Ticket {
    fn claim(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// Gives a command up when its caller goes away.
struct GiveUp(Ticket);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.claim();
    }
}

pub(crate) fn unavailable(reason: impl Into<String>) -> ProposeError {
    ProposeError::Unavailable {
        reason: reason.into(),
    }
}

pub(crate) fn unknown(reason: impl Into<String>) -> ProposeError {
    ProposeError::Unknown {
        reason: reason.into(),
    }
}

impl Proposer {
    /// Starts the batching task.
    pub(crate) fn start(consensus: Consensus, peers: Peers) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let batcher = Batcher { consensus, peers };
        tokio::spawn(batcher.run(waiting));
        Self { queue }
    }

    pub(crate) async fn propose(
        &self,
        command: log::Command,
        origin: Origin,
        deadline: Instant,
    ) -> Decision {
        let size = command.encoded_len();
        if size > BATCH_BYTES {
            return Err(ProposeError::TooLarge {
                size,
                limit: BATCH_BYTES,
            });
        }
        let ticket = Ticket::default();
        let _give_up = GiveUp(ticket.clone());
        let (answer, decision) = oneshot::channel();
        let waiting = Waiting {
            command,
            size,
            origin,
            deadline,
            ticket: ticket.clone(),
            answer,
        };
        match timeout_at(deadline, self.queue.send(waiting)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(unavailable("the store is shutting down")),
            Err(_) => return Err(unavailable("too many commands are waiting")),
        }
        let decided = timeout_at(deadline, decision).await;
        match decided {
            Ok(Ok(decision)) => decision,
            _ if ticket.claim() => Err(unavailable("the command was not accepted in time")),
            Ok(Err(_)) => Err(unknown("the store is shutting down")),
            Err(_) => Err(unknown("no quorum confirmed the command in time")),
        }
    }
}

struct Batcher {
    consensus: Consensus,
    peers: Peers,
}

impl Batcher {
    async fn run(self, mut queue: mpsc::Receiver<Waiting>) {
        let mut flights = FuturesUnordered::new();
        let mut held = None;
        // Commands that will be there in a moment, with those that are.
        let mut crowd = 0;
        loop {
            let full = held.is_some() || queue.len() >= BATCH_COMMANDS;
            let starts = flights.is_empty() || full && flights.len() < IN_FLIGHT;
            tokio::select! {
                // Cancel safe: once something is received, this arm alone runs, and puts it into a flight.
                first = next(&mut queue, &mut held), if starts => {
                    let Some(first) = first else { break };
                    let mut batch = drain(first, &mut queue, &mut held);
                    if flights.is_empty() && held.is_none() {
                        gather(&mut batch, crowd, &mut queue, &mut held).await;
                    }
                    let commands = batch.commands.len();
                    flights.push(self.decide(batch.commands).map(move |()| commands));
                }
                Some(answered) = flights.next() => {
                    crowd = if answered < CROWD { 0 } else { answered + queue.len() };
                }
            }
        }
        // The callers are gone or have been told; what is under way ends in the log or does not.
    }

    async fn decide(&self, batch: Vec<Waiting>) {
        // Whoever runs out of patience meanwhile gives up what was never begun.
        let passage = self.consensus.pass().await;
        let mut batch: Vec<_> = batch
            .into_iter()
            .filter(|waiting| waiting.ticket.claim())
            .collect();
        if batch.is_empty() {
            return;
        }
        match self.consensus.leadership() {
            Leadership::Leading => {
                let stamped = stamp(&batch);
                let decisions = append(&self.consensus, stamped, batch.len()).await;
                answer(batch, decisions);
            }
            Leadership::Following(leader) => {
                drop(passage);
                let strays: Vec<_> = batch
                    .extract_if(.., |waiting| waiting.origin == Origin::Peer)
                    .collect();
                refuse(strays, "this node is not the leader");
                let Some(deadline) = batch.iter().map(|waiting| waiting.deadline).max() else {
                    return;
                };
                let commands = batch.iter().map(|waiting| waiting.command.clone());
                let expected = batch.len();
                let forwarded = self
                    .peers
                    .forward_commands(&leader, commands.collect(), deadline);
                let decisions = tokio::select! {
                    decisions = forwarded => decisions,
                    // The old leader may be unreachable for long, and its answer worth nothing.
                    _ = self.consensus.another_leads(leader.id) => {
                        same(&unknown(format!("{leader} lost the leadership meanwhile")), expected)
                    }
                };
                answer(batch, decisions);
            }
            Leadership::None { reason } => refuse(batch, &reason),
        }
    }
}

/// What goes into one entry.
#[derive(Debug)]
struct Batch {
    commands: Vec<Waiting>,
    size: usize,
}

impl Batch {
    fn of(first: Waiting) -> Self {
        Self {
            size: first.size,
            commands: vec![first],
        }
    }

    /// Takes a command, or holds it back if the entry would be too large: nothing fits any more then.
    fn add(&mut self, waiting: Waiting, held: &mut Option<Waiting>) -> bool {
        let size = self.size + waiting.size;
        if size > BATCH_BYTES {
            *held = Some(waiting);
            return false;
        }
        self.size = size;
        self.commands.push(waiting);
        true
    }
}

async fn next(queue: &mut mpsc::Receiver<Waiting>, held: &mut Option<Waiting>) -> Option<Waiting> {
    match held.take() {
        Some(waiting) => Some(waiting),
        None => queue.recv().await,
    }
}

/// Takes what waits, up to what one entry may hold. What does not fit any more is held back.
fn drain(first: Waiting, queue: &mut mpsc::Receiver<Waiting>, held: &mut Option<Waiting>) -> Batch {
    let mut batch = Batch::of(first);
    while batch.commands.len() < BATCH_COMMANDS
        && let Ok(waiting) = queue.try_recv()
        && batch.add(waiting, held)
    {}
    batch
}

/// Waits a moment until the crowd is there: those who were answered together will ask again together,
/// and each entry costs every node as much as dozens of commands. Those who asked meanwhile would
/// otherwise go without them, and never meet them again.
async fn gather(
    batch: &mut Batch,
    crowd: usize,
    queue: &mut mpsc::Receiver<Waiting>,
    held: &mut Option<Waiting>,
) {
    let more = async {
        while batch.commands.len() < crowd.min(BATCH_COMMANDS)
            && let Some(waiting) = queue.recv().await
            && batch.add(waiting, held)
        {}
    };
    let _ = timeout(MOMENT, more).await;
}

/// The time is the leader's, for all commands: what depends on it must not depend on the clocks
/// of those who ask.
fn stamp(batch: &[Waiting]) -> Vec<log::Command> {
    let at = now().0;
    let stamped = batch.iter().map(|waiting| log::Command {
        at,
        ..waiting.command.clone()
    });
    stamped.collect()
}

async fn append(
    consensus: &Consensus,
    commands: Vec<log::Command>,
    expected: usize,
) -> Vec<Decision> {
    match consensus.write(Proposal::of_commands(commands)).await {
        Ok(Outcome::Answers(answers)) if answers.len() == expected => answers
            .into_iter()
            .map(|answer| answer.map_err(ProposeError::from))
            .collect(),
        Ok(_) => same(&unknown("the answers do not match the commands"), expected),
        Err(error) => same(&error, expected),
    }
}

/// One error for every command of a batch.
pub(crate) fn same(error: &ProposeError, times: usize) -> Vec<Decision> {
    let copy = || match error {
        ProposeError::Unavailable { reason } => unavailable(reason),
        ProposeError::Outdated { reason } => ProposeError::Outdated {
            reason: reason.clone(),
        },
        other => unknown(other.to_string()),
    };
    (0..times).map(|_| Err(copy())).collect()
}

fn answer(batch: Vec<Waiting>, decisions: Vec<Decision>) {
    for (waiting, decision) in batch.into_iter().zip(decisions) {
        // Its caller may have run out of time.
        let _ = waiting.answer.send(decision);
    }
}

fn refuse(batch: Vec<Waiting>, reason: &str) {
    for waiting in batch {
        let _ = waiting.answer.send(Err(unavailable(reason)));
    }
}

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.unwrap_or(Duration::ZERO).as_millis();
    Timestamp(u64::try_from(millis).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(size: usize) -> Waiting {
        Waiting {
            command: log::Command::default(),
            size,
            origin: Origin::Here,
            deadline: Instant::now(),
            ticket: Ticket::default(),
            answer: oneshot::channel().0,
        }
    }

    /// How the commands of these sizes are distributed over entries.
    async fn batches(sizes: impl IntoIterator<Item = usize>) -> Vec<Vec<usize>> {
        let (queue, mut waits) = mpsc::channel(QUEUE);
        for size in sizes {
            queue.send(waiting(size)).await.unwrap();
        }
        drop(queue);
        let (mut held, mut batches) = (None, Vec::new());
        while let Some(first) = next(&mut waits, &mut held).await {
            let batch = drain(first, &mut waits, &mut held);
            batches.push(batch.commands.iter().map(|waiting| waiting.size).collect());
        }
        batches
    }

    #[tokio::test]
    async fn an_entry_takes_what_waits_up_to_its_size_and_in_order() {
        let (small, half) = (100, BATCH_BYTES / 2);
        let batched = batches([small, half, half, small, BATCH_BYTES, small]).await;
        let expected: [&[usize]; 4] = [&[small, half], &[half, small], &[BATCH_BYTES], &[small]];
        assert_eq!(batched, expected);
    }

    #[tokio::test]
    async fn an_entry_takes_so_many_commands_and_no_more() {
        let batched = batches(vec![1; BATCH_COMMANDS + 2]).await;
        let counts: Vec<_> = batched.iter().map(Vec::len).collect();
        assert_eq!(counts, [BATCH_COMMANDS, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_is_waited_for_but_only_for_a_moment() {
        let (queue, mut waits) = mpsc::channel(QUEUE);
        let (mut batch, mut held) = (Batch::of(waiting(1)), None);
        let begun = Instant::now();
        for _ in 0..3 {
            queue.send(waiting(1)).await.unwrap();
        }
        gather(&mut batch, 3, &mut waits, &mut held).await;
        assert_eq!((batch.commands.len(), begun.elapsed()), (3, Duration::ZERO));
        gather(&mut batch, 9, &mut waits, &mut held).await;
        assert_eq!(batch.commands.len(), 4);
        assert!(begun.elapsed() >= MOMENT && begun.elapsed() < 3 * MOMENT);

        queue.send(waiting(BATCH_BYTES)).await.unwrap();
        gather(&mut batch, 9, &mut waits, &mut held).await;
        assert_eq!((batch.commands.len(), held.unwrap().size), (4, BATCH_BYTES));
    }

    #[test]
    fn a_command_is_either_taken_or_given_up() {
        let ticket = Ticket::default();
        drop(GiveUp(ticket.clone()));
        assert!(!ticket.claim());
        let ticket = Ticket::default();
        assert!(ticket.claim());
        assert!(!ticket.clone().claim());
    }
}
