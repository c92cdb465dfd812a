//! Carries commands out: decides, writes under the one guard there is, and looks at what came of it.
//! The module above says what that guarantees.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use merlin_model::store::{ProposeError, ReadError};
use merlin_model::{Catalog, Command, Invalid, Mutation, Rejection, Reply, Revision, ServiceId};
use tokio::time::{Instant, timeout, timeout_at};

use super::client::{CallError, Client};
use super::protocol::{Ask, Index, Record, Refusal};
use super::{Shared, answers};
use crate::decide::{Decision, Guard, Write, decide};
use crate::layout::Place;
use crate::replica::Replica;

/// Deletions of servers under way at once.
const IN_FLIGHT: usize = 16;
/// A deletion that meets new servers time and again leaves them to the status.
const ROUNDS: usize = 5;

/// Why there is nobody to ask.
struct Away(String);

impl From<Away> for ProposeError {
    fn from(Away(reason): Away) -> Self {
        Self::Unavailable { reason }
    }
}

impl From<Away> for ReadError {
    fn from(Away(reason): Away) -> Self {
        Self::Unavailable { reason }
    }
}

/// How an attempt ended.
enum Attempt {
    Done(Index),
    /// Somebody was faster.
    Again,
}

impl Shared {
    /// Has etcd decide a command.
    pub(crate) async fn propose(
        &self,
        command: &Command,
        patience: Duration,
    ) -> Result<Reply, ProposeError> {
        hidden(&command.mutation)?;
        // Set while a change is on its way whose outcome is not known.
        let in_doubt = AtomicBool::new(false);
        let deadline = Instant::now() + patience;
        match timeout_at(deadline, self.answer(command, patience, &in_doubt)).await {
            Ok(outcome) => outcome,
            Err(_) if in_doubt.load(Ordering::Relaxed) => Err(ProposeError::Unknown {
                reason: format!("etcd did not answer within {patience:?}"),
            }),
            Err(_) => Err(ProposeError::Unavailable {
                reason: format!("etcd did not answer within {patience:?}"),
            }),
        }
    }

    /// The catalog as a quorum of etcd has it.
    pub(crate) async fn read(&self, patience: Duration) -> Result<Arc<Catalog>, ReadError> {
        let refreshed = timeout(patience, async {
            self.client().await?;
            self.refresh().await;
            Ok::<_, Away>(())
        });
        refreshed
            .await
            .map_err(|_| ReadError::Timeout(patience))??;
        Ok(Arc::new(self.views.replica.borrow().catalog().clone()))
    }

    /// Answers a request as it was answered before, or carries it out.
    async fn answer(
        &self,
        command: &Command,
        patience: Duration,
        in_doubt: &AtomicBool,
    ) -> Result<Reply, ProposeError> {
        let Some(id) = &command.request_id else {
            return self.carry_out(command, in_doubt).await;
        };
        let client = self.client().await?;
        let layout = self.views.replica.borrow().layout().clone();
        let claimed = answers::claim(&client, &layout, id, patience).await;
        if let Some(answer) = claimed.map_err(lost)? {
            return Ok(answer?);
        }
        let outcome = self.carry_out(command, in_doubt).await;
        in_doubt.store(outcome.is_ok(), Ordering::Relaxed);
        let noted = match &outcome {
            Ok(reply) => answers::remember(&client, &layout, id, &Ok(*reply)).await,
            Err(ProposeError::Rejected(rejection)) => {
                answers::remember(&client, &layout, id, &Err(rejection.clone())).await
            }
            Err(_) => answers::release(&client, &layout, id).await,
        };
        if let Err(error) = noted {
            tracing::warn!(request = id.as_str(), %error, "remembering an answer");
        }
        outcome
    }

    async fn carry_out(
        &self,
        command: &Command,
        in_doubt: &AtomicBool,
    ) -> Result<Reply, ProposeError> {
        let mut fresh = false;
        loop {
            let client = self.client().await?;
            let replica = self.views.replica.borrow().clone();
            let decision = decide(&replica, command);
            // A refusal must not rest on a copy that lags, nor a claim or a clearance, which nothing
            // guards.
            let unguarded = is_claim(&decision) || is_clearance(&decision);
            if !fresh && (decision.writes.is_empty() || unguarded) {
                self.refresh().await;
                fresh = true;
                continue;
            }
            if decision.writes.is_empty() {
                let revision = replica.revision();
                let changed = decision.answer?;
                return Ok(Reply { revision, changed });
            }
            let attempt = write(&client, &decision, in_doubt).await?;
            if let Attempt::Done(index) = attempt
                && self.stands(&client, &replica, &decision, index).await?
            {
                let revision = Revision(index);
                return Ok(Reply {
                    revision,
                    changed: true,
                });
            }
            in_doubt.store(false, Ordering::Relaxed);
            self.refresh().await;
            fresh = true;
        }
    }

    /// The client to use. While there is none for long there is no point in waiting.
    async fn client(&self) -> Result<Arc<Client>, Away> {
        let mut clients = self.client.subscribe();
        let grace = self.views.status.borrow().grace();
        let present = timeout(grace, clients.wait_for(Option::is_some)).await;
        let present = present.ok().and_then(Result::ok);
        present.and_then(|client| client.clone()).ok_or_else(|| {
            let reason = self.views.status.borrow().unavailable.clone();
            Away(reason.unwrap_or_else(|| "etcd does not answer".to_owned()))
        })
    }

    /// Returns once the replica has everything that was written before.
    async fn refresh(&self) {
        let mut made = self.lists_made.subscribe();
        let mut mine = 0;
        self.lists_wanted.send_modify(|wanted| {
            *wanted += 1;
            mine = *wanted;
        });
        // The sender is in `self`.
        let _ = made.wait_for(|made| *made >= mine).await;
    }

    /// Whether a write is in the catalog that every earlier change led to. If not it is taken back.
    async fn stands(
        &self,
        client: &Client,
        before: &Replica,
        decision: &Decision,
        index: Index,
    ) -> Result<bool, ProposeError> {
        let mut horizon = self.horizon.subscribe();
        // The sender is in `self`.
        let _ = horizon.wait_for(|horizon| *horizon >= index).await;
        let Some((key, _)) = put_of(decision) else {
            return Ok(true);
        };
        let after = self.views.replica.borrow().clone();
        let Some(back) = contradiction(before, &after, key, index) else {
            return Ok(true);
        };
        let undo = match &back {
            Back::Delete => Ask::delete(key, index),
            Back::To(value) => Ask::swap(key, value, index),
        };
        match client.change(&undo).await {
            // Changed again meanwhile: whoever did that looks after it.
            Ok(_) | Err(CallError::Refused(Refusal::Changed | Refusal::NotFound { .. })) => {
                Ok(false)
            }
            Err(error) => Err(ProposeError::Unknown {
                reason: format!("taking back a change that contradicts another: {error}"),
            }),
        }
    }
}

/// What takes a write back.
enum Back {
    Delete,
    To(Vec<u8>),
}

/// What has to be done about a write at an index that contradicts an earlier one.
fn contradiction(before: &Replica, after: &Replica, key: &str, index: Index) -> Option<Back> {
    let place = after.layout().place(key.as_bytes())?;
    let (id, name) = match &place {
        Place::Service(id) => (id, None),
        Place::Server { service, name } => (service, Some(name.as_str())),
        Place::Misplaced { .. } => return None,
    };
    let at = Revision(index);
    // Whoever wrote later has decided on what is there now.
    if after.changed(id, name) != Some(at) {
        return None;
    }
    let in_catalog = after
        .catalog()
        .service(id)
        .is_some_and(|service| match name {
            None => service.changed == at,
            Some(_) => service.servers.values().any(|server| server.changed == at),
        });
    // What was known was decided on. This came in between.
    let unseen = |changed| changed > before.revision() && changed < at;
    let unseen_claim = |rival: &ServiceId| after.changed(rival, None).is_some_and(unseen);
    let is_first = name.is_some() || !after.rivals(id).any(unseen_claim);
    let fits = name.is_some() || !keeps_out(after, id, unseen);
    if in_catalog && is_first && fits {
        return None;
    }
    let is_orphan = name.is_some() && after.changed(id, None).is_none();
    Some(match before.value(id, name) {
        Some(value) if !is_orphan => Back::To(value.to_vec()),
        _ => Back::Delete,
    })
}

/// Whether a service does not suit servers that changed then.
fn keeps_out(after: &Replica, id: &ServiceId, then: impl Fn(Revision) -> bool) -> bool {
    let Some(service) = after.catalog().service(id) else {
        return false;
    };
    let mut records = after.servers(id);
    records.any(|server| then(server.changed) && !service.servers.contains_key(&server.key))
}

/// Makes the writes of a decision: the guarded one, and what goes with it.
async fn write(
    client: &Client,
    decision: &Decision,
    in_doubt: &AtomicBool,
) -> Result<Attempt, ProposeError> {
    let all = decision.writes.iter().find_map(|write| match write {
        Write::DeleteAll { prefix } => Some(prefix.trim_end_matches('/')),
        _ => None,
    });
    if let Some((key, value)) = put_of(decision) {
        let ask = match guard_of(decision, key) {
            Some(at) => Ask::swap(key, value, at),
            None => {
                // What a deletion left behind must not become the new service's.
                if let Some(directory) = all {
                    clear(client, directory, Index::MAX).await.map_err(lost)?;
                }
                Ask::create(key, value)
            }
        };
        return guarded(client, &ask, in_doubt).await;
    }
    let deleted = decision.writes.iter().find_map(|write| match write {
        Write::Delete { key } => Some(key),
        _ => None,
    });
    let mut index = None;
    if let Some(key) = deleted
        && let Some(at) = guard_of(decision, key)
    {
        match guarded(client, &Ask::delete(key, at), in_doubt).await? {
            Attempt::Done(done) => index = Some(done),
            Attempt::Again => return Ok(Attempt::Again),
        }
    }
    if let Some(directory) = all {
        let cleared = clear(client, directory, index.unwrap_or(Index::MAX)).await;
        match (cleared, index) {
            (Ok(last), _) => index = Some(index.unwrap_or(last)),
            // The service is gone, which is what was asked for.
            (Err(error), Some(_)) => {
                tracing::warn!(directory, %error, "servers of a deleted service are left");
            }
            (Err(error), None) => return Err(lost(error)),
        }
    }
    // Nothing to delete any more is somebody else's doing.
    Ok(index.map_or(Attempt::Again, Attempt::Done))
}

async fn guarded(
    client: &Client,
    ask: &Ask,
    in_doubt: &AtomicBool,
) -> Result<Attempt, ProposeError> {
    in_doubt.store(true, Ordering::Relaxed);
    let outcome = client.change(ask).await;
    match outcome {
        Ok(index) => Ok(Attempt::Done(index)),
        Err(CallError::Unknown(reason)) => Err(ProposeError::Unknown { reason }),
        Err(error) => {
            in_doubt.store(false, Ordering::Relaxed);
            match error {
                CallError::Refused(
                    Refusal::Exists | Refusal::Changed | Refusal::NotFound { .. },
                ) => Ok(Attempt::Again),
                error => Err(lost(error)),
            }
        }
    }
}

/// Deletes the values below a directory that were there before an index, and the directory if
/// nothing is left in it. Answers the index of the last deletion.
async fn clear(client: &Client, directory: &str, before: Index) -> Result<Index, CallError> {
    let mut last = 0;
    for _ in 0..ROUNDS {
        let listing = client.list(directory).await?;
        last = last.max(listing.index);
        let of_old = |record: &Record| record.created < before;
        let old: Vec<_> = listing.records.into_iter().filter(of_old).collect();
        if old.is_empty() {
            break;
        }
        // Boxed, or the compiler cannot tell that the whole may move between threads (Rust #102211).
        let deletions = old.into_iter().map(|record| {
            let deletion = async move {
                let ask = Ask::delete(&record.key, record.modified);
                client.change(&ask).await
            };
            deletion.boxed()
        });
        let deletions: Vec<_> = futures::stream::iter(deletions)
            .buffer_unordered(IN_FLIGHT)
            .collect()
            .await;
        for outcome in deletions {
            match outcome {
                Ok(index) => last = last.max(index),
                // Changed meanwhile: the next round sees it.
                Err(CallError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    // One that is not empty, or not there, stays as it is.
    match client.change(&Ask::remove_directory(directory)).await {
        Ok(_) | Err(CallError::Refused(_)) => Ok(last),
        Err(error) => Err(error),
    }
}

fn put_of(decision: &Decision) -> Option<(&str, &[u8])> {
    decision.writes.iter().find_map(|write| match write {
        Write::Put { key, value } => Some((key.as_str(), value.as_slice())),
        _ => None,
    })
}

/// Index at which the key was seen; nothing when it was absent.
fn guard_of(decision: &Decision, wanted: &str) -> Option<Index> {
    decision.guards.iter().find_map(|guard| match guard {
        Guard::Unchanged { key, since } if key == wanted => Some(since.0),
        _ => None,
    })
}

fn is_claim(decision: &Decision) -> bool {
    let quiet = |guard: &Guard| matches!(guard, Guard::Quiet { .. });
    decision.guards.iter().any(quiet)
}

/// Whether it deletes what a service left behind that is gone. A deletion takes the servers one by one,
/// and a copy may have seen the first of that and not the last.
fn is_clearance(decision: &Decision) -> bool {
    let is_gone = |write: &Write| match write {
        Write::Delete { key } => guard_of(decision, key).is_none(),
        Write::Put { .. } | Write::DeleteAll { .. } => false,
    };
    decision.writes.iter().any(is_gone)
}

/// Refuses names that etcd would hide.
fn hidden(mutation: &Mutation) -> Result<(), Rejection> {
    match mutation {
        Mutation::CreateService { id, .. } if id.as_str().starts_with('_') => Err(Invalid::new(
            "id",
            "must not begin with an underscore: etcd 2 hides such keys",
        )
        .into()),
        _ => Ok(()),
    }
}

/// An error before anything was changed, or of something that changes nothing.
fn lost(error: CallError) -> ProposeError {
    ProposeError::Unavailable {
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use merlin_model::Timestamp;

    use super::*;
    use crate::layout::Layout;
    use crate::replica::Stored;

    #[test]
    fn servers_whose_service_is_gone_are_not_cleared_away_on_an_old_copy() {
        let layout = Layout::default();
        let id = ServiceId::new("web").unwrap();
        let stored = Stored {
            value: "anything".into(),
            created: Revision(1),
            changed: Revision(1),
        };
        let server = (
            layout.named_server(&id, "10.0.0.1:80").into_bytes(),
            Some(stored.clone()),
        );
        let service = (layout.service(&id).into_bytes(), Some(stored));
        let deletion = |records: Vec<_>| {
            let mut replica = Replica::new(Layout::default());
            replica.step(Revision(1), records);
            let mutation = Mutation::DeleteService { id: id.clone() };
            decide(&replica, &Command::new(Timestamp::default(), mutation))
        };
        let clearance = deletion(vec![server.clone()]);
        assert!(!clearance.writes.is_empty() && is_clearance(&clearance));
        let guarded = deletion(vec![service, server]);
        assert!(!guarded.writes.is_empty() && !is_clearance(&guarded));
        assert!(!is_clearance(&deletion(vec![])));
    }
}
