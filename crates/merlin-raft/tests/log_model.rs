//! The log against a map that does the same, reopened at will.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, helpers too")]

use std::collections::BTreeMap;

use merlin_raft::log::{Ballot, LogEngine, MAX_PAYLOAD, Position, Record, WriteError};
use proptest::prelude::*;
use tempfile::TempDir;

#[derive(Clone, Debug)]
enum Op {
    Append {
        sizes: Vec<usize>,
        new_term: bool,
    },
    /// Takes back this many entries, if so many are not committed.
    Truncate(u64),
    /// Purges this many entries.
    Purge(u64),
    /// Purges beyond the last entry, as after a snapshot from the leader.
    Overtake(u64),
    Vote {
        new_term: bool,
        node: u64,
    },
    /// Commits this many entries.
    Commit(u64),
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![
        6 => 0..2000usize,
        2 => 4000..4200usize,
        1 => 8000..300_000usize,
    ];
    let append = (prop::collection::vec(size, 1..4), any::<bool>())
        .prop_map(|(sizes, new_term)| Op::Append { sizes, new_term });
    prop_oneof![
        8 => append,
        2 => (1..4u64).prop_map(Op::Truncate),
        2 => (1..6u64).prop_map(Op::Purge),
        1 => (1..6u64).prop_map(Op::Overtake),
        1 => (any::<bool>(), 1..4u64).prop_map(|(new_term, node)| Op::Vote { new_term, node }),
        2 => (1..4u64).prop_map(Op::Commit),
        2 => Just(Op::Reopen),
    ]
}

/// What the log should hold.
#[derive(Debug, Default)]
struct Model {
    entries: BTreeMap<u64, Record>,
    purged: Option<Position>,
    committed: Option<Position>,
    vote: Option<Ballot>,
    term: u64,
    written: u64,
}

impl Model {
    fn last(&self) -> Option<Position> {
        let last = self.entries.values().next_back();
        last.map(|record| record.position).or(self.purged)
    }

    fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    fn committed_below(&self) -> u64 {
        self.committed.map_or(0, |committed| committed.index + 1)
    }

    fn position(&self, index: u64) -> Position {
        let term = self.term;
        Position { term, index }
    }
}

#[derive(Debug)]
struct Pair {
    dir: TempDir,
    log: LogEngine,
    model: Model,
}

impl Pair {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = LogEngine::open(dir.path()).unwrap();
        let model = Model::default();
        Self { dir, log, model }
    }

    fn perform(&mut self, op: Op) {
        let Self { log, model, .. } = self;
        match op {
            Op::Append { sizes, new_term } => {
                model.term += u64::from(new_term);
                let mut records = Vec::new();
                for (index, size) in (model.next()..).zip(sizes) {
                    model.written += 1;
                    let bytes = model.written.to_le_bytes().repeat(size / 8 + 1);
                    let position = model.position(index);
                    let bytes = bytes.into();
                    records.push(Record { position, bytes });
                }
                log.append(records.clone()).wait().unwrap();
                model
                    .entries
                    .extend(records.into_iter().map(|r| (r.position.index, r)));
            }
            Op::Truncate(count) => {
                let from = model
                    .next()
                    .saturating_sub(count)
                    .max(model.committed_below());
                log.truncate(from).wait().unwrap();
                model.entries.split_off(&from);
            }
            Op::Purge(count) => {
                let count = usize::try_from(count).unwrap();
                let upto = model.entries.values().nth(count - 1);
                if let Some(upto) = upto.map(|record| record.position) {
                    self.purge(upto);
                }
            }
            Op::Overtake(count) => {
                let upto = model.position(model.next() + count);
                self.purge(upto);
            }
            Op::Vote { new_term, node } => {
                let before = model.vote.map_or(0, |vote| vote.term);
                let vote = Ballot {
                    term: before + u64::from(new_term),
                    node,
                    committed: false,
                };
                if model.vote < Some(vote) {
                    log.save_vote(vote).wait().unwrap();
                    model.vote = Some(vote);
                }
            }
            Op::Commit(count) => {
                let upto = model.committed_below() + count - 1;
                if let Some(record) = model.entries.get(&upto) {
                    log.save_committed(Some(record.position)).unwrap();
                    model.committed = Some(record.position);
                }
            }
            Op::Reopen => self.reopen(),
        }
    }

    fn purge(&mut self, upto: Position) {
        self.log.purge(upto).wait().unwrap();
        self.model.entries = self.model.entries.split_off(&(upto.index + 1));
        self.model.purged = Some(upto);
    }

    fn reopen(&mut self) {
        self.log.close();
        self.log = LogEngine::open(self.dir.path()).unwrap();
        self.compare();
    }

    fn compare(&self) {
        assert_eq!(self.log.last(), self.model.last());
        assert_eq!(self.log.purged(), self.model.purged);
        assert_eq!(self.log.committed(), self.model.committed);
        assert_eq!(self.log.vote(), self.model.vote);
        let records = self.log.reader().read(0..u64::MAX, usize::MAX).unwrap();
        assert!(self.model.entries.values().eq(&records));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_does_what_a_map_does(ops in prop::collection::vec(op(), 1..40)) {
        let mut pair = Pair::new();
        for op in ops {
            pair.perform(op);
        }
        pair.compare();
        pair.reopen();
        prop_assert_eq!(std::fs::read_dir(pair.dir.path().join("sled/blobs")).unwrap().count(), 0);
    }
}

#[test]
fn a_read_stops_at_the_limit_but_gives_one_entry() {
    let mut pair = Pair::new();
    pair.perform(Op::Append {
        sizes: vec![1000; 5],
        new_term: false,
    });
    let count = |limit| pair.log.reader().read(1..4, limit).unwrap().len();
    assert_eq!(count(1), 1);
    assert_eq!(count(2500), 2);
    assert_eq!(count(usize::MAX), 3);
}

#[test]
fn an_entry_of_the_largest_size_is_taken_and_a_larger_one_is_refused() {
    let pair = Pair::new();
    let record = |size: usize| Record {
        position: pair.model.position(0),
        bytes: vec![7; size].into(),
    };
    let error = pair
        .log
        .append(vec![record(MAX_PAYLOAD + 2000)])
        .wait()
        .unwrap_err();
    assert!(matches!(error, WriteError::TooLarge { index: 0, .. }));
    pair.log.append(vec![record(MAX_PAYLOAD)]).wait().unwrap();
    let read = pair.log.reader().read(0..1, usize::MAX).unwrap();
    assert_eq!(read, [record(MAX_PAYLOAD)]);
}

#[test]
fn an_entry_that_would_leave_a_hole_is_refused_and_the_log_goes_on() {
    let mut pair = Pair::new();
    let append = |index| {
        let position = pair.model.position(index);
        let bytes = vec![1].into();
        pair.log.append(vec![Record { position, bytes }]).wait()
    };
    append(0).unwrap();
    for index in [0, 2] {
        let error = append(index).unwrap_err();
        assert!(matches!(error, WriteError::NotNext { expected: 1, .. }));
    }
    append(1).unwrap();
    pair.log.close();
    pair.log = LogEngine::open(pair.dir.path()).unwrap();
    assert_eq!(pair.log.last().unwrap().index, 1);
}

#[test]
fn a_closed_log_says_so() {
    let pair = Pair::new();
    pair.log.close();
    let ack = pair.log.append(vec![]).wait();
    assert!(matches!(ack, Err(WriteError::Closed)));
    assert!(pair.log.reader().read(0..1, 1).is_err());
}
