//! A refused write must have met a catalog, while it was under way, that refuses it so; one that
//! found nothing to do must have found nothing at the very revision it was told.

use super::order::Floors;
use super::replay::Replay;
use super::versions::At;
use super::{Law, Violations};
use crate::model::judge;
use crate::ops::{Action, History, Outcome, Refusal, Revision, Write};

pub(super) fn check(
    history: &History,
    replay: &Replay,
    floors: &Floors,
    violations: &mut Violations,
) {
    for (index, record) in history.writes.iter().enumerate() {
        match record.outcome {
            Outcome::Refused(refusal) => {
                let low = floors.writes[index];
                let high = replay.ceiling(record.end).max(low);
                if replay.is_verified(low, high)
                    && !can_be_refused(replay, &record.write, refusal, low, high)
                {
                    let what = format!("{record}, but no revision from {low} to {high} says so");
                    violations.add(Law::RefusalsAreFounded, what);
                }
            }
            Outcome::Done {
                revision,
                changed: false,
            } => {
                let at = At {
                    versions: &replay.versions,
                    revision,
                };
                if replay.is_verified(revision, revision) && judge(&at, &record.write) != Ok(false)
                {
                    let what = format!("{record}, but at that revision there was");
                    violations.add(Law::AnswersFollow, what);
                }
            }
            _ => {}
        }
    }
}

fn can_be_refused(
    replay: &Replay,
    write: &Write,
    refusal: Refusal,
    low: Revision,
    high: Revision,
) -> bool {
    let versions = &replay.versions;
    let (service, server) = (write.action.service(), write.action.server());
    let mut moments = vec![low];
    if let Some(line) = versions.services.get(&service) {
        moments.extend(line.within(low, high).map(|(revision, _)| revision));
    }
    if let Action::CreateService { port, .. } = write.action
        && let Some(line) = versions.ports.get(&port)
    {
        moments.extend(line.within(low, high).map(|(revision, _)| revision));
    }
    if let Some(server) = server
        && let Some(line) = versions.servers.get(&(service, server))
    {
        moments.extend(line.within(low, high).map(|(revision, _)| revision));
    }
    moments.into_iter().any(|revision| {
        let at = At { versions, revision };
        judge(&at, write) == Err(refusal)
    })
}
