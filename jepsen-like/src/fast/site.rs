//! A cluster in this process, as clients and faults see it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use merlin_model::store::{Consistency, ProposeError};
use merlin_model::{Command, Mutation, Rejection, RequestId, Timestamp};
use merlin_proto::types::ListResponse;
use merlin_proto::{server, service};
use merlin_raft::simulation::{self, Machine, Network};
use merlin_raft::{RaftStore, Timers};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{SNAPSHOT_EVERY, TIMERS};
use crate::client::{self, Odd};
use crate::model::Catalog;
use crate::ops::{Action, Life, Node, Outcome, Refusal, Revision, Write};
use crate::workload::{Site, Speaks};

/// How long a sync of a good disk takes.
pub(super) const SYNC: Duration = Duration::from_millis(2);

/// Between the turns of two nodes to start. openraft chooses a node's patience once, when it starts,
/// and looks whether it is over once in a heartbeat: in a world without any jitter two voters that
/// look in one moment would be candidates in the same moments for ever.
const TURN: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) network: Network,
    slots: Vec<Mutex<Slot>>,
    /// Where files are of nodes that are started again.
    files: PathBuf,
    begun: Instant,
}

#[derive(Debug)]
struct Slot {
    state: State,
    life: Life,
    timers: Timers,
    /// Cancelled when the process ends.
    end: CancellationToken,
}

#[derive(Debug)]
enum State {
    Up(simulation::Node),
    Off(Machine),
    /// Between the two.
    Moving,
}

impl Cluster {
    /// From machines that are off, each with the timers it will have.
    pub(super) fn new(machines: Vec<(Machine, Timers)>, files: PathBuf) -> Self {
        let slot = |(machine, timers)| {
            Mutex::new(Slot {
                state: State::Off(machine),
                life: 0,
                timers,
                end: CancellationToken::new(),
            })
        };
        Self {
            network: Network::default(),
            slots: machines.into_iter().map(slot).collect(),
            files,
            begun: Instant::now(),
        }
    }

    /// Every node starts at a moment of the heartbeat that is its own.
    fn until_turn(&self, node: Node) -> Duration {
        let heartbeat = TIMERS.heartbeat.as_millis();
        let now = self.begun.elapsed().as_millis() % heartbeat;
        let turn = (TURN * u32::from(node)).as_millis();
        let wait = (turn + heartbeat - now) % heartbeat;
        Duration::from_millis(u64::try_from(wait).unwrap_or_default())
    }

    fn slot(&self, node: Node) -> MutexGuard<'_, Slot> {
        let slot = &self.slots[usize::from(node) - 1];
        slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        1..=self.size()
    }

    pub(super) fn store(&self, node: Node) -> Option<RaftStore> {
        match &self.slot(node).state {
            State::Up(up) => Some(up.store.clone()),
            State::Off(_) | State::Moving => None,
        }
    }

    /// Starts a node that is off; nothing else happens to one that is not.
    pub(super) async fn start(&self, node: Node) -> Result<()> {
        let (machine, timers) = {
            let mut slot = self.slot(node);
            match std::mem::replace(&mut slot.state, State::Moving) {
                State::Off(machine) => (machine, slot.timers),
                other => {
                    slot.state = other;
                    return Ok(());
                }
            }
        };
        sleep(self.until_turn(node)).await;
        let started = machine.start(timers, SNAPSHOT_EVERY, SYNC, &self.network);
        let started = started.await.context("a node cannot be started")?;
        let mut slot = self.slot(node);
        slot.state = State::Up(started);
        slot.life += 1;
        slot.end = CancellationToken::new();
        Ok(())
    }

    /// Ends a node that runs, at once. Of what its disk was not done with, `kept` is there later.
    pub(super) fn kill(&self, node: Node, kept: impl FnOnce(usize) -> usize) -> Result<()> {
        let mut slot = self.slot(node);
        match std::mem::replace(&mut slot.state, State::Moving) {
            State::Up(up) => {
                let files = self.files.join(format!("{node}-{}", slot.life));
                slot.state = State::Off(up.kill(&self.network, kept, files)?);
                slot.end.cancel();
            }
            other => slot.state = other,
        }
        Ok(())
    }

    pub(super) fn slow_disk(&self, node: Node, latency: Duration) {
        if let State::Up(up) = &self.slot(node).state {
            up.slow_disk(latency);
        }
    }
}

impl Site for Cluster {
    type Client = Session;

    fn size(&self) -> Node {
        Node::try_from(self.slots.len()).unwrap_or(Node::MAX)
    }

    fn life(&self, node: Node) -> Life {
        self.slot(node).life
    }

    fn has_transactions(&self) -> bool {
        true
    }

    fn client(self: &Arc<Self>, node: Node) -> Session {
        Session {
            cluster: Arc::clone(self),
            node,
        }
    }
}

/// What a client has of one node.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) cluster: Arc<Cluster>,
    pub(super) node: Node,
}

/// How asking ended.
pub(super) enum Asked<T> {
    Answered(T),
    /// The process ended first.
    CutOff,
    /// There was no process.
    Refused,
}

impl Session {
    pub(super) async fn ask<T, F>(&self, ask: impl FnOnce(RaftStore) -> F) -> Asked<T>
    where
        F: Future<Output = T>,
    {
        let (store, end) = {
            let slot = self.cluster.slot(self.node);
            match &slot.state {
                State::Up(up) => (up.store.clone(), slot.end.clone()),
                State::Off(_) | State::Moving => return Asked::Refused,
            }
        };
        tokio::select! {
            biased;
            () = end.cancelled() => Asked::CutOff,
            answer = ask(store) => Asked::Answered(answer),
        }
    }
}

impl Speaks for Session {
    async fn write(
        &self,
        write: &Write,
        id: Option<&str>,
        patience: Duration,
    ) -> Result<Outcome, Odd> {
        let command = Command {
            request_id: id.and_then(|id| RequestId::new(id).ok()),
            expected_revision: write.expected.map(merlin_model::Revision),
            ..Command::new(Timestamp(0), mutation(write)?)
        };
        let propose = |store: RaftStore| async move { store.propose(command, patience).await };
        match self.ask(propose).await {
            Asked::Answered(Ok(reply)) => Ok(Outcome::Done {
                revision: reply.revision.0,
                changed: reply.changed,
            }),
            Asked::Answered(Err(error)) => outcome(error),
            Asked::CutOff => Ok(Outcome::Unknown),
            Asked::Refused => Ok(Outcome::Nothing),
        }
    }

    async fn read(
        &self,
        stale: bool,
        patience: Duration,
    ) -> Result<Result<(Revision, Catalog), Odd>, Status> {
        let consistency = match stale {
            true => Consistency::Stale,
            false => Consistency::Linearizable,
        };
        let read = |store: RaftStore| async move { store.read(consistency, patience).await };
        let catalog = match self.ask(read).await {
            Asked::Answered(read) => {
                read.map_err(|error| Status::unavailable(error.to_string()))?
            }
            Asked::CutOff | Asked::Refused => return Err(Status::unavailable("it is down")),
        };
        let listed = ListResponse::from(&*catalog);
        Ok(client::catalog(&listed).map(|shown| (listed.revision, shown)))
    }
}

fn mutation(write: &Write) -> Result<Mutation, Odd> {
    let action = &write.action;
    let mutation = match action {
        Action::CreateService { .. } => service::create(&client::service(action)),
        Action::EditService { .. } => service::update(&client::service(action)),
        Action::DeleteService { service } => service::delete(&format!("s{service}")),
        Action::CreateServer { .. } => server::create(&client::server(action)),
        Action::DeleteServer { .. } => server::delete(&client::server(action)),
        Action::EditServer { .. } => {
            let update = server::update(&client::server(action));
            return update.map_err(|error| Odd::Garbled(error.to_string()));
        }
    };
    mutation.map_err(|error| Odd::Garbled(error.to_string()))
}

fn outcome(error: ProposeError) -> Result<Outcome, Odd> {
    Ok(match error {
        ProposeError::Rejected(rejection) => Outcome::Refused(match rejection {
            Rejection::ServiceExists(_)
            | Rejection::KeyTaken { .. }
            | Rejection::ServerExists { .. } => Refusal::Exists,
            Rejection::ServiceNotFound(_) | Rejection::ServerNotFound { .. } => Refusal::NotFound,
            Rejection::Conflict { .. } => Refusal::Conflict,
            Rejection::Invalid(invalid) => {
                let status = Status::invalid_argument(invalid.to_string());
                return Err(Odd::Refused(Box::new(status)));
            }
        }),
        ProposeError::Unavailable { .. }
        | ProposeError::Outdated { .. }
        | ProposeError::TooLarge { .. } => Outcome::Nothing,
        ProposeError::Unknown { .. } => Outcome::Unknown,
    })
}
