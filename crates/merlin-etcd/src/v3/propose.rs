//! Commands: decided here, confirmed by etcd.
//!
//! A decision on a copy that lags fails its guards; then the copy catches up and the command is
//! decided again, until its deadline. Of several writers one always gets on, so nobody waits for
//! somebody who waits for him.
//!
//! When an attempt ends without an answer its outcome is unknown. A command with a request id is
//! tried again: the answer that the first attempt may have left behind is a guard of the second,
//! so that one of them happens and the other learns of it. A command without one is not.
//!
//! A deletion of what is not there changes nothing, and so has no revision of its own. It answers with
//! one that is not older than any that was told before: its copy is brought up to date first.

use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_client::TxnOp;
use merlin_model::catalog::Answer;
use merlin_model::store::ProposeError;
use merlin_model::{Command, Reply, Revision};
use tokio::time::{Instant, timeout, timeout_at};

use super::error::CallError;
use super::session::{Session, operation, put_on_lease};
use super::{Shared, answers};
use crate::decide::{Decision, Guard, Write, decide};
use crate::replica::Replica;

/// An attempt that can be repeated is, on another member, after this long without an answer.
const ATTEMPT: Duration = Duration::from_secs(2);
/// The change that made a guard fail is on its way here; if it takes longer, something is amiss.
const CATCH_UP: Duration = Duration::from_millis(500);
/// How long an answer waits for this node's own copy to hold the change.
const OWN_WRITE: Duration = Duration::from_millis(250);

impl Shared {
    /// Has the store decide a command.
    pub(crate) async fn propose(
        &self,
        command: &Command,
        patience: Duration,
    ) -> Result<Reply, ProposeError> {
        let deadline = Instant::now() + patience;
        let mut attempts = Attempts::default();
        let mut fresh = false;
        loop {
            let Some(session) = self.connected(deadline, attempts.in_doubt.is_some()).await else {
                let status = self.views.status.borrow();
                let reason = status.unavailable.clone();
                return Err(attempts.give_up(reason.unwrap_or_else(|| "no connection".to_owned())));
            };
            if Instant::now() >= deadline {
                let not_taken = attempts.not_taken.take();
                let reason = not_taken
                    .unwrap_or_else(|| "others kept changing what the command is about".to_owned());
                return Err(attempts.give_up(reason));
            }
            let replica = self.views.replica.borrow().clone();
            match self
                .attempt(&session, &replica, command, fresh, deadline)
                .await
            {
                Ok(Attempt::Answered(answer)) => {
                    let reply = answer?;
                    self.await_own_write(reply).await;
                    return Ok(reply);
                }
                Ok(Attempt::Idle) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let read = self.read(left).await;
                    read.map_err(|error| attempts.give_up(error.to_string()))?;
                    fresh = true;
                }
                Ok(Attempt::Outdated) => self.catch_up(&replica, deadline, &mut attempts).await,
                Err(failure) => self.failed(failure, &session, &mut attempts).await?,
            }
        }
    }

    /// Decides once and has etcd confirm it.
    async fn attempt(
        &self,
        session: &Session,
        replica: &Replica,
        command: &Command,
        fresh: bool,
        deadline: Instant,
    ) -> Result<Attempt, Failure> {
        let Decision {
            answer,
            mut guards,
            writes,
        } = decide(replica, command);
        let answer = answer.map(|changed| Reply {
            // A change gets its revision from etcd.
            revision: if changed {
                Revision::ZERO
            } else {
                replica.revision()
            },
            changed,
        });
        if !fresh && answer.as_ref().is_ok_and(|reply| !reply.changed) {
            return Ok(Attempt::Idle);
        }
        let request = command.request_id.as_ref().filter(|_| self.remembers());
        let telling = deleted(&writes).filter(|_| self.remembers());
        let telling = telling.map(|key| TxnOp::put(replica.layout().deleted(), key, None));
        let tells = telling.is_some();
        let mut operations: Vec<TxnOp> = writes.into_iter().map(operation).chain(telling).collect();
        let mut look_up = replica.layout().services();
        if let Some(id) = request {
            look_up = replica.layout().request(id);
            let (put, guard) = self.remember(session, &look_up, &answer).await?;
            operations.push(put);
            guards.push(guard);
        }
        let (writes, remembering) = (!operations.is_empty(), request.is_some());
        let beside = remembering || tells;
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = if remembering || !writes {
            left.min(ATTEMPT)
        } else {
            left
        };
        let outcome = session
            .commit(&guards, operations, &look_up, patience)
            .await;
        let outcome = outcome.map_err(|error| Failure {
            error,
            writes,
            remembering,
            beside,
        })?;
        match outcome.found {
            _ if outcome.held => Ok(Attempt::Answered(answer.map(|reply| Reply {
                revision: if reply.changed {
                    outcome.revision
                } else {
                    reply.revision
                },
                ..reply
            }))),
            Some(stored) if remembering => match answers::decode(&stored) {
                Ok(answer) => Ok(Attempt::Answered(answer)),
                Err(reason) => Err(Failure {
                    error: CallError::Refused(format!("{look_up} holds no answer: {reason}")),
                    writes: false,
                    remembering,
                    beside,
                }),
            },
            _ => Ok(Attempt::Outdated),
        }
    }

    /// Keeps the answer for whoever asks again, unless there is one.
    async fn remember(
        &self,
        session: &Session,
        key: &str,
        answer: &Answer,
    ) -> Result<(TxnOp, Guard), Failure> {
        let lease = self.leases.present(session).await;
        let lease = lease.map_err(|error| Failure {
            error,
            writes: false,
            remembering: true,
            beside: true,
        })?;
        let put = put_on_lease(key, answers::encode(answer), lease);
        Ok((
            put,
            Guard::Absent {
                key: key.to_owned(),
            },
        ))
    }

    /// What to do about an attempt without an answer: try again, or tell.
    async fn failed(
        &self,
        failure: Failure,
        session: &Session,
        attempts: &mut Attempts,
    ) -> Result<(), ProposeError> {
        let Failure {
            error,
            writes,
            remembering,
            beside,
        } = failure;
        match error {
            CallError::NoLease(_) => {
                self.leases.forget().await;
                Ok(())
            }
            error if beside && error.is_denied() => {
                if !self.forgets.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        prefix = %self.views.replica.borrow().layout(),
                        "etcd permits no keys under v1: repeated requests are not recognised, nor is \
                         it known after a restart when something was deleted last"
                    );
                }
                Ok(())
            }
            CallError::Refused(reason) | CallError::Compacted(reason) => {
                Err(attempts.give_up(reason))
            }
            CallError::NotTaken(reason) => {
                attempts.not_taken = Some(format!("etcd at {}: {reason}", session.endpoint));
                self.suspicion.notify_one();
                self.another_session(session).await;
                Ok(())
            }
            CallError::Unknown(_) | CallError::Timeout(_) => {
                let reason = format!("etcd at {}: {error}", session.endpoint);
                self.suspicion.notify_one();
                if writes && !remembering {
                    return Err(ProposeError::Unknown { reason });
                }
                if writes {
                    attempts.in_doubt = Some(reason);
                }
                self.another_session(session).await;
                Ok(())
            }
        }
    }

    /// Waits for the copy to move on from what a decision was made on.
    async fn catch_up(&self, decided_on: &Replica, deadline: Instant, attempts: &mut Attempts) {
        let mut replica = self.views.replica.clone();
        let before = decided_on.revision();
        let moved = replica.wait_for(move |replica| replica.revision() != before);
        let until = deadline.min(Instant::now() + CATCH_UP);
        if timeout_at(until, moved).await.is_ok() {
            attempts.stuck = 0;
            return;
        }
        attempts.stuck += 1;
        if attempts.stuck > 1 {
            self.doubt.notify_one();
        }
    }

    async fn await_own_write(&self, reply: Reply) {
        let mut replica = self.views.replica.clone();
        let seen = replica.wait_for(|replica| replica.revision() >= reply.revision);
        // Whoever reads here meanwhile with less than linearizable consistency may not see it.
        let _ = timeout(OWN_WRITE, seen).await;
    }

    /// A connection to use. While there is none for long there is no point in waiting, unless
    /// something has to be found out.
    pub(super) async fn connected(&self, deadline: Instant, patient: bool) -> Option<Session> {
        let mut sessions = self.session.subscribe();
        let grace = self.views.status.borrow().grace();
        let until = match patient {
            true => deadline,
            false => deadline.min(Instant::now() + grace),
        };
        let present = timeout_at(until, sessions.wait_for(Option::is_some)).await;
        present.ok()?.ok()?.clone()
    }

    /// Waits a while for a connection other than one that has failed.
    pub(super) async fn another_session(&self, failed: &Session) {
        let mut sessions = self.session.subscribe();
        let other =
            sessions.wait_for(|present| present.as_ref().is_none_or(|present| !present.is(failed)));
        let _ = timeout(ATTEMPT, other).await;
    }

    /// Whether answers to requests, and when something was deleted, can be kept.
    fn remembers(&self) -> bool {
        !self.forgets.load(Ordering::Relaxed)
    }
}

/// The first key that is deleted, if nothing is put: a put has a revision to be found by.
fn deleted(writes: &[Write]) -> Option<String> {
    let mut deleted = None;
    for write in writes {
        match write {
            Write::Put { .. } => return None,
            Write::Delete { key } | Write::DeleteAll { prefix: key } => {
                deleted.get_or_insert_with(|| key.clone());
            }
        }
    }
    deleted
}

/// How one attempt went that has an answer.
enum Attempt {
    Answered(Answer),
    /// It changes nothing, as far as a copy tells that may lag.
    Idle,
    /// It was decided on what is no longer so.
    Outdated,
}

/// How one attempt went that has none.
struct Failure {
    error: CallError,
    /// Whether it would have written something.
    writes: bool,
    /// Whether that includes its answer, so that it can be repeated.
    remembering: bool,
    /// Whether it would have written anything under `v1`.
    beside: bool,
}

/// What earlier attempts of a command came to.
#[derive(Debug, Default)]
struct Attempts {
    /// Why it is not known whether one of them happened.
    in_doubt: Option<String>,
    /// Why the last one was not even begun.
    not_taken: Option<String>,
    /// How often nothing new came, though something was.
    stuck: u32,
}

impl Attempts {
    fn give_up(&mut self, reason: String) -> ProposeError {
        match self.in_doubt.take() {
            Some(reason) => ProposeError::Unknown { reason },
            None => ProposeError::Unavailable { reason },
        }
    }
}
