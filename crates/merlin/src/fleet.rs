//! Questions every member answers: asked in parallel, and a member that does not answer is part of
//! the answer.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use merlin_model::Timestamp;
use merlin_proto::peer::member_report::Follower;
use merlin_proto::peer::{Answer, MemberReport, MemberRequest, Question, answer, question};
use merlin_proto::v1;
use merlin_raft::Role;
use prost::Message;

use crate::clock::{self, wire_time};
use crate::node::Node;
use crate::store::Peer;

/// A member that takes longer is reported as not answering; the others are shown.
const PATIENCE: Duration = Duration::from_secs(2);

/// Every member's status, this node's first-hand, in the order of their ids.
pub(crate) async fn status(node: &Node) -> Vec<v1::NodeStatus> {
    let question = question::Question::Status(v1::StatusRequest { local: true });
    let ask = async |member: Peer| {
        if member.id == node.store().node_id() {
            return node.status();
        }
        let unreachable = |error| v1::NodeStatus {
            name: member.name.clone(),
            id: member.id,
            error,
            ..Default::default()
        };
        match ask(node, member.id, question.clone()).await {
            Ok(answer::Answer::Status(status)) => status,
            Ok(answer::Answer::Error(error)) | Err(error) => unreachable(error),
            Ok(_) => unreachable("answered another question".to_owned()),
        }
    };
    join_all(node.store().peers().into_iter().map(ask)).await
}

/// Every member's live table.
pub(crate) async fn live(node: &Node, request: v1::LiveRequest) -> Vec<v1::NodeTable> {
    let local = v1::LiveRequest {
        local: true,
        ..request
    };
    let question = question::Question::Live(local.clone());
    let ask = async |member: Peer| {
        if member.id == node.store().node_id() {
            return node.live(&local).await;
        }
        let unreachable = |error| v1::NodeTable {
            name: member.name.clone(),
            id: member.id,
            error,
            ..Default::default()
        };
        match ask(node, member.id, question.clone()).await {
            Ok(answer::Answer::Live(table)) => table,
            Ok(answer::Answer::Error(error)) | Err(error) => unreachable(error),
            Ok(_) => unreachable("answered another question".to_owned()),
        }
    };
    join_all(node.store().peers().into_iter().map(ask)).await
}

/// What a member answered, or why it did not.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) id: u64,
    /// When the answer came, and how long it took.
    pub(crate) at: Timestamp,
    pub(crate) took: Duration,
    pub(crate) answer: Result<MemberReport, String>,
}

/// What every member says of itself as a member, this node first-hand.
pub(crate) async fn members(node: &Node) -> Vec<Asked> {
    let question = question::Question::Member(MemberRequest {});
    let ask = async |member: Peer| {
        let began = Instant::now();
        let answer = if member.id == node.store().node_id() {
            Ok(report(node))
        } else {
            match ask(node, member.id, question.clone()).await {
                Ok(answer::Answer::Member(report)) => Ok(report),
                // An earlier version is there, and cannot say more.
                Ok(_) => Ok(MemberReport::default()),
                Err(error) => Err(error),
            }
        };
        Asked {
            id: member.id,
            at: clock::now(),
            took: began.elapsed(),
            answer,
        }
    };
    join_all(node.store().peers().into_iter().map(ask)).await
}

/// What this node says of itself as a member.
fn report(node: &Node) -> MemberReport {
    let Some(raft) = node.store().raft() else {
        return MemberReport::default();
    };
    let status = raft.status();
    let leads = status.role == Role::Leader;
    let followers = status.members.into_iter().map(|member| Follower {
        id: member.id,
        lag: member.lag,
        last_contact: member.contact.and_then(|since| since.try_into().ok()),
        trouble: member.trouble.unwrap_or_default(),
    });
    let waiting = status.waiting.into_iter().map(|waiting| Follower {
        id: waiting.id,
        trouble: waiting.trouble.unwrap_or_default(),
        ..Default::default()
    });
    MemberReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        applied: status.applied.unwrap_or_default(),
        certificate_expires: raft.certificate_expires().map(wire_time),
        clock: Some(wire_time(clock::now())),
        disk_free: node.disk_free(),
        leads,
        followers: followers.filter(|_| leads).collect(),
        waiting: waiting.filter(|_| leads).collect(),
        not_moved: status.not_moved.unwrap_or_default(),
    }
}

async fn ask(
    node: &Node,
    member: u64,
    question: question::Question,
) -> Result<answer::Answer, String> {
    let question = Question {
        question: Some(question),
    }
    .encode_to_vec();
    let answer = node
        .store()
        .ask(member, question.into(), PATIENCE)
        .await
        .map_err(|error| error.to_string())?;
    let answer = Answer::decode(answer).map_err(|error| error.to_string())?;
    answer
        .answer
        .ok_or_else(|| "did not understand the question".to_owned())
}

/// Answers another member's question.
pub(crate) async fn answer(node: &Node, question: Bytes) -> Bytes {
    let answer = match Question::decode(question).map(|question| question.question) {
        Ok(Some(question::Question::Status(_))) => answer::Answer::Status(node.status()),
        Ok(Some(question::Question::Live(request))) => {
            answer::Answer::Live(node.live(&request).await)
        }
        Ok(Some(question::Question::Member(_))) => answer::Answer::Member(report(node)),
        // A later version may ask what this one does not know.
        Ok(None) => answer::Answer::Error("this node's version does not know the question".into()),
        Err(error) => answer::Answer::Error(error.to_string()),
    };
    Answer {
        answer: Some(answer),
    }
    .encode_to_vec()
    .into()
}
