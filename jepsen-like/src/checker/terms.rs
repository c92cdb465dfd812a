//! Who leads.
//!
//! A leader is elected for a term, and within a term a candidate with a higher number may replace
//! one with a lower: leaderships are ordered by both. What a node has once granted it never takes
//! back, not even over a restart or a power cut, so no node ever follows an earlier leadership than
//! before. That is what keeps two nodes from leading at once: each needs a majority.

use std::collections::BTreeMap;

use super::{Law, Violations};
use crate::ops::{History, Led, Node};

pub(super) fn check(history: &History, violations: &mut Violations) {
    let mut led = history.led.clone();
    led.sort_by_key(|led| led.at);
    for views in [led, history.logged.clone()] {
        let mut latest: BTreeMap<Node, Led> = BTreeMap::new();
        for view in views {
            let before = latest.entry(view.node).or_insert(view);
            if (view.term, view.leader) < (before.term, before.leader) {
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
