//! Streams of catalog changes.

use std::collections::VecDeque;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, Stream};
use merlin_model::{EventGroup, EventRing, Revision};
use merlin_proto::listing::watch_response;
use merlin_proto::status::ToStatus;
use merlin_proto::v1::WatchResponse;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// A quiet stream says this often how far it has come, so that a client can tell quiet from dead
/// and resume from a recent revision.
const PROGRESS: Duration = Duration::from_secs(5);
/// Changes taken from the ring at a time: a client that lags costs this much memory and no more.
const STRIDE: usize = 256;

/// One client's watch. The ring is level-triggered, so a slow client cannot make it lose anything
/// short of being overtaken by compaction, which it is told.
struct Watcher {
    ring: watch::Receiver<EventRing>,
    /// Revision up to which the client has been told.
    seen: Revision,
    pending: VecDeque<EventGroup>,
    incarnation: String,
    /// Ready, with the reason, when the client may not go on watching.
    ended: BoxFuture<'static, Status>,
    shutdown: CancellationToken,
    greeted: bool,
}

/// Streams every change after `from`, or from now on.
pub(super) fn stream(
    ring: watch::Receiver<EventRing>,
    from: Option<Revision>,
    incarnation: String,
    ended: impl Future<Output = Status> + Send + 'static,
    shutdown: CancellationToken,
) -> impl Stream<Item = Result<WatchResponse, Status>> {
    let seen = from.unwrap_or_else(|| ring.borrow().newest());
    let watcher = Watcher {
        ring,
        seen,
        pending: VecDeque::new(),
        incarnation,
        ended: ended.boxed(),
        shutdown,
        greeted: false,
    };
    futures::stream::try_unfold(watcher, Watcher::next)
}

impl Watcher {
    async fn next(mut self) -> Result<Option<(WatchResponse, Self)>, Status> {
        loop {
            if self.pending.is_empty() {
                self.refill()?;
            }
            if !self.greeted {
                // The first answer says where the stream stands, before anything happens.
                self.greeted = true;
                return Ok(Some((self.progress(), self)));
            }
            if let Some(group) = self.pending.pop_front() {
                self.seen = group.revision;
                return Ok(Some((watch_response(&group, &self.incarnation), self)));
            }
            // Waiting takes nothing, so whichever arm wins, nothing is lost with the others.
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(None),
                status = &mut self.ended => return Err(status),
                changed = self.ring.changed() => if changed.is_err() { return Ok(None) },
                () = tokio::time::sleep(PROGRESS) => return Ok(Some((self.progress(), self))),
            }
        }
    }

    fn refill(&mut self) -> Result<(), Status> {
        let ring = self.ring.borrow_and_update();
        let groups = ring.after(self.seen).map_err(|e| e.to_status())?;
        self.pending.extend(groups.take(STRIDE).cloned());
        Ok(())
    }

    fn progress(&self) -> WatchResponse {
        WatchResponse {
            revision: self.seen.0,
            incarnation: self.incarnation.clone(),
            events: Vec::new(),
        }
    }
}
