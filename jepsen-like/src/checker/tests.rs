//! The checker is checked: it accepts what an honest store does, and catches each way of cheating.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Law, check, dense};
use crate::model::{Catalog, Table, Virtual, scheduler, weight};
use crate::ops::{
    Action, Event, Frame, History, Led, Outcome, ReadRecord, Refusal, Sample, Serial, Watch, Write,
    WriteRecord,
};

/// Moments between two commits.
const STEP: u64 = 1000;

fn table(catalog: &Catalog) -> Table {
    let services = catalog.services.values().map(|service| {
        let servers = service.servers.iter();
        let servers = servers.map(|(server, held)| (*server, weight(held.value)));
        let scheduler = scheduler(service.value).to_owned();
        let servers = servers.collect();
        (service.port, Virtual { scheduler, servers })
    });
    Table {
        services: services.collect(),
    }
}

/// What clients of an honest store with three nodes see.
fn honest(seed: u64) -> History {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut history = History::default();
    let mut catalog = Catalog::default();
    let mut revision = 0;
    let mut serials = 10..;
    let mut frames = vec![Frame {
        at: 0,
        revision: 0,
        events: Vec::new(),
    }];
    for turn in 1..=400 {
        let commit = turn * STEP;
        let around = |dice: &mut StdRng| {
            let (before, after) = (
                dice.random_range(1..3 * STEP),
                dice.random_range(1..3 * STEP),
            );
            (commit.saturating_sub(before), commit + after)
        };
        let (start, end) = around(&mut dice);
        let write = Write {
            action: action(&mut dice, &catalog, &mut serials),
            expected: None,
        };
        let write = Write {
            expected: expected(&mut dice, &catalog, &write.action),
            ..write
        };
        let outcome = match catalog.apply(&write, revision + 1) {
            Ok(events) => {
                let changed = !events.is_empty();
                if changed {
                    revision += 1;
                    let at = commit + 10;
                    frames.push(Frame {
                        at,
                        revision,
                        events,
                    });
                }
                Outcome::Done { revision, changed }
            }
            Err(refusal) => Outcome::Refused(refusal),
        };
        let unknown = dice.random_ratio(1, 20);
        history.writes.push(WriteRecord {
            start,
            end,
            node: dice.random_range(1..=3),
            write,
            attempts: 1,
            outcome: if unknown { Outcome::Unknown } else { outcome },
        });
        let (start, end) = around(&mut dice);
        history.reads.push(ReadRecord {
            start,
            end,
            node: dice.random_range(1..=3),
            life: 1,
            stale: false,
            revision,
            content: Arc::new(catalog.clone()),
        });
        history.samples.push(Sample {
            start: commit + 20,
            end: commit + 30,
            node: 1,
            life: 1,
            catalog: revision,
            programmed: revision,
            unconfirmed: false,
            table: Arc::new(table(&catalog)),
        });
    }
    history.watches.push(Watch {
        start: 0,
        node: 1,
        life: 1,
        from: Some(0),
        frames,
    });
    history
}

fn action(
    dice: &mut StdRng,
    catalog: &Catalog,
    serials: &mut impl Iterator<Item = Serial>,
) -> Action {
    let mut serial = || serials.next().unwrap();
    let ids: Vec<Serial> = catalog.services.keys().copied().collect();
    // Now and then one that is not there.
    let service = match ids.len() {
        0 => serial(),
        n => ids[dice.random_range(0..n)],
    };
    let held = catalog.services.get(&service);
    let servers: Vec<Serial> = held.map_or_else(Vec::new, |s| s.servers.keys().copied().collect());
    let server = match servers.len() {
        0 => serial(),
        n => servers[dice.random_range(0..n)],
    };
    match dice.random_range(0..10) {
        0 | 1 => Action::CreateService {
            service: serial(),
            port: dice.random_range(1..6),
            value: serial(),
        },
        2 | 3 => Action::EditService {
            service,
            value: serial(),
        },
        4 => Action::DeleteService { service },
        5 | 6 => Action::CreateServer {
            service,
            server: serial(),
            value: serial(),
        },
        7 | 8 => Action::EditServer {
            service,
            server,
            value: serial(),
        },
        _ => Action::DeleteServer { service, server },
    }
}

fn expected(dice: &mut StdRng, catalog: &Catalog, action: &Action) -> Option<u64> {
    use crate::model::View;
    if !dice.random_ratio(1, 3) {
        return None;
    }
    let at = match action.server() {
        Some(server) => catalog.server(action.service(), server),
        None => catalog.service(action.service()),
    };
    Some(at.unwrap_or(0) + u64::from(dice.random_ratio(1, 3)))
}

fn laws(history: &History) -> BTreeSet<Law> {
    let judged = check(history);
    judged.violations.iter().map(|v| v.law).collect()
}

/// The law must be among those that the broken history breaks, whatever the seed.
fn assert_caught(law: Law, mut cheat: impl FnMut(&mut History, &mut StdRng)) {
    for seed in 0..20 {
        let mut history = honest(seed);
        cheat(&mut history, &mut StdRng::seed_from_u64(seed));
        let broken = laws(&history);
        assert!(broken.contains(&law), "seed {seed}: {broken:?}");
    }
}

/// A write that was acknowledged and changed something, somewhere in the middle.
fn acknowledged(history: &History, dice: &mut StdRng) -> (usize, u64) {
    loop {
        let index = dice.random_range(100..300);
        if let Outcome::Done {
            revision,
            changed: true,
        } = history.writes[index].outcome
        {
            return (index, revision);
        }
    }
}

fn put_frame(history: &History, dice: &mut StdRng) -> usize {
    loop {
        let frame = dice.random_range(50..120);
        if let Some(Event::ServicePut { .. } | Event::ServerPut { .. }) =
            history.watches[0].frames[frame].events.first()
        {
            return frame;
        }
    }
}

#[test]
fn what_an_honest_store_does_is_accepted() {
    for seed in 0..60 {
        let judged = check(&honest(seed));
        assert_eq!(judged.violations, [], "seed {seed}");
        assert_eq!(judged.unverified, 0, "seed {seed}");
        assert_eq!(judged.searches_given_up, 0, "seed {seed}");
    }
}

#[test]
fn unknown_writes_that_no_watch_saw_cast_no_suspicion() {
    for seed in 0..30 {
        let mut history = honest(seed);
        history.watches.clear();
        let judged = check(&history);
        assert_eq!(judged.violations, [], "seed {seed}");
        assert!(judged.unverified < 60, "seed {seed}: {judged:?}");
    }
}

#[test]
fn a_lost_write_is_caught() {
    assert_caught(Law::FreshReads, |history, dice| {
        // As if the store had gone back to before the write: everything later is one less.
        let (index, lost) = acknowledged(history, dice);
        let end = history.writes[index].end;
        for read in &mut history.reads {
            if read.start > end && read.revision == lost {
                read.revision -= 1;
            }
        }
        // At least one reader looked at once.
        let mut read = history.reads[0].clone();
        (read.start, read.end, read.revision) = (end + 1, end + 2, lost - 1);
        history.reads.push(read);
    });
}

#[test]
fn a_revision_given_to_two_writes_is_caught() {
    assert_caught(Law::OneWritePerRevision, |history, dice| {
        let (first, revision) = acknowledged(history, dice);
        let second = loop {
            let (second, _) = acknowledged(history, dice);
            if second != first {
                break second;
            }
        };
        let changed = true;
        history.writes[second].outcome = Outcome::Done { revision, changed };
    });
}

#[test]
fn a_write_that_happens_twice_is_caught() {
    assert_caught(Law::AtMostOnce, |history, dice| {
        // The retry of a write is answered, but the first try happened too.
        let frame = put_frame(history, dice);
        let watch = &mut history.watches[0].frames;
        let again = watch.last().unwrap().revision + 1;
        let (at, events) = (watch.last().unwrap().at + 1, watch[frame].events.clone());
        watch.push(Frame {
            at,
            revision: again,
            events,
        });
    });
}

#[test]
fn a_refused_write_that_happened_is_caught() {
    assert_caught(Law::RefusedChangesNothing, |history, dice| {
        let (index, _) = acknowledged_put(history, dice);
        history.writes[index].outcome = Outcome::Nothing;
    });
}

fn acknowledged_put(history: &History, dice: &mut StdRng) -> (usize, u64) {
    loop {
        let found = acknowledged(history, dice);
        if history.writes[found.0].write.action.value().is_some() {
            return found;
        }
    }
}

#[test]
fn a_value_nobody_wrote_is_caught() {
    assert_caught(Law::OnlyWhatWasWritten, |history, dice| {
        let (index, _) = acknowledged_put(history, dice);
        history.writes.remove(index);
    });
}

#[test]
fn an_answer_that_cannot_be_is_caught() {
    assert_caught(Law::AnswersFollow, |history, dice| {
        let (index, _) = acknowledged(history, dice);
        history.writes[index].write.expected = Some(1_000_000);
    });
}

#[test]
fn a_refusal_without_a_reason_is_caught() {
    assert_caught(Law::RefusalsAreFounded, |history, _| {
        for record in &mut history.writes {
            if let Outcome::Refused(refusal) = &mut record.outcome {
                *refusal = match (*refusal, record.write.expected) {
                    (Refusal::Conflict, _) => Refusal::NotFound,
                    (_, None) => Refusal::Conflict,
                    (other, Some(_)) => other,
                };
            }
        }
    });
}

#[test]
fn revisions_against_real_time_are_caught() {
    assert_caught(Law::RealTimeOrder, |history, dice| {
        let (index, _) = acknowledged(history, dice);
        // It only began long after others had been told of later revisions.
        let record = &mut history.writes[index];
        record.start += 20 * STEP;
        record.end += 20 * STEP;
    });
}

#[test]
fn a_stale_read_served_as_linearizable_is_caught() {
    assert_caught(Law::FreshReads, |history, dice| {
        let old = history.reads[dice.random_range(50..100)].clone();
        let late = dice.random_range(200..300);
        let now = &history.reads[late];
        history.reads[late] = ReadRecord {
            start: now.start,
            end: now.end,
            ..old
        };
    });
}

#[test]
fn a_stale_read_is_caught_without_revisions_too() {
    let mut caught = 0;
    for seed in 0..20 {
        let mut history = honest(seed);
        let mut dice = StdRng::seed_from_u64(seed);
        let content = Arc::clone(&history.reads[dice.random_range(50..100)].content);
        for read in &mut history.reads[200..260] {
            read.content = Arc::clone(&content);
        }
        caught += u32::from(laws(&history).contains(&Law::Linearizable));
    }
    assert!(caught >= 15, "{caught} of 20");
}

#[test]
fn a_torn_read_is_caught() {
    assert_caught(Law::ReadsShowARevision, |history, dice| {
        let read = &mut history.reads[dice.random_range(100..300)];
        let mut content = (*read.content).clone();
        content.services.pop_first();
        content
            .services
            .entry(999_999)
            .or_insert(crate::model::Service {
                port: 9,
                value: 999_999,
                created: 1,
                changed: 1,
                servers: BTreeMap::new(),
            });
        read.content = Arc::new(content);
        history
            .writes
            .retain(|record| record.write.action.value() != Some(999_999));
    });
}

#[test]
fn a_node_that_forgets_is_caught() {
    assert_caught(Law::NodesGoForward, |history, dice| {
        let old = history.reads[dice.random_range(50..100)].clone();
        let late = history.reads[300].end;
        for node in 1..=3 {
            let (start, end) = (late + 10 * STEP, late + 10 * STEP + 1);
            let stale = true;
            history.reads.push(ReadRecord {
                start,
                end,
                node,
                stale,
                ..old.clone()
            });
        }
    });
}

#[test]
fn a_gap_in_a_watch_is_caught() {
    assert_caught(Law::WatchesAreComplete, |history, dice| {
        let frame = put_frame(history, dice);
        history.watches[0].frames.remove(frame);
    });
}

#[test]
fn a_repetition_in_a_watch_is_caught() {
    assert_caught(Law::WatchesAreComplete, |history, dice| {
        let frame = put_frame(history, dice);
        let again = history.watches[0].frames[frame].clone();
        history.watches[0].frames.insert(frame, again);
    });
}

#[test]
fn a_watch_that_tells_only_part_of_a_cascade_is_caught() {
    assert_caught(Law::WatchesAreComplete, |history, _| {
        // Another watch told everything.
        let mut watch = history.watches[0].clone();
        let frame = watch.frames.iter_mut().find(|frame| frame.events.len() > 1);
        frame.unwrap().events.remove(0);
        history.watches.push(watch);
    });
}

#[test]
fn a_node_that_takes_back_its_vote_is_caught() {
    for (first, then) in [((7, 2), (7, 1)), ((7, 2), (6, 3))] {
        assert_caught(Law::LeadersSucceed, |history, _| {
            for (at, (term, leader)) in [(5, first), (6, then)] {
                history.led.push(Led {
                    at,
                    node: 1,
                    term,
                    leader,
                });
            }
        });
    }
}

#[test]
fn two_leaders_of_one_term_are_caught() {
    assert_caught(Law::LeadersSucceed, |history, _| {
        for (node, leader) in [(1, 1), (2, 3)] {
            history.led.push(Led {
                at: 5,
                node,
                term: 9_999,
                leader,
            });
        }
    });
}

/// The history of a store that counts other things too.
fn with_gaps(mut history: History) -> History {
    let gaps = |revision: u64| revision * 3;
    for record in &mut history.writes {
        record.write.expected = record.write.expected.map(gaps);
        if let Outcome::Done { revision, changed } = &mut record.outcome {
            // Where nothing changed, whatever was counted last is told.
            *revision = gaps(*revision) + u64::from(!*changed);
        }
    }
    for read in &mut history.reads {
        read.revision = gaps(read.revision) + 1;
        Arc::make_mut(&mut read.content).renumber(gaps);
    }
    for frame in history
        .watches
        .iter_mut()
        .flat_map(|watch| &mut watch.frames)
    {
        frame.revision = gaps(frame.revision);
        for event in &mut frame.events {
            if let Event::ServicePut {
                created, changed, ..
            }
            | Event::ServerPut {
                created, changed, ..
            } = event
            {
                (*created, *changed) = (gaps(*created), gaps(*changed));
            }
        }
    }
    for sample in &mut history.samples {
        (sample.catalog, sample.programmed) = (gaps(sample.catalog) + 1, gaps(sample.programmed));
    }
    history
}

#[test]
fn revisions_with_gaps_are_judged_by_their_order() {
    for seed in 0..10 {
        let history = dense(with_gaps(honest(seed))).0;
        let violations = check(&history).violations;
        assert!(violations.is_empty(), "seed {seed}: {violations:?}");
    }
}

#[test]
fn an_unknown_deletion_may_hide_in_a_gap() {
    for seed in 0..10 {
        let mut history = honest(seed);
        let deletion = |record: &&mut WriteRecord| {
            matches!(record.outcome, Outcome::Done { revision, changed: true } if revision > 50)
                && record.write.action.value().is_none()
        };
        let record = history.writes.iter_mut().find(deletion).unwrap();
        let Outcome::Done { revision, .. } = record.outcome else {
            unreachable!("it is done")
        };
        record.outcome = Outcome::Unknown;
        // Nobody watched at the time.
        let watch = &mut history.watches[0];
        let at = watch
            .frames
            .iter()
            .position(|frame| frame.revision == revision);
        let mut later = watch.frames.split_off(at.unwrap());
        later[0].events.clear();
        later.remove(0);
        let first = later.first_mut().unwrap();
        first.events.clear();
        let watch = Watch {
            from: None,
            frames: later,
            ..watch.clone()
        };
        history.watches.push(watch);
        let violations = check(&dense(with_gaps(history)).0).violations;
        assert!(violations.is_empty(), "seed {seed}: {violations:?}");
    }
}

#[test]
fn a_watch_that_begins_in_a_gap_leaves_nothing_unseen_of_the_rest() {
    for seed in 0..10 {
        let mut history = with_gaps(honest(seed));
        let watch = &mut history.watches[0];
        let mut later = watch.frames.split_off(watch.frames.len() / 2);
        let before = watch.frames.last().unwrap();
        // A list tells of a revision at which nothing happened.
        let listed = Frame {
            revision: before.revision + 1,
            events: Vec::new(),
            ..before.clone()
        };
        assert!(listed.revision + 1 < later[0].revision, "there is a gap");
        later.insert(0, listed);
        let watch = Watch {
            from: None,
            frames: later,
            ..watch.clone()
        };
        history.watches.push(watch);
        let violations = check(&dense(history).0).violations;
        assert!(violations.is_empty(), "seed {seed}: {violations:?}");
    }
}

#[test]
fn of_two_deletions_that_nobody_answered_the_first_may_be_the_one() {
    for seed in 0..10 {
        let mut history = honest(seed);
        let deletion = |record: &&mut WriteRecord| {
            matches!(record.outcome, Outcome::Done { changed: true, .. })
                && record.write.action.value().is_none()
                && record.write.expected.is_none()
        };
        let Some(record) = history.writes.iter_mut().find(deletion) else {
            continue;
        };
        record.outcome = Outcome::Unknown;
        let again = WriteRecord {
            start: record.end + 100 * STEP,
            end: record.end + 101 * STEP,
            ..*record
        };
        history.writes.push(again);
        let violations = check(&history).violations;
        assert!(violations.is_empty(), "seed {seed}: {violations:?}");
    }
}

#[test]
fn cheating_is_caught_among_gaps_too() {
    let lost = |history: &mut History| {
        let frames = &mut history.watches[0].frames;
        frames.remove(frames.len() / 2);
    };
    let stale = |history: &mut History| {
        let (old, new) = (history.reads[100].clone(), &mut history.reads[300]);
        (new.revision, new.content) = (old.revision, old.content);
    };
    let twice = |history: &mut History| {
        let done =
            |record: &&WriteRecord| matches!(record.outcome, Outcome::Done { changed: true, .. });
        let again = *history.writes.iter().filter(done).nth(50).unwrap();
        history.writes.push(again);
    };
    let cheated = |cheat: fn(&mut History)| {
        let mut history = with_gaps(honest(3));
        cheat(&mut history);
        check(&dense(history).0).violations
    };
    for (law, violations) in [
        (Law::WatchesAreComplete, cheated(lost)),
        (Law::FreshReads, cheated(stale)),
        (Law::OneWritePerRevision, cheated(twice)),
    ] {
        assert!(
            violations.iter().any(|violation| violation.law == law),
            "not seen: {law:?}: {violations:?}"
        );
    }
}

/// Changes the table of a sample that has a server in it.
fn spoil(history: &mut History, dice: &mut StdRng, spoil: impl FnOnce(&mut BTreeMap<Serial, u32>)) {
    loop {
        let sample = &mut history.samples[dice.random_range(100..300)];
        let mut table = (*sample.table).clone();
        let servers = table
            .services
            .values_mut()
            .map(|service| &mut service.servers);
        if let Some(servers) = servers.into_iter().find(|servers| !servers.is_empty()) {
            spoil(servers);
            sample.table = Arc::new(table);
            return;
        }
    }
}

#[test]
fn a_rule_that_vanishes_is_caught() {
    assert_caught(Law::RulesStay, |history, dice| {
        spoil(history, dice, |servers| _ = servers.pop_first());
    });
    assert_caught(Law::RulesStay, |history, dice| {
        let sample = &mut history.samples[dice.random_range(200..300)];
        sample.table = Arc::new(Table::default());
    });
}

#[test]
fn a_weight_that_drops_to_0_is_caught() {
    assert_caught(Law::WeightsStay, |history, dice| {
        spoil(history, dice, |servers| {
            servers.values_mut().for_each(|weight| *weight = 0);
        });
    });
}

#[test]
fn a_rule_that_stays_too_long_is_caught() {
    assert_caught(Law::TableFollowsCatalog, |history, dice| {
        spoil(history, dice, |servers| _ = servers.insert(888_888, 5));
    });
}

#[test]
fn a_table_that_is_never_programmed_is_caught() {
    assert_caught(Law::TableFollowsCatalog, |history, _| {
        let stuck = history.samples[100].clone();
        for (turn, sample) in history.samples[101..].iter_mut().enumerate() {
            let later = turn as u64 * 100 * STEP;
            (sample.programmed, sample.table) = (stuck.programmed, Arc::clone(&stuck.table));
            (sample.start, sample.end) = (sample.start + later, sample.end + later);
        }
    });
}
