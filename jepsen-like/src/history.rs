//! What was asked of a store, what it answered, and whether what it holds later fits that.
//!
//! Every write adds or deletes one object with a serial of its own, so each object's fate can be
//! judged alone: an acknowledged write has happened, a refused one has not, and one whose outcome
//! is unknown may have, now or later, but only whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Identifies one object for ever.
pub type Serial = u32;

/// What may be said of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Present,
    Absent,
    /// A write of unknown outcome was the last.
    Either,
}

/// Everything that was asked so far.
#[derive(Clone, Debug, Default)]
pub struct History {
    fates: BTreeMap<Serial, Fate>,
    /// Highest revision anyone was told.
    revision: u64,
    pub acknowledged: u64,
    pub unknown: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Add,
    Delete,
}

/// How a write ended for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Acknowledged { revision: u64 },
    Unknown,
}

/// Something the store must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    Lost(Serial),
    Resurrected(Serial),
    NeverAsked(Serial),
    WentBack { from: u64, to: u64 },
}

impl History {
    pub fn record(&mut self, serial: Serial, write: Write, outcome: Outcome) {
        let fate = match (write, outcome) {
            (Write::Add, Outcome::Acknowledged { .. }) => Fate::Present,
            (Write::Delete, Outcome::Acknowledged { .. }) => Fate::Absent,
            (_, Outcome::Unknown) => Fate::Either,
        };
        let before = self.fates.insert(serial, fate);
        match outcome {
            Outcome::Acknowledged { revision } => {
                self.acknowledged += 1;
                // Asked first and answered later is one write.
                self.unknown -= u64::from(before == Some(Fate::Either));
                self.revision = self.revision.max(revision);
            }
            Outcome::Unknown => self.unknown += 1,
        }
    }

    /// Judges a linearizable read of everything, and learns what became of the unknown: with the
    /// daemon that was asked gone, nothing of it can still be under way.
    pub fn judge(&mut self, held: &BTreeSet<Serial>, revision: u64) -> Vec<Violation> {
        let mut violations = Vec::new();
        if revision < self.revision {
            let (from, to) = (self.revision, revision);
            violations.push(Violation::WentBack { from, to });
        }
        self.revision = self.revision.max(revision);
        for (serial, fate) in &mut self.fates {
            match (*fate, held.contains(serial)) {
                (Fate::Present, false) => violations.push(Violation::Lost(*serial)),
                (Fate::Absent, true) => violations.push(Violation::Resurrected(*serial)),
                (Fate::Either, true) => *fate = Fate::Present,
                (Fate::Either, false) => *fate = Fate::Absent,
                (Fate::Present, true) | (Fate::Absent, false) => {}
            }
        }
        let asked = |serial: &&Serial| !self.fates.contains_key(serial);
        violations.extend(held.iter().filter(asked).map(|s| Violation::NeverAsked(*s)));
        violations
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(serial) => write!(f, "write {serial} was acknowledged and is lost"),
            Self::Resurrected(serial) => {
                write!(f, "the deletion of {serial} was acknowledged and is undone")
            }
            Self::NeverAsked(serial) => write!(f, "{serial} is there, but nobody wrote it"),
            Self::WentBack { from, to } => {
                write!(
                    f,
                    "revision {from} was acknowledged, but later there is only {to}"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ack(revision: u64) -> Outcome {
        Outcome::Acknowledged { revision }
    }

    /// 1 and 2 added, 2 deleted, 3 unknown.
    fn history() -> History {
        let mut history = History::default();
        history.record(1, Write::Add, ack(1));
        history.record(2, Write::Add, ack(2));
        history.record(2, Write::Delete, ack(3));
        history.record(3, Write::Add, Outcome::Unknown);
        history
    }

    fn judged(held: &[Serial], revision: u64) -> Vec<Violation> {
        history().judge(&held.iter().copied().collect(), revision)
    }

    #[test]
    fn what_fits_is_fine_whatever_became_of_the_unknown() {
        assert_eq!(judged(&[1], 3), []);
        assert_eq!(judged(&[1, 3], 4), []);
    }

    #[test]
    fn broken_histories_are_caught() {
        assert_eq!(judged(&[], 3), [Violation::Lost(1)]);
        assert_eq!(judged(&[1, 2], 3), [Violation::Resurrected(2)]);
        assert_eq!(judged(&[1, 9], 3), [Violation::NeverAsked(9)]);
        assert_eq!(judged(&[1], 2), [Violation::WentBack { from: 3, to: 2 }]);
    }

    #[test]
    fn the_unknown_is_settled_by_the_first_look() {
        let mut there = history();
        assert_eq!(there.judge(&[1, 3].into(), 4), []);
        assert_eq!(there.judge(&[1].into(), 4), [Violation::Lost(3)]);
        let mut gone = history();
        assert_eq!(gone.judge(&[1].into(), 3), []);
        assert_eq!(gone.judge(&[1, 3].into(), 4), [Violation::Resurrected(3)]);
    }
}
