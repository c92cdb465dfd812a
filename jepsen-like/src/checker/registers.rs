//! Is there any order at all? A search for a linearization of each service's life, by values and
//! real time alone.
//!
//! It knows nothing of revisions, so it can agree with the other checks only for its own reasons.
//! The search is Wing and Gong's with Lowe's memory of what was tried: linearize any operation that
//! began before every other pending one ended, and go back where no operation fits. An operation of
//! unknown outcome may be linearized at any time after its beginning, or never.

use std::collections::{BTreeMap, HashSet};

use super::{Law, Violations};
use crate::ops::{Action, History, Moment, Outcome, Refusal, Serial};

/// Configurations after which a search is given up.
const PATIENCE: usize = 200_000;
/// Operations of one service that are searched at once: bits of the set that remembers them.
const WINDOW: usize = 128;

/// What the service's value is, if it exists.
type State = Option<Serial>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// Sets the value; it must have been absent.
    Create(Serial),
    /// Sets the value; it must have been there.
    Edit(Serial),
    Delete {
        /// Whether it was there; unknown operations cannot say.
        found: Option<bool>,
    },
    Read(State),
    FindAbsent,
}

#[derive(Clone, Copy, Debug)]
struct Operation {
    start: Moment,
    /// `None`: unknown outcome, so it has no end.
    end: Option<Moment>,
    call: Call,
}

pub(super) fn check(history: &History, violations: &mut Violations) -> usize {
    let mut given_up = 0;
    for (service, mut operations) in by_service(history) {
        operations.sort_unstable_by_key(|operation| operation.start);
        match search(&operations) {
            Search::Found => {}
            Search::GivenUp => given_up += 1,
            Search::None => {
                let what = format!(
                    "no order of the {} operations on s{service} explains their answers",
                    operations.len()
                );
                violations.add(Law::Linearizable, what);
            }
        }
    }
    given_up
}

fn by_service(history: &History) -> BTreeMap<Serial, Vec<Operation>> {
    let mut services: BTreeMap<Serial, Vec<Operation>> = BTreeMap::new();
    // Without an expected revision: the search does not know revisions.
    for record in &history.writes {
        if record.write.action.server().is_some() {
            continue;
        }
        let call = match (record.write.action, record.outcome) {
            (_, Outcome::Nothing) => continue,
            (Action::CreateService { value, .. }, Outcome::Done { .. } | Outcome::Unknown) => {
                Call::Create(value)
            }
            (Action::EditService { value, .. }, Outcome::Done { .. } | Outcome::Unknown) => {
                Call::Edit(value)
            }
            (Action::EditService { .. }, Outcome::Refused(Refusal::NotFound)) => Call::FindAbsent,
            (Action::DeleteService { .. }, Outcome::Done { changed, .. }) => Call::Delete {
                found: Some(changed),
            },
            (Action::DeleteService { .. }, Outcome::Unknown) => Call::Delete { found: None },
            // A conflict, or a port that another service holds, says nothing about the value.
            _ => continue,
        };
        let end = (record.outcome != Outcome::Unknown).then_some(record.end);
        let operation = Operation {
            start: record.start,
            end,
            call,
        };
        let service = record.write.action.service();
        services.entry(service).or_default().push(operation);
    }
    let mut reads: Vec<_> = history.reads.iter().filter(|read| !read.stale).collect();
    reads.sort_unstable_by_key(|read| read.start);
    for (service, operations) in &mut services {
        let start = operations.iter().map(|o| o.start).min().unwrap_or(0);
        let end = operations.iter().filter_map(|o| o.end).max().unwrap_or(0);
        let first = reads.partition_point(|read| read.start < start);
        let mut free = 0;
        for read in reads[first..].iter().take_while(|read| read.start <= end) {
            // What can be linearized still can with a read less. Without reads that overlap, there
            // are moments at which nothing is under way.
            if read.start < free {
                continue;
            }
            free = read.end + 1;
            let value = read.content.services.get(service).map(|held| held.value);
            operations.push(Operation {
                start: read.start,
                end: Some(read.end),
                call: Call::Read(value),
            });
        }
    }
    services
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Search {
    Found,
    None,
    GivenUp,
}

/// Searches window by window: where nothing of known outcome is under way, all that matters of the
/// past is the state and which unknown operations have not happened yet.
fn search(operations: &[Operation]) -> Search {
    let mut states: HashSet<(State, Vec<usize>)> = HashSet::from([(None, Vec::new())]);
    for window in windows(operations) {
        let mut after = HashSet::new();
        let mut patience = PATIENCE;
        for (state, pending) in states {
            let mut indices = pending;
            indices.extend(window.clone());
            if indices.len() > WINDOW {
                return Search::GivenUp;
            }
            let mut seen = HashSet::new();
            if !explore(
                operations,
                &indices,
                (state, 0),
                &mut seen,
                &mut after,
                &mut patience,
            ) {
                return Search::GivenUp;
            }
        }
        if after.is_empty() {
            return Search::None;
        }
        states = after;
    }
    Search::Found
}

/// Ranges of operations between the moments at which nothing of known outcome is under way.
fn windows(operations: &[Operation]) -> Vec<std::ops::Range<usize>> {
    let mut windows = Vec::new();
    let mut begin = 0;
    let mut busy_until = 0;
    for (index, operation) in operations.iter().enumerate() {
        if index > begin && operation.start > busy_until {
            windows.push(begin..index);
            begin = index;
        }
        busy_until = busy_until.max(operation.end.unwrap_or(0));
    }
    windows.push(begin..operations.len());
    windows
}

/// Adds every state the operations can leave; false when that takes too long.
fn explore(
    operations: &[Operation],
    indices: &[usize],
    from: (State, u128),
    seen: &mut HashSet<(State, u128)>,
    after: &mut HashSet<(State, Vec<usize>)>,
    patience: &mut usize,
) -> bool {
    let mut stack = vec![from];
    while let Some((state, done)) = stack.pop() {
        if !seen.insert((state, done)) {
            continue;
        }
        if *patience == 0 {
            return false;
        }
        *patience -= 1;
        let pending = || {
            let all = indices.iter().enumerate();
            all.filter(move |(bit, _)| done & (1 << bit) == 0)
        };
        let first_end = pending()
            .filter_map(|(_, index)| operations[*index].end)
            .min();
        let Some(first_end) = first_end else {
            let left = pending().map(|(_, index)| *index).collect();
            after.insert((state, left));
            // What is left may also happen before the window ends, which the next one tries.
            continue;
        };
        for (bit, index) in pending() {
            let operation = operations[*index];
            if operation.start <= first_end
                && let Some(next) = step(state, operation.call)
            {
                stack.push((next, done | (1 << bit)));
            }
        }
    }
    true
}

/// The state after a call, where it can have been answered so.
fn step(state: State, call: Call) -> Option<State> {
    match (call, state) {
        (Call::Create(value), None) => Some(Some(value)),
        (Call::Edit(value), Some(_)) => Some(Some(value)),
        (Call::Delete { found }, _) if found.is_none_or(|found| found == state.is_some()) => {
            Some(None)
        }
        (Call::Read(value), state) if value == state => Some(state),
        (Call::FindAbsent, None) => Some(None),
        _ => None,
    }
}
