//! Has the leader decide what was proposed here.
//!
//! Once: a node that is not the leader either says so, instead of looking for another.

use std::time::Duration;

use merlin_model::Actor;
use merlin_model::catalog::Answer;
use merlin_model::store::ProposeError;
use merlin_proto::{log, peer};
use tokio::time::Instant;

use crate::cluster::{ClusterAnswer, ClusterChange, ClusterCommand};
use crate::peers::{CallError, Peers, Target};
use crate::proposer::{Decision, now, same, unavailable, unknown};

/// The leader answers this much before the caller gives up, or the answer would be in vain.
const MARGIN: Duration = Duration::from_millis(50);

/// Decisions of what a leader was asked to decide; one of them for each command.
type Message = peer::decision::Decision;

impl Peers {
    pub(crate) async fn forward_commands(
        &self,
        leader: &Target,
        commands: Vec<log::Command>,
        deadline: Instant,
    ) -> Vec<Decision> {
        let expected = commands.len();
        let body = log::proposal::Body::Commands(log::CommandBatch { commands });
        match self.forward(leader, body, deadline).await {
            Ok(decisions) if decisions.len() == expected => {
                decisions.into_iter().map(decision_from_proto).collect()
            }
            Ok(_) => same(&unknown(format!("{leader} lost count")), expected),
            Err(error) => same(&error, expected),
        }
    }

    pub(crate) async fn forward_cluster(
        &self,
        leader: &Target,
        change: ClusterChange,
        by: Actor,
        deadline: Instant,
    ) -> Result<ClusterAnswer, ProposeError> {
        let at = now();
        let command = ClusterCommand { at, by, change };
        let body = log::proposal::Body::Cluster((&command).into());
        let mut decisions = self.forward(leader, body, deadline).await?;
        match decisions.pop().and_then(|decision| decision.decision) {
            Some(Message::Cluster(answer)) => answer
                .try_into()
                .map_err(|error| unknown(format!("{leader} answered strangely: {error}"))),
            Some(Message::Unavailable(reason)) => Err(unavailable(reason)),
            Some(Message::Unknown(reason)) => Err(unknown(reason)),
            Some(Message::Outdated(reason)) => Err(ProposeError::Outdated { reason }),
            Some(Message::Answer(_)) | None => Err(unknown(format!("{leader} did not answer"))),
        }
    }

    async fn forward(
        &self,
        leader: &Target,
        body: log::proposal::Body,
        deadline: Instant,
    ) -> Result<Vec<peer::Decision>, ProposeError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = left.saturating_sub(MARGIN.min(left / 4)).as_millis();
        let request = peer::ProposeRequest {
            timeout_ms: u64::try_from(patience).unwrap_or(u64::MAX),
            proposal: Some(log::Proposal {
                format: crate::level::Level::FIRST.number(),
                body: Some(body),
            }),
        };
        match self.propose(leader, &request, left).await {
            Ok(answer) => Ok(answer.decisions),
            Err(error @ CallError::NotSent { .. }) => Err(unavailable(error.to_string())),
            Err(error @ CallError::NoAnswer { .. }) => Err(unknown(error.to_string())),
        }
    }
}

fn decision_from_proto(message: peer::Decision) -> Decision {
    match message.decision {
        Some(Message::Answer(answer)) => match Answer::try_from(&answer) {
            Ok(answer) => Ok(answer?),
            Err(error) => Err(unknown(format!("the leader answered strangely: {error}"))),
        },
        Some(Message::Unavailable(reason)) => Err(unavailable(reason)),
        Some(Message::Unknown(reason)) => Err(unknown(reason)),
        Some(Message::Outdated(reason)) => Err(ProposeError::Outdated { reason }),
        Some(Message::Cluster(_)) | None => Err(unknown("the leader did not answer")),
    }
}
