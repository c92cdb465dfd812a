//! Judges a recorded history. Pure: the same history is always judged the same.
//!
//! Every acknowledged write has a revision, so no search is needed: the history is replayed in the
//! order of revisions by a model of its own ([`crate::model`]), and everything that was answered
//! must follow from that. One module per promise:
//!
//! * `replay`: every answer follows from the writes before it; a write happens once or never;
//!   what is read is what was written.
//! * `order`: revisions agree with real time; no read is older than what was known before it.
//! * `refusals`: whoever was refused could be refused.
//! * `watches`: no gap, no repetition, no other order.
//! * `terms`: leaders succeed one another.
//! * `tables`: the data plane of a node is what its catalog asks for, and no less on the way.
//! * `registers`: a search for linearizations that knows nothing of revisions, as a second
//!   opinion.

mod dense;
mod order;
mod refusals;
mod registers;
mod replay;
mod tables;
mod terms;
#[cfg(test)]
mod tests;
mod versions;
mod watches;

use std::fmt;

pub use dense::dense;

use crate::ops::{History, Outcome};

/// A promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Law {
    /// A revision belongs to one write.
    OneWritePerRevision,
    /// What is acknowledged follows from the writes before it, and stays.
    AnswersFollow,
    /// A write happens at most once.
    AtMostOnce,
    /// What was refused, or promised not to have happened, has not.
    RefusedChangesNothing,
    /// Nothing is there that nobody wrote.
    OnlyWhatWasWritten,
    /// A refusal has its reason.
    RefusalsAreFounded,
    /// What ended before something else began comes before it.
    RealTimeOrder,
    /// A linearizable read is never older than what was known before it.
    FreshReads,
    /// A read shows one revision, whole.
    ReadsShowARevision,
    /// A running node never forgets.
    NodesGoForward,
    /// A watch tells everything once, in order.
    WatchesAreComplete,
    /// No node goes back to an earlier leader.
    LeadersSucceed,
    /// What an earlier version does not know waits until the last node is upgraded, and no longer.
    UpgradesWait,
    /// The table is what the catalog asks for.
    TableFollowsCatalog,
    /// No rule of a service that lives goes away.
    RulesStay,
    /// No weight becomes 0 without a failing check.
    WeightsStay,
    /// Everything ends up the same everywhere.
    Convergence,
    /// Values and real time alone allow what was seen.
    Linearizable,
    /// A daemon ends only when it is told to, or cannot use its disk.
    DaemonsStayUp,
}

/// A promise that was broken, and how that shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub law: Law,
    pub what: String,
}

/// What a history amounts to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    pub violations: Vec<Violation>,
    /// Revisions that nobody can say everything about, because no watch saw them and more than one
    /// write of unknown outcome could have made them.
    pub unverified: usize,
    /// Unknown writes that turned out to have happened.
    pub happened: usize,
    pub revisions: u64,
    /// Linearization searches that were given up as too large.
    pub searches_given_up: usize,
}

/// More of one kind are not worth reading.
const MOST: usize = 5;

#[derive(Debug, Default)]
struct Violations(Vec<Violation>);

impl Violations {
    fn add(&mut self, law: Law, what: impl Into<String>) {
        if self.0.iter().filter(|known| known.law == law).count() < MOST {
            self.0.push(Violation::new(law, what));
        }
    }
}

#[must_use]
pub fn check(history: &History) -> Judgement {
    let mut violations = Violations::default();
    let replay = replay::replay(history, &mut violations);
    let floors = order::check(history, &replay, &mut violations);
    refusals::check(history, &replay, &floors, &mut violations);
    watches::check(history, &replay, &mut violations);
    terms::check(history, &mut violations);
    tables::check(history, &replay, &mut violations);
    let searches_given_up = registers::check(history, &mut violations);
    let unknown = |write: &&usize| history.writes[**write].outcome == Outcome::Unknown;
    let happened = replay.steps.iter().filter_map(|step| step.write.as_ref());
    Judgement {
        violations: violations.0,
        unverified: replay.unverified(),
        happened: happened.filter(unknown).count(),
        revisions: replay.last(),
        searches_given_up,
    }
}

impl Violation {
    #[must_use]
    pub fn new(law: Law, what: impl Into<String>) -> Self {
        let what = what.into();
        Self { law, what }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.law, self.what)
    }
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneWritePerRevision => "a revision belongs to one write",
            Self::AnswersFollow => "answers follow from the writes before them",
            Self::AtMostOnce => "a write happens at most once",
            Self::RefusedChangesNothing => "what was refused changes nothing",
            Self::OnlyWhatWasWritten => "only what was written is there",
            Self::RefusalsAreFounded => "refusals have a reason",
            Self::RealTimeOrder => "revisions follow real time",
            Self::FreshReads => "linearizable reads are fresh",
            Self::ReadsShowARevision => "a read shows one revision, whole",
            Self::NodesGoForward => "a running node never goes back",
            Self::WatchesAreComplete => "a watch tells everything once, in order",
            Self::LeadersSucceed => "leaders succeed one another",
            Self::UpgradesWait => "what is new waits for the last upgrade",
            Self::TableFollowsCatalog => "the table follows the catalog",
            Self::RulesStay => "no rule of a live service vanishes",
            Self::WeightsStay => "no weight drops to 0 without a failing check",
            Self::Convergence => "everything converges",
            Self::Linearizable => "values and time are linearizable",
            Self::DaemonsStayUp => "daemons stay up",
        })
    }
}
