use merlin_model::{Mutation, Scheduler, ServerHealth, Verdict};

use super::*;

#[path = "../../tests/support/mod.rs"]
mod support;
use support::*;

const PERIOD: Duration = Duration::from_secs(60);
const BACKOFF: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(5),
};

/// Two services, `web` with a checked server.
fn two_services() -> Catalog {
    catalog([
        create_service("api", tcp("10.0.0.1:80"), Scheduler::Rr),
        create_service("web", tcp("10.0.0.2:80"), Scheduler::Rr),
        create_server("web", "10.1.0.1:80", 1, checked()),
    ])
}

fn fresh(now: Instant) -> Agenda {
    let catalog = Arc::new(two_services());
    Agenda::new(PERIOD, BACKOFF, catalog, HealthView::default(), now)
}

/// An agenda after a first whole pass that found everything in place.
fn started(now: Instant) -> Agenda {
    let mut agenda = fresh(now);
    agenda.passed(&Scope::Whole, &[], false, now);
    agenda.trust(Some(Fingerprint(1)));
    agenda
}

fn edit(agenda: &mut Agenda, mutations: impl IntoIterator<Item = Mutation>) {
    let mut catalog = Catalog::clone(&agenda.catalog);
    change(&mut catalog, mutations);
    agenda.set_catalog(Arc::new(catalog));
}

fn services(names: &[&str]) -> Scope {
    Scope::Services(names.iter().map(|name| id(name)).collect())
}

fn refused(name: &str, key: ServiceKey) -> (Option<ServiceId>, Key) {
    (Some(id(name)), Key::from(&key))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_first_pass_is_whole_and_the_next_is_a_period_away() {
    let now = Instant::now();
    assert_eq!(fresh(now).next(now), Task::Pass(Scope::Whole));
    assert!(!fresh(now).is_settled());
    let agenda = started(now);
    assert!(agenda.is_settled());
    assert_eq!(agenda.next(now), Task::Wait(now + PERIOD));
    assert_eq!(agenda.next(now + PERIOD), Task::Check);
}

#[test]
fn the_first_service_ever_declared_is_a_start_too() {
    let now = Instant::now();
    let health = HealthView::default();
    let mut agenda = Agenda::new(PERIOD, BACKOFF, Arc::default(), health, now);
    agenda.passed(&Scope::Whole, &[], false, now);
    assert!(!agenda.explains(None));
    edit(
        &mut agenda,
        [create_service("web", tcp("10.0.0.1:80"), Scheduler::Rr)],
    );
    assert_eq!(agenda.next(now), Task::Pass(Scope::Whole));
    assert!(agenda.explains(None));
}

#[test]
fn only_what_changes_the_wanted_table_is_worth_a_pass() {
    let now = Instant::now();
    let mut agenda = started(now);
    edit(&mut agenda, [set_weight("web", "10.1.0.1:80", 5)]);
    assert_eq!(agenda.next(now), Task::Pass(services(&["web"])));
    agenda.passed(&services(&["web"]), &[], true, now);
    assert!(agenda.is_settled());

    let mut slower = checked();
    slower.period = seconds(30);
    edit(&mut agenda, [set_check("web", "10.1.0.1:80", slower)]);
    assert!(agenda.is_settled());

    let now = now + REST;
    let mut health = HealthView::default();
    judge(&mut health, "web", "10.1.0.1:80", Verdict::Down);
    judge(&mut health, "api", "10.1.0.9:80", Verdict::Down);
    agenda.set_health(health.clone());
    assert_eq!(agenda.next(now), Task::Pass(services(&["web"])));
    agenda.passed(&services(&["web"]), &[], true, now);

    let again = ServerHealth {
        verdict: Verdict::Down,
        last_failure: Some("connection refused".into()),
    };
    health.set(id("web"), server("10.1.0.1:80"), again);
    agenda.set_health(health);
    assert!(agenda.is_settled());
}

#[test]
fn a_refused_service_comes_back_ever_later_and_alone() {
    let mut now = Instant::now();
    let mut agenda = started(now);
    edit(&mut agenda, [set_weight("web", "10.1.0.1:80", 5)]);
    let failing = [refused("web", tcp("10.0.0.2:80"))];
    for delay in [1, 2, 4, 5, 5] {
        agenda.passed(&services(&["web"]), &failing, false, now);
        assert!(agenda.explains(Some(&id("web"))) && !agenda.explains(Some(&id("api"))));
        assert_eq!(agenda.next(now), Task::Wait(now + seconds(delay)));
        now += seconds(delay);
        assert_eq!(agenda.next(now), Task::Pass(services(&["web"])));
    }
    agenda.passed(&services(&["web"]), &[], true, now);
    assert!(matches!(agenda.next(now), Task::Wait(_)));
    assert!(!agenda.explains(Some(&id("web"))));
}

#[test]
fn of_a_stream_of_changes_the_first_is_seen_to_at_once_and_the_others_together() {
    let now = Instant::now();
    let mut agenda = started(now);
    edit(&mut agenda, [set_weight("web", "10.1.0.1:80", 5)]);
    assert_eq!(agenda.next(now), Task::Pass(services(&["web"])));
    agenda.passed(&services(&["web"]), &[], true, now);
    edit(&mut agenda, [set_weight("web", "10.1.0.1:80", 6)]);
    assert_eq!(agenda.next(now), Task::Rest(now + REST));
    edit(&mut agenda, [set_scheduler("api", Scheduler::Wrr)]);
    assert_eq!(agenda.next(now), Task::Rest(now + REST));
    let both = services(&["api", "web"]);
    assert_eq!(agenda.next(now + REST), Task::Pass(both.clone()));
    agenda.passed(&both, &[], true, now + REST);
    assert!(agenda.is_settled());
    // A failure of the whole table is not kept waiting.
    agenda.broke_off(now + REST);
    let soon = now + REST + BACKOFF.first;
    assert_eq!(agenda.next(soon), Task::Pass(Scope::Whole));
}

#[test]
fn an_edit_of_a_refused_service_is_not_kept_waiting_by_its_delay() {
    let now = Instant::now();
    let mut agenda = started(now);
    let failing = [refused("web", tcp("10.0.0.2:80"))];
    agenda.passed(&services(&["web"]), &failing, false, now);
    edit(&mut agenda, [set_scheduler("web", Scheduler::Wrr)]);
    assert_eq!(agenda.next(now + REST), Task::Pass(services(&["web"])));
}

#[test]
fn a_foreign_entry_that_will_not_go_is_tried_again_with_the_whole_table() {
    let now = Instant::now();
    let mut agenda = started(now);
    let key = Key::from(&tcp("10.0.0.9:80"));
    agenda.passed(&Scope::Whole, &[(None, key)], false, now);
    assert_eq!(agenda.next(now), Task::Wait(now + seconds(1)));
    assert_eq!(agenda.next(now + seconds(1)), Task::Pass(Scope::Whole));
}

#[test]
fn a_pass_that_breaks_off_loses_nothing() {
    let now = Instant::now();
    let mut agenda = started(now);
    edit(&mut agenda, [move_service("web", tcp("10.0.0.3:80"))]);
    agenda.broke_off(now);
    assert!(!agenda.is_settled());
    assert_eq!(agenda.next(now), Task::Wait(now + seconds(1)));
    edit(&mut agenda, [delete_service("api")]);
    assert_eq!(agenda.next(now), Task::Wait(now + seconds(1)));

    let later = now + seconds(1);
    assert_eq!(agenda.next(later), Task::Pass(Scope::Whole));
    agenda.broke_off(later);
    assert_eq!(agenda.next(later), Task::Wait(later + seconds(2)));
    assert!(agenda.explains(Some(&id("web"))) && agenda.explains(Some(&id("api"))));
    let released: Vec<_> = agenda
        .view(&Scope::Whole)
        .desired()
        .released
        .into_keys()
        .collect();
    let expected = ["10.0.0.1:80", "10.0.0.2:80"].map(|at| Key::from(&tcp(at)));
    assert_eq!(released, expected);
}

#[test]
fn a_key_is_released_until_it_is_gone_or_someone_takes_it() {
    let now = Instant::now();
    let mut agenda = started(now);
    let old = Key::from(&tcp("10.0.0.2:80"));
    let released =
        |agenda: &Agenda, scope: &Scope| agenda.view(scope).desired().released.contains_key(&old);

    edit(&mut agenda, [move_service("web", tcp("10.0.0.3:80"))]);
    assert!(released(&agenda, &services(&["web"])));
    assert!(!released(&agenda, &services(&["api"])));
    let still_there = [refused("web", tcp("10.0.0.2:80"))];
    agenda.passed(&services(&["web"]), &still_there, true, now);
    assert!(released(&agenda, &services(&["web"])));

    let taken = Catalog::clone(&agenda.catalog);
    edit(&mut agenda, [move_service("api", tcp("10.0.0.2:80"))]);
    assert!(!released(&agenda, &Scope::Whole));
    agenda.set_catalog(Arc::new(taken));
    assert!(released(&agenda, &Scope::Whole));
    agenda.passed(&Scope::Whole, &[], true, now);
    assert!(!released(&agenda, &Scope::Whole));
}

#[test]
fn a_table_that_looks_as_it_was_is_left_alone_nine_times_of_ten() {
    let mut now = Instant::now();
    let mut agenda = started(now);
    for _ in 0..PERIODS_PER_WHOLE - 1 {
        now += PERIOD;
        assert_eq!(agenda.next(now), Task::Check);
        assert!(!agenda.check(Fingerprint(1), now));
        assert_eq!(agenda.next(now), Task::Wait(now + PERIOD));
    }
    now += PERIOD;
    assert_eq!(agenda.next(now), Task::Check);
    assert!(agenda.check(Fingerprint(1), now));
    agenda.passed(&Scope::Whole, &[], false, now);
    now += PERIOD;
    assert_eq!(agenda.next(now), Task::Check);
    assert!(agenda.check(Fingerprint(2), now));
}

#[test]
fn after_a_change_of_ours_the_old_fingerprint_proves_nothing() {
    let now = Instant::now();
    let mut agenda = started(now);
    edit(&mut agenda, [delete_service("api")]);
    agenda.passed(&services(&["api"]), &[], true, now);
    assert_eq!(agenda.next(now + PERIOD), Task::Check);
    assert!(agenda.check(Fingerprint(1), now + PERIOD));
}

/// As many services as two slices and a half.
fn many(now: Instant) -> (Agenda, Vec<String>) {
    let names: Vec<_> = (0..SLICE * 5 / 2).map(|n| format!("s{n:03}")).collect();
    let services = names.iter().zip(1..).map(|(name, n)| {
        let at = format!("10.0.{}.{}:80", n / 200, n % 200);
        create_service(name, tcp(&at), Scheduler::Rr)
    });
    let catalog = Arc::new(catalog(services));
    let mut agenda = Agenda::new(PERIOD, BACKOFF, catalog, HealthView::default(), now);
    agenda.passed(&Scope::Whole, &[], false, now);
    (agenda, names)
}

fn slice(names: &[String]) -> Scope {
    Scope::Slice(names.iter().map(|name| id(name)).collect())
}

#[test]
fn a_sweep_compares_every_service_once_and_then_its_fingerprint_is_good() {
    let now = Instant::now();
    let (mut agenda, names) = many(now);
    let later = now + PERIOD;
    assert!(agenda.check(Fingerprint(1), later));
    agenda.sweep(Some(Fingerprint(1)));
    let slices: Vec<_> = names.chunks(SLICE).map(slice).collect();
    for (n, slice) in (1..).zip(&slices) {
        assert_eq!(agenda.next(later), Task::Pass(slice.clone()));
        assert_eq!(agenda.passed(slice, &[], false, later), n == slices.len());
    }
    assert_eq!(agenda.next(later), Task::Wait(later + PERIOD));
    assert!(!agenda.check(Fingerprint(1), later + PERIOD));
}

#[test]
fn a_change_waits_for_one_slice_at_most_and_a_sweep_for_one_change() {
    let now = Instant::now();
    let (mut agenda, names) = many(now);
    let mut later = now + PERIOD;
    agenda.sweep(Some(Fingerprint(1)));
    let mut slices = names.chunks(SLICE).map(slice);
    for scheduler in [Scheduler::Wrr, Scheduler::Lc, Scheduler::Wlc] {
        edit(&mut agenda, [set_scheduler("s000", scheduler)]);
        let Task::Pass(due @ Scope::Services(_)) = agenda.next(later) else {
            panic!("{:?}", agenda.next(later))
        };
        agenda.passed(&due, &[], true, later);
        edit(&mut agenda, [set_scheduler("s001", scheduler)]);
        let slice = slices.next().unwrap();
        assert_eq!(agenda.next(later), Task::Pass(slice.clone()));
        agenda.passed(&slice, &[], false, later);
        later += REST;
    }
    // What was changed meanwhile is not what the fingerprint was taken of.
    assert!(agenda.check(Fingerprint(1), later + PERIOD));
}

#[test]
fn a_sweep_that_breaks_off_is_made_up_for_by_the_whole_table() {
    let now = Instant::now();
    let (mut agenda, _) = many(now);
    agenda.sweep(None);
    agenda.broke_off(now);
    assert_eq!(agenda.next(now + seconds(1)), Task::Pass(Scope::Whole));
}
