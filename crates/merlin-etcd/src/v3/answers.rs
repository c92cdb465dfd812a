//! Answers to requests with an id, kept in etcd for as long as a client may ask again.
//!
//! An answer is put in the transaction that it is about, so that it is there exactly if the
//! transaction happened, whoever made it and whoever asks. Nodes of the earlier system know nothing
//! of it, and nothing is lost but the memory if somebody deletes it.

use std::time::Duration;

use merlin_model::catalog::Answer;
use merlin_model::{Reply, Revision};
use prost::Message;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::error::CallError;
use super::session::Session;
use crate::replica::Stored;

/// A client that retries for longer than this has given up.
const KEEP: Duration = Duration::from_secs(10 * 60);

/// The leases that answers end with: one for all that a node gives within [`KEEP`], so that a
/// change is one request and not two.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<Option<Lease>>);

#[derive(Clone, Copy, Debug)]
struct Lease {
    id: i64,
    until: Instant,
}

impl Leases {
    /// A lease that runs for at least [`KEEP`] more.
    pub(super) async fn present(&self, session: &Session) -> Result<i64, CallError> {
        let mut lease = self.0.lock().await;
        match *lease {
            Some(present) if Instant::now() < present.until => Ok(present.id),
            _ => {
                let until = Instant::now() + KEEP;
                let id = session.lease(KEEP * 2).await?;
                *lease = Some(Lease { id, until });
                Ok(id)
            }
        }
    }

    /// The present lease has ended before its time: etcd was restored, or somebody revoked it.
    pub(super) async fn forget(&self) {
        self.0.lock().await.take();
    }
}

/// The value of an answer. The revision of a change is that of the key that holds the answer.
pub(super) fn encode(answer: &Answer) -> Vec<u8> {
    merlin_proto::log::Answer::from(answer).encode_to_vec()
}

pub(super) fn decode(stored: &Stored) -> Result<Answer, String> {
    let message = merlin_proto::log::Answer::decode(&*stored.value);
    let message = message.map_err(|error| error.to_string())?;
    let answer = Answer::try_from(&message).map_err(|error| error.to_string())?;
    Ok(answer.map(|reply| Reply {
        revision: match reply.revision {
            Revision::ZERO => stored.created,
            revision => revision,
        },
        ..reply
    }))
}

#[cfg(test)]
mod tests {
    use merlin_model::{Rejection, ServiceId};

    use super::*;

    #[test]
    fn an_answer_is_read_as_it_was_given() {
        let stored = |answer: &Answer| Stored {
            value: encode(answer).into(),
            created: Revision(7),
            changed: Revision(7),
        };
        let reply = |revision, changed| {
            Ok(Reply {
                revision: Revision(revision),
                changed,
            })
        };
        assert_eq!(decode(&stored(&reply(0, true))), Ok(reply(7, true)));
        assert_eq!(decode(&stored(&reply(5, false))), Ok(reply(5, false)));
        let id = ServiceId::new("web").unwrap();
        let rejection = Err(Rejection::ServiceExists(id));
        assert_eq!(decode(&stored(&rejection)), Ok(rejection));
    }
}
