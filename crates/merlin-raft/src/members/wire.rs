//! Changes of the members as nodes pass them on.

use std::time::Duration;

use merlin_proto::peer::change_answer::{self, Answer};
use merlin_proto::peer::change_request;
use merlin_proto::{access, peer};
use tokio::time::Instant;

use super::{Asked, Change, ChangeError, Changed};

/// The leader answers this much before whoever asks gives up, or the answer would be in vain.
const MARGIN: Duration = Duration::from_millis(50);

pub(super) fn request(asked: Asked, left: Duration) -> peer::ChangeRequest {
    use change_request::Change as Message;
    let Asked { change, by, .. } = asked;
    let patience = left.saturating_sub(MARGIN.min(left / 4)).as_millis();
    let change = match change {
        Change::Remove { node, force } => Message::Remove(change_request::Remove { node, force }),
        Change::Promote(node) => Message::Promote(node),
        Change::Demote(node) => Message::Demote(node),
        Change::TransferLeader(to) => Message::TransferLeader(to.unwrap_or_default()),
    };
    peer::ChangeRequest {
        timeout_ms: u64::try_from(patience).unwrap_or(u64::MAX),
        change: Some(change),
        actor: access::actor_to_log(&by),
    }
}

/// None for what a later version may ask.
pub(crate) fn request_from_proto(request: peer::ChangeRequest) -> Option<Asked> {
    use change_request::Change as Message;
    let by = access::actor_from_log(request.actor.as_ref());
    let deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
    let change = match request.change? {
        Message::Remove(change_request::Remove { node, force }) => Change::Remove { node, force },
        Message::Promote(node) => Change::Promote(node),
        Message::Demote(node) => Change::Demote(node),
        Message::TransferLeader(to) => Change::TransferLeader(Some(to).filter(|to| !to.is_empty())),
    };
    Some(Asked {
        change,
        by,
        deadline,
    })
}

pub(crate) fn answer_to_proto(answer: Result<Changed, ChangeError>) -> peer::ChangeAnswer {
    let answer = match answer {
        Ok(changed) => Answer::Changed(change_answer::Changed {
            node_id: changed.node,
            name: changed.name,
            voters_before: changed.before.into_iter().collect(),
            voters_after: changed.after.into_iter().collect(),
            already: changed.already,
        }),
        Err(ChangeError::Refused(reason)) => Answer::Refused(reason),
        Err(ChangeError::Unavailable(reason)) => Answer::Unavailable(reason),
        Err(ChangeError::Unknown(reason)) => Answer::Unknown(reason),
    };
    let answer = Some(answer);
    peer::ChangeAnswer { answer }
}

pub(super) fn answer(message: peer::ChangeAnswer) -> Result<Changed, ChangeError> {
    match message.answer {
        Some(Answer::Changed(changed)) => Ok(Changed {
            node: changed.node_id,
            name: changed.name,
            before: changed.voters_before.into_iter().collect(),
            after: changed.voters_after.into_iter().collect(),
            already: changed.already,
        }),
        Some(Answer::Refused(reason)) => Err(ChangeError::Refused(reason)),
        Some(Answer::Unavailable(reason)) => Err(ChangeError::Unavailable(reason)),
        Some(Answer::Unknown(reason)) => Err(ChangeError::Unknown(reason)),
        None => Err(ChangeError::Unknown("the leader did not answer".into())),
    }
}

#[cfg(test)]
mod tests {
    use merlin_model::Actor;

    use super::*;

    #[test]
    fn every_change_and_every_answer_survives_the_way() {
        let left = Duration::from_secs(2);
        for change in [
            Change::Remove {
                node: "n2".into(),
                force: true,
            },
            Change::Promote("2".into()),
            Change::Demote("2".into()),
            Change::TransferLeader(None),
            Change::TransferLeader(Some("n3".into())),
        ] {
            let asked = Asked {
                change: change.clone(),
                by: Actor::Node(7),
                deadline: Instant::now() + left,
            };
            let request = request(asked, left);
            assert_eq!(request.timeout_ms, 1950);
            let asked = request_from_proto(request).unwrap();
            assert_eq!((asked.change, asked.by), (change, Actor::Node(7)));
        }
        let changed = Changed {
            node: 2,
            name: "n2".into(),
            before: [1, 2].into(),
            after: [1].into(),
            already: false,
        };
        for given in [
            Ok(changed),
            Err(ChangeError::Refused("no".into())),
            Err(ChangeError::Unavailable("not now".into())),
            Err(ChangeError::Unknown("perhaps".into())),
        ] {
            assert_eq!(answer(answer_to_proto(given.clone())), given);
        }
    }
}
