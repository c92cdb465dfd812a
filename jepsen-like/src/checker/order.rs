//! Revisions and real time.
//!
//! Whatever showed a revision to anybody proves that it was committed by then; whatever begins
//! later must be at least as new.

use std::collections::BTreeMap;

use super::replay::Replay;
use super::{Law, Violations};
use crate::ops::{History, Life, Moment, Node, Outcome, Revision};

/// What was known to be committed before each operation began.
#[derive(Debug)]
pub(super) struct Floors {
    pub(super) writes: Vec<Revision>,
    reads: Vec<Revision>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Point {
    // What begins in the microsecond in which something ended may have begun before that.
    WriteBegins(usize),
    ReadBegins(usize),
    Known(Revision),
}

pub(super) fn check(history: &History, replay: &Replay, violations: &mut Violations) -> Floors {
    let floors = floors(history);
    for (index, record) in history.writes.iter().enumerate() {
        let floor = floors.writes[index];
        let Outcome::Done { revision, changed } = record.outcome else {
            continue;
        };
        if revision < floor || (changed && revision == floor) {
            let what = format!("{record}, but revision {floor} was known before it began");
            violations.add(Law::RealTimeOrder, what);
        }
        if !changed && revision > replay.ceiling(record.end) {
            let what = format!("{record}, which nobody had asked for by then");
            violations.add(Law::RealTimeOrder, what);
        }
    }
    for (revision, step) in (1..).zip(&replay.steps) {
        let Some(index) = step.write else { continue };
        let record = &history.writes[index];
        if record.outcome == Outcome::Unknown && revision <= floors.writes[index] {
            let what = format!("{record} is revision {revision}, which was there before it began");
            violations.add(Law::RealTimeOrder, what);
        }
    }
    for (read, floor) in history.reads.iter().zip(&floors.reads) {
        let (node, revision) = (read.node, read.revision);
        if !read.stale && revision < *floor {
            let what = format!(
                "a read at n{node} [{}..{} us] shows revision {revision}, but {floor} was known \
                 before it began",
                read.start, read.end
            );
            violations.add(Law::FreshReads, what);
        }
        if revision > replay.ceiling(read.end) {
            let what = format!(
                "a read at n{node} that ended at {} us shows revision {revision}, which nobody \
                 had asked for by then",
                read.end
            );
            violations.add(Law::OnlyWhatWasWritten, what);
        }
    }
    check_nodes(history, violations);
    floors
}

fn floors(history: &History) -> Floors {
    let mut points: Vec<(Moment, Point)> = Vec::new();
    for (index, record) in history.writes.iter().enumerate() {
        points.push((record.start, Point::WriteBegins(index)));
        if let Outcome::Done { revision, .. } = record.outcome {
            points.push((record.end, Point::Known(revision)));
        }
    }
    for (index, read) in history.reads.iter().enumerate() {
        points.push((read.start, Point::ReadBegins(index)));
        points.push((read.end, Point::Known(read.revision)));
    }
    for frame in history.watches.iter().flat_map(|watch| &watch.frames) {
        if !frame.events.is_empty() {
            points.push((frame.at, Point::Known(frame.revision)));
        }
    }
    for sample in &history.samples {
        points.push((sample.end, Point::Known(sample.catalog)));
    }
    points.sort_unstable();
    let mut floors = Floors {
        writes: vec![0; history.writes.len()],
        reads: vec![0; history.reads.len()],
    };
    let mut known = 0;
    for (_, point) in points {
        match point {
            Point::WriteBegins(index) => floors.writes[index] = known,
            Point::ReadBegins(index) => floors.reads[index] = known,
            Point::Known(revision) => known = known.max(revision),
        }
    }
    floors
}

/// One process never shows less than it has shown before.
fn check_nodes(history: &History, violations: &mut Violations) {
    type Shown = Vec<(Moment, Moment, Revision)>;
    let mut shown: BTreeMap<(Node, Life), Shown> = BTreeMap::new();
    for read in &history.reads {
        let shown = shown.entry((read.node, read.life)).or_default();
        shown.push((read.start, read.end, read.revision));
    }
    for sample in &history.samples {
        let shown = shown.entry((sample.node, sample.life)).or_default();
        shown.push((sample.start, sample.end, sample.catalog));
    }
    for ((node, _), mut shown) in shown {
        shown.sort_unstable();
        let mut ended: Vec<_> = shown.iter().map(|(_, end, r)| (*end, *r)).collect();
        ended.sort_unstable();
        let mut ended = ended.into_iter().peekable();
        let mut newest = 0;
        for (start, _, revision) in shown {
            while let Some((_, r)) = ended.next_if(|(end, _)| *end < start) {
                newest = newest.max(r);
            }
            if revision < newest {
                let what = format!(
                    "n{node} showed revision {newest}, and {revision} to who asked later, at \
                     {start} us"
                );
                violations.add(Law::NodesGoForward, what);
            }
        }
    }
}
