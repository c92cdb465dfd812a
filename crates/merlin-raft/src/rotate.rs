//! Replaces the cluster's certificate authority, turn by turn.
//!
//! Whoever runs this drives it; run again, by whomever, it goes on where it was. The turns themselves
//! and what each means are in [`crate::rotation`], and every node follows them by itself
//! ([`crate::renewal`]).

use std::sync::atomic::Ordering;
use std::time::Duration;

use merlin_model::Actor;
use merlin_model::store::ProposeError;
use tokio::time::{Instant, timeout_at};

use crate::cluster::{ClusterAnswer, ClusterChange};
use crate::identity::{Ca, CaError, CaFingerprint};
use crate::level::{self, Greeting};
use crate::proposer::{now, unavailable};
use crate::rotation::{Rotation, Stage, Turn};
use crate::store::RaftStore;

/// Between two times that members are asked how far they are.
const PAUSE: Duration = Duration::from_millis(200);

/// What was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotated {
    pub authority: CaFingerprint,
    /// Still trusted.
    pub former: Option<CaFingerprint>,
}

/// Why the rotation does not go on. What was reached stays, and nothing of it keeps nodes or clients
/// from each other.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error(transparent)]
    Store(#[from] ProposeError),
    #[error("there is no former certificate authority that is still trusted: nothing to finish")]
    NothingToFinish,
    #[error(
        "the new certificate authority does not sign yet: run `merlin cluster ca rotate` first"
    )]
    NotYet,
    #[error(
        "waiting for {} to follow: bring it back or remove it from the cluster, then run this again",
        .0.join(", ")
    )]
    Waiting(Vec<String>),
    #[error("no new certificate authority could be made")]
    Create(#[from] CaError),
}

impl RaftStore {
    /// Has all members show certificates of a new authority and trust the former one too; or, to
    /// finish that, the new one alone.
    pub async fn rotate_authority(
        &self,
        finish: bool,
        by: Actor,
        patience: Duration,
    ) -> Result<Rotated, RotateError> {
        let deadline = Instant::now() + patience;
        let caught_up = self.inner.reads.catch_up(&self.inner.views.applied);
        let late = |_| unavailable("the cluster did not answer in time");
        let caught_up = timeout_at(deadline, caught_up).await.map_err(late)?;
        caught_up.map_err(|error| unavailable(error.to_string()))?;
        // Only what this call has done makes it go on to a rotation's end.
        let mut begun = false;
        loop {
            let rotation = self.inner.views.cluster.borrow().rotation.clone();
            let turn = match (&rotation.stage, finish) {
                (Stage::Settled, true) if begun => {
                    self.followed(&rotation, deadline).await?;
                    return Ok(self.rotated());
                }
                (Stage::Settled, true) => return Err(RotateError::NothingToFinish),
                (Stage::Settled, false) => {
                    let ca = Ca::create(self.inner.me.cluster, now())?;
                    Turn::Begin((&ca).into())
                }
                (Stage::Trusting(_), true) => return Err(RotateError::NotYet),
                (Stage::Trusting(_), false) => Turn::Reissue,
                (Stage::Reissuing(_), true) => Turn::Finish,
                (Stage::Reissuing(_), false) => {
                    self.followed(&rotation, deadline).await?;
                    return Ok(self.rotated());
                }
            };
            if rotation.stage != Stage::Settled {
                self.followed(&rotation, deadline).await?;
            }
            begun = true;
            let change = ClusterChange::Rotate(rotation.step, turn);
            let registry = self.registry();
            let answer = registry.decide_change(change, by.clone(), deadline).await?;
            if let ClusterAnswer::Rotated(step) = answer {
                let mut cluster = self.inner.views.cluster.clone();
                let applied = cluster.wait_for(|cluster| cluster.rotation.step >= step);
                let applied = timeout_at(deadline, applied).await;
                let gone = |_| unavailable("the store has stopped");
                drop(applied.map_err(late)?.map_err(gone)?);
            }
        }
    }

    fn rotated(&self) -> Rotated {
        let cluster = self.inner.views.cluster.borrow();
        let present = cluster.founding.as_ref().map(|founding| &founding.ca);
        Rotated {
            authority: CaFingerprint::of(present.map_or(&[], |ca| &ca.certificate)),
            former: cluster.rotation.also_trusted().map(CaFingerprint::of),
        }
    }

    /// What an operator has begun, and what is left to do of it, in words.
    pub fn rotation_under_way(&self) -> Option<&'static str> {
        match self.inner.views.cluster.borrow().rotation.stage {
            Stage::Settled => None,
            Stage::Trusting(_) => Some(
                "a new certificate authority is trusted and signs nothing yet: run `merlin \
                 cluster ca rotate` again",
            ),
            Stage::Reissuing(_) => Some(
                "the former certificate authority is still trusted: make new clients for those on \
                 other hosts, then run `merlin cluster ca rotate --finish`",
            ),
        }
    }

    /// Waits until every member has followed the last turn.
    async fn followed(&self, rotation: &Rotation, deadline: Instant) -> Result<(), RotateError> {
        loop {
            let behind = self.behind(rotation.step).await;
            if behind.is_empty() {
                return Ok(());
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(RotateError::Waiting(behind));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The members that have not followed as far as that, in words.
    async fn behind(&self, step: u64) -> Vec<String> {
        let members = level::members(&self.inner.consensus.raft.metrics().borrow());
        let own = self.inner.authority_step.load(Ordering::Relaxed);
        let suffices = |greeting: &Greeting| greeting.authority_step >= step;
        level::behind(&self.inner.peers, members, own >= step, suffices).await
    }
}

#[cfg(test)]
mod tests;
