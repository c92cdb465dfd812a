//! Questions every member answers: asked in parallel, and a member that does not answer is part of
//! the answer.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use merlin_proto::peer::{Answer, Question, answer, question};
use merlin_proto::v1;
use prost::Message;

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
            Ok(answer::Answer::Live(_)) => unreachable("answered another question".to_owned()),
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
            Ok(answer::Answer::Status(_)) => unreachable("answered another question".to_owned()),
        }
    };
    join_all(node.store().peers().into_iter().map(ask)).await
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
