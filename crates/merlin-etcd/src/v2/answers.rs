//! Answers to requests, for whoever asks again.
//!
//! A request is claimed before it is carried out, so that of two tries at the same time one waits for
//! what the other comes to. Claims and answers are kept under a hidden directory, where neither
//! listings nor watches see them, and go by themselves: the claim of a node that died soon, answers
//! after ten minutes.

use std::time::Duration;

use merlin_model::RequestId;
use merlin_model::catalog::Answer;
use merlin_proto::log;
use prost::Message;

use super::client::{CallError, Client};
use super::protocol::{Ask, Refusal};
use crate::layout::Layout;

/// A client that retries for longer than this has given up.
const RETENTION_SECONDS: u64 = 10 * 60;
/// How often somebody else's try is looked after.
const PAUSE: Duration = Duration::from_millis(50);
/// No answer is as short as a claim.
const CLAIM: &[u8] = b"";

/// Waits until the request is ours to carry out, or answered.
pub(super) async fn claim(
    client: &Client,
    layout: &Layout,
    id: &RequestId,
    patience: Duration,
) -> Result<Option<Answer>, CallError> {
    let key = key(layout, id);
    // Whoever claims does not carry anything out after that.
    let claim = Ask::create_for(&key, CLAIM, patience.as_secs() + 1);
    loop {
        match client.change(&claim).await {
            Ok(_) => return Ok(None),
            Err(CallError::Refused(Refusal::Exists)) => {}
            Err(error) => return Err(error),
        }
        if let Some(record) = client.get(&key).await? {
            if record.value != CLAIM {
                let answer = log::Answer::decode(&*record.value);
                return Ok(answer
                    .ok()
                    .and_then(|answer| Answer::try_from(&answer).ok()));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Keeps an answer in place of the claim.
pub(super) async fn remember(
    client: &Client,
    layout: &Layout,
    id: &RequestId,
    answer: &Answer,
) -> Result<(), CallError> {
    let value = log::Answer::from(answer).encode_to_vec();
    let ask = Ask::put_for(&key(layout, id), &value, RETENTION_SECONDS);
    client.change(&ask).await.map(drop)
}

/// Gives up a claim: the request was not answered.
pub(super) async fn release(
    client: &Client,
    layout: &Layout,
    id: &RequestId,
) -> Result<(), CallError> {
    let ask = Ask::delete_value(&key(layout, id), CLAIM);
    client.change(&ask).await.map(drop)
}

/// A slash in an id would be a directory.
fn key(layout: &Layout, id: &RequestId) -> String {
    let id = id.as_str().replace('%', "%25").replace('/', "%2F");
    format!("{}/v1/_requests/{id}", layout.prefix())
}
