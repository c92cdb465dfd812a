//! Tests of the checker as a whole: golden timelines, laws, and single rules that need neither.

#[path = "../../tests/support/catalog.rs"]
mod catalog;
mod laws;
mod timelines;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use merlin_model::HealthCheck;

use super::*;
use catalog::{Declarations, check, id};

/// What must hold between any two calls.
fn assert_consistent(checker: &Checker) {
    let mut timers = BTreeSet::new();
    for (id, target) in &checker.targets {
        assert_eq!(checker.ids.get(&target.spec), Some(id));
        match target.phase {
            Phase::Waiting { due, .. } => {
                assert!(
                    !target.users.is_empty(),
                    "{:?} waits for nobody",
                    target.spec
                );
                timers.insert((due, *id));
            }
            Phase::InFlight { .. } => {}
        }
        assert!(
            target
                .users
                .is_sorted_by_key(|user| (&user.service, &user.server))
        );
    }
    assert_eq!(checker.timers, timers);
    assert_eq!(checker.ids.len(), checker.targets.len());
}

fn five_seconds(endpoint: &str) -> HealthCheck {
    let seconds = Duration::from_secs;
    check(endpoint, seconds(5), seconds(1), (2, 1))
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

#[test]
fn a_sync_touches_only_what_changed() {
    let now = Instant::now();
    let mut declared = Declarations::default();
    for n in 0..500 {
        declared.declare(
            "web",
            at(&format!("10.0.{}.{}:80", n / 250, n % 250)),
            five_seconds("http://:80/"),
        );
    }
    let mut checker = Checker::new(now);
    checker.sync(&declared.0, now);
    assert_eq!(checker.timers.len(), 500);
    let numbered_before = checker.next_id;
    let timers_before = checker.timers.clone();

    declared.declare("web", at("10.0.9.9:80"), five_seconds("http://:80/"));
    checker.sync(&declared.0, now + Duration::from_secs(1));
    assert_eq!(checker.next_id, numbered_before + 1);
    let added: Vec<_> = checker.timers.difference(&timers_before).collect();
    assert_eq!(added.len(), 1);
    assert_consistent(&checker);
}

#[test]
fn the_view_is_handed_out_once_per_change() {
    let now = Instant::now();
    let mut declared = Declarations::default();
    let mut checker = Checker::new(now);
    assert_eq!(checker.changed_view(), None);
    declared.declare("web", at("10.0.0.1:80"), five_seconds("http://:80/"));
    checker.sync(&declared.0, now);
    assert_eq!(checker.changed_view().as_ref(), Some(checker.view()));
    assert_eq!(checker.changed_view(), None);
    // Neither a new weight nor the first of two successes changes what is known.
    declared.weigh("web", at("10.0.0.1:80"), 7);
    checker.sync(&declared.0, now);
    let later = now + Duration::from_secs(1);
    let [probe] = &checker.start_due(later, 1)[..] else {
        panic!("one probe is due");
    };
    checker.finish(probe.id, Outcome::Success, later);
    assert_eq!(checker.changed_view(), None);
}

#[test]
fn a_probe_that_is_finished_twice_or_unknown_counts_once() {
    let now = Instant::now();
    let mut declared = Declarations::default();
    declared.declare("web", at("10.0.0.1:80"), five_seconds("http://:80/"));
    let mut checker = Checker::new(now);
    checker.sync(&declared.0, now);
    let later = now + Duration::from_secs(1);
    let probe = checker.start_due(later, 1).remove(0);
    assert_eq!(checker.finish(probe.id, Outcome::Success, later), []);
    assert_eq!(checker.finish(probe.id, Outcome::Success, later), []);
    assert_eq!(checker.finish(ProbeId(99), Outcome::Success, later), []);
    let server = at("10.0.0.1:80").into();
    assert_eq!(
        checker.view().verdict(&id("web"), &server),
        Verdict::Unknown
    );
    assert_consistent(&checker);
}

#[test]
fn no_more_probes_start_than_there_is_room_for_and_the_longest_overdue_go_first() {
    let now = Instant::now();
    let mut declared = Declarations::default();
    for n in 0..100 {
        declared.declare(
            "web",
            at(&format!("10.0.0.{n}:80")),
            five_seconds("http://:80/"),
        );
    }
    let mut checker = Checker::new(now);
    checker.sync(&declared.0, now);
    let due: Vec<_> = checker.timers.iter().map(|(_, id)| *id).collect();
    let later = now + Duration::from_secs(1);
    assert_eq!(checker.start_due(later, 0), []);
    let mut started = Vec::new();
    for room in [30, 30, 100] {
        started.extend(
            checker
                .start_due(later, room)
                .into_iter()
                .map(|probe| probe.id),
        );
        assert_consistent(&checker);
    }
    assert_eq!(started, due);
    assert_eq!(checker.next_deadline(), None);
}

#[test]
fn servers_that_share_a_target_are_probed_once_and_judged_each_by_its_own_thresholds() {
    let now = Instant::now();
    let seconds = Duration::from_secs;
    let mut declared = Declarations::default();
    for (service, server, down) in [
        ("a", "10.0.0.1:80", 1),
        ("b", "10.0.0.1:81", 2),
        ("c", "10.0.0.1:80", 3),
    ] {
        let check = check("http://:9000/health", seconds(5), seconds(1), (1, down));
        declared.declare(service, at(server), check);
    }
    let mut checker = Checker::new(now);
    checker.sync(&declared.0, now);
    let mut now = now;
    for down in ["a", "b", "c"] {
        now = checker.next_deadline().unwrap();
        let probes = checker.start_due(now, usize::MAX);
        assert_eq!(probes.len(), 1);
        let transitions = checker.finish(probes[0].id, Outcome::Failure("refused".into()), now);
        let services: Vec<_> = transitions.iter().map(|t| t.service.as_str()).collect();
        assert_eq!(services, [down]);
    }
    declared.remove_service("b");
    checker.sync(&declared.0, now);
    let services: Vec<_> = checker.view().iter().map(|(id, ..)| id.as_str()).collect();
    assert_eq!(services, ["a", "c"]);
    assert_eq!(checker.targets.len(), 1);
    declared.remove_service("a");
    declared.remove_service("c");
    checker.sync(&declared.0, now);
    assert_eq!(checker.view(), &HealthView::default());
    assert_eq!(checker.next_deadline(), None);
    assert_consistent(&checker);
}
