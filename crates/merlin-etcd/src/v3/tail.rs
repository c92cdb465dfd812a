//! What a watch tells, step by step. Pure.
//!
//! `horizon` is the revision up to which the records are known to be complete; a watch resumes
//! after it. Two things in etcd's protocol ask for care:
//!
//! * The revision in a message's header may be ahead of its events: etcd catches a watcher up in
//!   portions. So events move the horizon to their own revisions only.
//! * The answer to a progress request may overtake events (etcd #15220, fixed in 3.4.25 and 3.5.8),
//!   so it counts when the next one comes, half a minute later. Progress that etcd tells unasked
//!   goes the events' way and counts at once.

use merlin_model::Revision;

use crate::replica::{History, Stored};

/// One message of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) cluster: u64,
    /// etcd's revision when it sent this.
    pub(super) revision: Revision,
    pub(super) body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// The watch has begun.
    Created,
    /// It has ended: the revision to watch from is gone.
    Compacted,
    Canceled(String),
    /// In the order of their revisions; those of one revision come together.
    Events(Vec<Event>),
    /// Nothing happened up to the revision.
    Progress {
        asked_for: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) revision: Revision,
    pub(super) key: Vec<u8>,
    /// Nothing when it was deleted.
    pub(super) stored: Option<Stored>,
}

/// All that changed at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) revision: Revision,
    pub(super) updates: Vec<(Vec<u8>, Option<Stored>)>,
}

/// Why a watch cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// What happened in between is not to be had: the records have to be listed.
    Relist { history: History, reason: String },
    /// It can be resumed, on another connection.
    Lost(String),
}

/// Follows one cluster's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) cluster: u64,
    pub(super) horizon: Revision,
    /// Told on request, and not yet beyond doubt.
    told: Option<Revision>,
}

impl Tail {
    /// Begins after a list.
    pub(super) fn new(cluster: u64, listed: Revision) -> Self {
        Self {
            cluster,
            horizon: listed,
            told: None,
        }
    }

    /// How a list relates to what was followed so far.
    pub(super) fn history_of(&self, cluster: u64, listed: Revision) -> History {
        if cluster == self.cluster && listed >= self.horizon {
            History::Same
        } else {
            History::Another
        }
    }

    /// Forgets what was told on another connection.
    pub(super) fn resumed(&mut self) {
        self.told = None;
    }

    /// Takes in one message: the steps it brings.
    pub(super) fn hear(&mut self, message: Message) -> Result<Vec<Step>, End> {
        let Message {
            cluster,
            revision,
            body,
        } = message;
        if cluster != self.cluster {
            return Err(End::Relist {
                history: History::Another,
                reason: "another etcd cluster answers".to_owned(),
            });
        }
        match body {
            Body::Compacted => {
                return Err(End::Relist {
                    history: History::Same,
                    reason: "what happened meanwhile is compacted".to_owned(),
                });
            }
            Body::Canceled(reason) => return Err(End::Lost(reason)),
            Body::Created | Body::Progress { .. } | Body::Events(_) => {}
        }
        if revision < self.horizon {
            // A member answers a watch from what it has itself, and may have less than the one
            // before it. A list is answered by all of them, and tells which it is.
            return Err(End::Relist {
                history: History::Same,
                reason: format!(
                    "etcd is at revision {revision}, before {}: this member lags, or etcd was \
                     restored or wiped",
                    self.horizon
                ),
            });
        }
        match body {
            Body::Progress { asked_for: true } => {
                if let Some(told) = self.told.replace(revision) {
                    self.horizon = self.horizon.max(told);
                }
                Ok(Vec::new())
            }
            Body::Progress { asked_for: false } => {
                self.horizon = revision;
                Ok(Vec::new())
            }
            Body::Events(events) => Ok(self.steps(events)),
            Body::Created | Body::Compacted | Body::Canceled(_) => Ok(Vec::new()),
        }
    }

    fn steps(&mut self, events: Vec<Event>) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for event in events {
            // etcd repeats nothing, but to take something twice would turn time back.
            if event.revision <= self.horizon
                && steps.last().is_none_or(|s| s.revision != event.revision)
            {
                continue;
            }
            self.horizon = event.revision;
            let update = (event.key, event.stored);
            match steps.last_mut() {
                Some(step) if step.revision == event.revision => step.updates.push(update),
                _ => steps.push(Step {
                    revision: event.revision,
                    updates: vec![update],
                }),
            }
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: u64 = 7;

    fn message(revision: u64, body: Body) -> Message {
        Message {
            cluster: CLUSTER,
            revision: Revision(revision),
            body,
        }
    }

    fn deleted(revision: u64, key: &str) -> Event {
        Event {
            revision: Revision(revision),
            key: key.into(),
            stored: None,
        }
    }

    fn tail(horizon: u64) -> Tail {
        Tail::new(CLUSTER, Revision(horizon))
    }

    #[test]
    fn events_of_one_revision_are_one_step() {
        let mut tail = tail(5);
        let events = vec![deleted(6, "a"), deleted(6, "b"), deleted(9, "c")];
        let steps = tail.hear(message(9, Body::Events(events))).unwrap();
        let seen: Vec<_> = steps
            .iter()
            .map(|s| (s.revision.0, s.updates.len()))
            .collect();
        assert_eq!(seen, [(6, 2), (9, 1)]);
        assert_eq!(tail.horizon, Revision(9));
    }

    #[test]
    fn events_do_not_prove_more_than_they_say() {
        let mut tail = tail(5);
        // A portion of what there is to catch up with.
        tail.hear(message(5_000, Body::Events(vec![deleted(6, "a")])))
            .unwrap();
        assert_eq!(tail.horizon, Revision(6));
    }

    #[test]
    fn progress_on_request_counts_when_the_next_comes() {
        let mut tail = tail(5);
        let asked = Body::Progress { asked_for: true };
        tail.hear(message(8, asked.clone())).unwrap();
        assert_eq!(tail.horizon, Revision(5));
        // Overtaken by the answer.
        let late = tail
            .hear(message(8, Body::Events(vec![deleted(7, "a")])))
            .unwrap();
        assert_eq!(late.len(), 1);
        tail.hear(message(12, asked.clone())).unwrap();
        assert_eq!(tail.horizon, Revision(8));
        tail.resumed();
        tail.hear(message(20, asked)).unwrap();
        assert_eq!(tail.horizon, Revision(8), "told on another connection");
    }

    #[test]
    fn progress_that_comes_with_the_events_counts_at_once() {
        let mut tail = tail(5);
        tail.hear(message(8, Body::Progress { asked_for: false }))
            .unwrap();
        assert_eq!(tail.horizon, Revision(8));
    }

    #[test]
    fn a_member_that_lags_is_not_taken_for_a_restored_etcd_before_the_list_says_so() {
        for body in [Body::Created, Body::Progress { asked_for: true }] {
            let end = tail(5).hear(message(4, body)).unwrap_err();
            let End::Relist { history, reason } = end else {
                panic!("{end:?}")
            };
            assert_eq!(history, History::Same);
            assert!(reason.contains("revision 4, before 5"), "{reason}");
        }
        assert_eq!(tail(5).history_of(CLUSTER, Revision(5)), History::Same);
        assert_eq!(tail(5).history_of(CLUSTER, Revision(4)), History::Another);
    }

    #[test]
    fn an_exchanged_etcd_is_listed_anew() {
        let other = Message {
            cluster: 8,
            ..message(9, Body::Created)
        };
        let end = tail(5).hear(other).unwrap_err();
        assert!(matches!(
            end,
            End::Relist {
                history: History::Another,
                ..
            }
        ));
        assert_eq!(tail(5).history_of(8, Revision(9)), History::Another);
    }

    #[test]
    fn compaction_asks_for_a_list_and_anything_else_for_another_connection() {
        let end = tail(5).hear(message(9, Body::Compacted)).unwrap_err();
        assert!(matches!(
            end,
            End::Relist {
                history: History::Same,
                ..
            }
        ));
        let end = tail(5).hear(message(9, Body::Canceled("no leader".into())));
        assert_eq!(end, Err(End::Lost("no leader".into())));
    }

    #[test]
    fn nothing_is_taken_twice() {
        let mut tail = tail(5);
        let events = vec![deleted(5, "a"), deleted(6, "b")];
        assert_eq!(
            tail.hear(message(6, Body::Events(events.clone())))
                .unwrap()
                .len(),
            1
        );
        assert_eq!(tail.hear(message(6, Body::Events(events))).unwrap(), []);
    }
}
