//! Reads that see every write acknowledged before they began.

use std::sync::Arc;
use std::time::Duration;

use merlin_model::store::ReadError;
use merlin_model::{Catalog, Revision};
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::error::CallError;
use super::session::Session;
use crate::replica::Replica;

/// How long to wait for a change that is on its way before asking again.
const CATCH_UP: Duration = Duration::from_millis(100);
/// A copy that differs for that many times in a row, with nothing coming, has missed something.
const STUCK: u32 = 5;

impl Shared {
    /// The catalog, not older than the moment of asking.
    pub(crate) async fn read(&self, patience: Duration) -> Result<Arc<Catalog>, ReadError> {
        let deadline = Instant::now() + patience;
        match timeout_at(deadline, self.read_until(deadline)).await {
            Ok(read) => read,
            Err(_) => Err(ReadError::Timeout(patience)),
        }
    }

    async fn read_until(&self, deadline: Instant) -> Result<Arc<Catalog>, ReadError> {
        let mut stuck = 0;
        loop {
            let Some(session) = self.connected(deadline, false).await else {
                let reason = self.views.status.borrow().unavailable.clone();
                let reason = reason.unwrap_or_else(|| "no connection".to_owned());
                return Err(ReadError::Unavailable { reason });
            };
            let seen = self.views.replica.borrow().clone();
            let missing = match self.missing(&session, &seen).await {
                Ok(Some(missing)) => missing,
                Ok(None) => return Ok(self.held()),
                Err(error) => {
                    self.elsewhere(error, &session).await?;
                    continue;
                }
            };
            let mut replica = self.views.replica.clone();
            let arrived = replica.wait_for(|replica| replica.revision() >= missing);
            // What it waited for is let go of here. Held on to while the replica is looked at again, it
            // would wait for the next change to be published, and that for it.
            let arrived = matches!(
                timeout_at(Instant::now() + CATCH_UP, arrived).await,
                Ok(Ok(_))
            );
            if arrived {
                return Ok(self.held());
            }
            match self.views.replica.borrow().revision() == seen.revision() {
                true => stuck += 1,
                false => stuck = 0,
            }
            if stuck == STUCK {
                self.doubt.notify_one();
            }
        }
    }

    /// Up to which revision a copy lacks something, if it does.
    async fn missing(
        &self,
        session: &Session,
        seen: &Replica,
    ) -> Result<Option<Revision>, CallError> {
        // Cheap, and enough where nobody but merlin uses this etcd.
        let now = session.revision(seen.layout()).await?;
        if self.horizon() >= now || self.views.replica.borrow().revision() >= now {
            return Ok(None);
        }
        // etcd's revision moves for many reasons. What counts is whether the records did.
        let newer = session.newer(seen.layout(), seen.revision()).await?;
        let lacks = newer.changed || newer.count != seen.len();
        Ok(lacks.then_some(newer.revision))
    }

    fn held(&self) -> Arc<Catalog> {
        Arc::new(self.views.replica.borrow().catalog().clone())
    }

    /// Leaves a member that does not answer: whoever comes next can be asked the same.
    async fn elsewhere(&self, error: CallError, failed: &Session) -> Result<(), ReadError> {
        if let CallError::NotTaken(_) | CallError::Unknown(_) | CallError::Timeout(_) = error {
            self.suspicion.notify_one();
            self.another_session(failed).await;
            return Ok(());
        }
        Err(ReadError::Unavailable {
            reason: error.to_string(),
        })
    }
}
