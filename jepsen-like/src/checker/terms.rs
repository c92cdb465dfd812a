//! Who leads.
//!
//! A leader is elected for a term, one for each: two would each have the votes of a majority, so
//! somebody voted twice. And what a node has once granted it never takes back, not even over a
//! restart or a power cut, so no node ever follows an earlier leadership than before.

use std::collections::BTreeMap;

use super::{Law, Violations};
use crate::ops::{History, Led, Node};

pub(super) fn check(history: &History, violations: &mut Violations) {
    let mut led = history.led.clone();
    led.sort_by_key(|led| led.at);
    let mut leaders: BTreeMap<u64, Led> = BTreeMap::new();
    for views in [led, history.logged.clone()] {
        let mut latest: BTreeMap<Node, Led> = BTreeMap::new();
        for view in views {
            let other = leaders.entry(view.term).or_insert(view);
            if other.leader != view.leader {
                let what = format!(
                    "{} led in term {} for n{}, and {} for n{}",
                    other.leader, view.term, other.node, view.leader, view.node
                );
                violations.add(Law::LeadersSucceed, what);
            }
            let before = latest.entry(view.node).or_insert(view);
            if view.term < before.term {
                let what = format!(
                    "n{} followed or was {} in term {}, and then {} in term {}",
                    view.node, before.leader, before.term, view.leader, view.term
                );
                violations.add(Law::LeadersSucceed, what);
            }
            *before = view;
        }
    }
}
