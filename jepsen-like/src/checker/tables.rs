//! A node's table against the catalogs it can stand for.
//!
//! A table is read while it changes, so it need not equal any one revision. But the node said
//! before which revision the table had reached, and afterwards only what was asked for by then can
//! be in it. Between the two, each rule must be one that some revision asks for, and a rule that
//! every one of them asks for must be there. Where nothing changes that is equality.

use std::collections::BTreeMap;

use super::replay::Replay;
use super::{Law, Violations};
use crate::model::{CHECKED, Virtual, scheduler, weight};
use crate::ops::{History, Hurt, Life, Moment, Node, Revision, Sample, Serial};

/// A catalog that a node holds is in its table after so long, unless the node is hurt.
const BOUND: Moment = 5_000_000;

pub(super) fn check(history: &History, replay: &Replay, violations: &mut Violations) {
    for sample in &history.samples {
        let (low, high) = (sample.programmed, replay.ceiling(sample.end));
        if low == 0 || high < low || !replay.is_verified(low, high) {
            continue;
        }
        check_sample(sample, replay, low, high, violations);
    }
    check_pace(history, violations);
}

fn check_sample(
    sample: &Sample,
    replay: &Replay,
    low: Revision,
    high: Revision,
    violations: &mut Violations,
) {
    let Sample { node, end, .. } = sample;
    let place = format!("n{node} at {end} us, revisions {low} to {high}");
    for (port, line) in &replay.versions.ports {
        let held = sample.table.services.get(port);
        let holders: Vec<Option<Serial>> =
            line.within(low, high).map(|(_, holder)| holder).collect();
        match held {
            None if holders.iter().all(Option::is_some) => {
                let what = format!("port {port} is gone from the table of {place}");
                violations.add(Law::RulesStay, what);
            }
            Some(held) => {
                let holders = holders.into_iter().flatten();
                check_service(
                    replay,
                    (low, high),
                    *port,
                    held,
                    holders,
                    &place,
                    violations,
                );
            }
            None => {}
        }
    }
    for port in sample.table.services.keys() {
        if !replay.versions.ports.contains_key(port) {
            let what = format!("port {port}, which nobody asked for, is in the table of {place}");
            violations.add(Law::TableFollowsCatalog, what);
        }
    }
}

fn check_service(
    replay: &Replay,
    (low, high): (Revision, Revision),
    port: u16,
    held: &Virtual,
    holders: impl Iterator<Item = Serial>,
    place: &str,
    violations: &mut Violations,
) {
    let versions = &replay.versions;
    let mut schedulers = Vec::new();
    // For each server, the weights it may have.
    let mut weights: BTreeMap<Serial, Vec<u32>> = BTreeMap::new();
    let mut lasting: Vec<Serial> = Vec::new();
    for holder in holders {
        if let Some(line) = versions.services.get(&holder) {
            let values = line.within(low, high).filter_map(|(_, held)| held);
            schedulers.extend(values.map(|held| scheduler(held.value)));
        }
        for (server, line) in versions.servers_of(holder) {
            let values: Vec<_> = line.within(low, high).map(|(_, held)| held).collect();
            if values.iter().all(Option::is_some) {
                lasting.push(server);
            }
            let values = values.into_iter().flatten();
            let possible = weights.entry(server).or_default();
            possible.extend(values.map(|held| weight(held.value)));
        }
    }
    let mut wrong =
        |law, what: String| violations.add(law, format!("{what} in the table of {place}"));
    if !schedulers.contains(&held.scheduler.as_str()) {
        let what = format!(
            "port {port} is scheduled by {}, not by any of {schedulers:?}",
            held.scheduler
        );
        wrong(Law::TableFollowsCatalog, what);
    }
    for (server, found) in &held.servers {
        let possible = weights.get(server).map(Vec::as_slice).unwrap_or_default();
        let checked = CHECKED.contains(server);
        if checked && *found == 0 && !possible.is_empty() {
            // It may be down.
            continue;
        }
        if *found == 0 && !possible.is_empty() {
            wrong(
                Law::WeightsStay,
                format!("server {server} of port {port} has weight 0"),
            );
        } else if !possible.contains(found) {
            let what = format!(
                "server {server} of port {port} has weight {found}, not any of {possible:?}"
            );
            wrong(Law::TableFollowsCatalog, what);
        }
    }
    for server in lasting {
        if !held.servers.contains_key(&server) {
            wrong(
                Law::RulesStay,
                format!("server {server} of port {port} is missing"),
            );
        }
    }
}

/// A node that goes on working does not fall behind its own catalog for long.
fn check_pace(history: &History, violations: &mut Violations) {
    let mut lives: BTreeMap<(Node, Life), Vec<&Sample>> = BTreeMap::new();
    for sample in &history.samples {
        lives
            .entry((sample.node, sample.life))
            .or_default()
            .push(sample);
    }
    for ((node, _), mut samples) in lives {
        samples.sort_unstable_by_key(|sample| sample.start);
        // Since when the newest catalog is waiting that has not been programmed.
        let mut waiting: Option<(Moment, Revision)> = None;
        for sample in samples {
            if sample.unconfirmed {
                waiting = None;
                continue;
            }
            if let Some((since, revision)) = waiting {
                if sample.programmed >= revision {
                    waiting = None;
                } else if sample.start > since + BOUND && !is_hurt(history, node, since, sample.end)
                {
                    let what = format!(
                        "n{node} held revision {revision} at {since} us, and its table is at {} \
                         at {} us",
                        sample.programmed, sample.start
                    );
                    violations.add(Law::TableFollowsCatalog, what);
                    break;
                }
            }
            if waiting.is_none() && sample.programmed < sample.catalog {
                waiting = Some((sample.end, sample.catalog));
            }
        }
    }
}

fn is_hurt(history: &History, node: Node, from: Moment, to: Moment) -> bool {
    let mut hurts = history.hurts.iter();
    hurts.any(|hurt: &Hurt| hurt.node == node && hurt.from <= to && from <= hurt.to)
}
