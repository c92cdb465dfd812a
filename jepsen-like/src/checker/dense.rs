//! Revisions of a store that counts other things too.
//!
//! merlin's own store gives every change the next revision. etcd counts every change of any key, so
//! revisions of the catalog have gaps: an answer that was kept for retries ends with its lease, for
//! instance. What is promised of them is their order, and that is what is left of them here: the
//! first revision that anything is known of becomes 1, the next one 2, and so on.
//!
//! In a gap a write of unknown outcome may hide that nobody saw. It is left a revision of its own
//! before each read that was made there and before the end, unless a watch went on over it and told
//! of nothing.

use std::collections::BTreeSet;

use crate::ops::{Event, History, Outcome, Revision};

/// The same history with revisions without gaps, and what each of them was, from the first on.
pub fn dense(mut history: History) -> (History, Vec<Revision>) {
    let mut known = known(&history);
    let gaps = gaps(&history, &known);
    known.extend(&gaps);
    let known: Vec<Revision> = known.into_iter().collect();
    let rank = |revision: Revision| known.partition_point(|known| *known <= revision) as Revision;
    history.gaps = gaps.into_iter().map(rank).collect();
    for record in &mut history.writes {
        record.write.expected = record.write.expected.map(rank);
        if let Outcome::Done { revision, .. } = &mut record.outcome {
            *revision = rank(*revision);
        }
    }
    for read in &mut history.reads {
        read.revision = rank(read.revision);
        let content = std::sync::Arc::make_mut(&mut read.content);
        content.renumber(rank);
    }
    for watch in &mut history.watches {
        watch.from = watch.from.map(rank);
        for frame in &mut watch.frames {
            frame.revision = rank(frame.revision);
            for event in &mut frame.events {
                if let Event::ServicePut {
                    created, changed, ..
                }
                | Event::ServerPut {
                    created, changed, ..
                } = event
                {
                    (*created, *changed) = (rank(*created), rank(*changed));
                }
            }
        }
    }
    for sample in &mut history.samples {
        sample.catalog = rank(sample.catalog);
        sample.programmed = rank(sample.programmed);
    }
    (history, known)
}

/// Every revision in which something of the catalog is known to have changed.
fn known(history: &History) -> BTreeSet<Revision> {
    let acknowledged = history
        .writes
        .iter()
        .filter_map(|record| match record.outcome {
            Outcome::Done {
                revision,
                changed: true,
            } => Some(revision),
            _ => None,
        });
    let frames = history.watches.iter().flat_map(|watch| &watch.frames);
    let told = frames
        .filter(|frame| !frame.events.is_empty())
        .map(|frame| frame.revision);
    let shown = history
        .reads
        .iter()
        .flat_map(|read| read.content.revisions());
    acknowledged
        .chain(told)
        .chain(shown)
        .filter(|revision| *revision > 0)
        .collect()
}

/// Revisions in each gap of which no watch can say that nothing happened there.
fn gaps(history: &History, known: &BTreeSet<Revision>) -> Vec<Revision> {
    let mut watched: Vec<(Revision, Revision)> = history
        .watches
        .iter()
        .filter_map(|watch| {
            let told = || watch.frames.iter().map(|frame| frame.revision);
            Some((watch.from.or(told().next())?, told().next_back()?))
        })
        .collect();
    watched.sort_unstable();
    let read: BTreeSet<Revision> = history.reads.iter().map(|read| read.revision).collect();
    let mut gaps = Vec::new();
    let mut unseen = |from: Revision, to: Revision| {
        if from <= to {
            gaps.extend(read.range(from..to));
            gaps.push(to);
        }
    };
    let mut before = 0;
    for &revision in known {
        // Everything before this one has been looked at.
        let mut next = before + 1;
        for &(from, to) in watched.iter().filter(|(_, to)| *to > before) {
            unseen(next, from.min(revision - 1));
            next = next.max(to + 1);
            if next >= revision {
                break;
            }
        }
        unseen(next, revision - 1);
        before = revision;
    }
    gaps
}
