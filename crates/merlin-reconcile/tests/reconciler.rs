//! The loop, on a table in memory.
//!
//! The clock stands still unless a test moves it; what runs on other threads is waited for by
//! looking again and again, up to a deadline in real time.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may, and the lint only spares the tests themselves"
)]

mod support;

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use merlin_ipvs::memory::{Fault, Modules};
use merlin_ipvs::{
    Call, Dataplane, DataplaneError, Fingerprint, Handle, MemoryTable, Refusal, Timeouts,
};
use merlin_model::table::{DestinationKey, Key, LiveTable, Operation, Table};
use merlin_model::{Catalog, HealthCheck, HealthView, Mutation, Scheduler, Verdict};
use merlin_reconcile::desired::desired;
use merlin_reconcile::{Backoff, Config, Foreign, Reconciler, Status};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::advance;
use tokio_util::sync::CancellationToken;

use support::*;

const PERIOD: Duration = Duration::from_secs(60);
/// After a pass for changes, the next one may wait as long as this.
const REST: Duration = Duration::from_millis(5);
const DEADLINE: Duration = Duration::from_secs(20);

/// Keeps tokio's stopped clock from moving on its own while other threads work.
struct StoppedClock(#[expect(dead_code, reason = "dropped to end it")] mpsc::Sender<()>);

fn stop_clock() -> StoppedClock {
    let (until_dropped, ends) = mpsc::channel::<()>();
    spawn_blocking(move || ends.recv());
    StoppedClock(until_dropped)
}

/// A table that notes which keys are read one by one and how often it is read whole.
#[derive(Clone, Default)]
struct Watched {
    table: MemoryTable,
    reads: Arc<Mutex<Vec<Key>>>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Watched {
    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }

    fn count(&self, call: Call) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|&&made| made == call).count()
    }

    fn forget(&self) {
        self.calls.lock().unwrap().clear();
        self.reads.lock().unwrap().clear();
    }
}

impl Dataplane for Watched {
    fn dump(&mut self) -> Result<Table, DataplaneError> {
        self.note(Call::Dump);
        self.table.dump()
    }

    fn keys(&mut self) -> Result<Vec<Key>, DataplaneError> {
        self.note(Call::Keys);
        self.table.keys()
    }

    fn read(&mut self, keys: &[Key]) -> Result<Table, DataplaneError> {
        self.note(Call::Read);
        self.reads.lock().unwrap().extend(keys);
        self.table.read(keys)
    }

    fn apply(
        &mut self,
        operations: &[Operation],
    ) -> Result<Vec<Result<(), Refusal>>, DataplaneError> {
        self.note(Call::Apply);
        self.table.apply(operations)
    }

    fn live(&mut self) -> Result<LiveTable, DataplaneError> {
        self.table.live()
    }

    fn fingerprint(&mut self) -> Result<Fingerprint, DataplaneError> {
        self.note(Call::Fingerprint);
        self.table.fingerprint()
    }

    fn timeouts(&mut self) -> Result<Timeouts, DataplaneError> {
        self.table.timeouts()
    }

    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), DataplaneError> {
        self.table.set_timeouts(timeouts)
    }
}

/// A reconciler at work, and everything around it.
struct Node {
    catalog: watch::Sender<Arc<Catalog>>,
    health: watch::Sender<HealthView>,
    status: watch::Receiver<Status>,
    kernel: Watched,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    fn start(catalog: Catalog) -> Self {
        Self::with_kernel(catalog, HealthView::default(), Watched::default())
    }

    fn with_kernel(catalog: Catalog, health: HealthView, kernel: Watched) -> Self {
        let handle = Handle::spawn(kernel.clone());
        Self::with(catalog, health, kernel, handle, Config::default())
    }

    fn with(
        catalog: Catalog,
        health: HealthView,
        kernel: Watched,
        handle: Handle,
        config: Config,
    ) -> Self {
        let catalog = watch::Sender::new(Arc::new(catalog));
        let health = watch::Sender::new(health);
        let (c, h) = (catalog.subscribe(), health.subscribe());
        let reconciler = Reconciler::new(c, h, handle, config);
        let status = reconciler.status();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(reconciler.run(shutdown.clone()));
        Self {
            catalog,
            health,
            status,
            kernel,
            shutdown,
            task,
        }
    }

    fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    fn table(&self) -> Table {
        self.kernel.table.table()
    }

    fn declare(&self, mutations: impl IntoIterator<Item = Mutation>) {
        self.catalog
            .send_modify(|catalog| change(Arc::make_mut(catalog), mutations));
    }

    fn judge(&self, service: &str, at: &str, verdict: Verdict) {
        self.health
            .send_modify(|view| judge(view, service, at, verdict));
    }

    /// The table as catalog and health want it.
    fn wanted(&self) -> Table {
        desired(&self.catalog.borrow(), &self.health.borrow()).given(&self.table())
    }

    fn weight(&self, service: &str, at: &str) -> u32 {
        let entry = &self.table().services[&Key::from(&tcp(service))];
        entry.destinations[&server(at)].weight
    }

    /// Waits until something is so.
    async fn until(&self, what: &str, so: impl Fn(&Status) -> bool) -> Status {
        let patience = Instant::now();
        loop {
            let status = self.status();
            if so(&status) {
                return status;
            }
            assert!(
                patience.elapsed() < DEADLINE,
                "waiting until {what}: {status:#?}"
            );
            assert!(!self.task.is_finished(), "it ended before {what}");
            look_again().await;
        }
    }

    /// Waits until the newest catalog has been worked off.
    async fn until_programmed(&self) -> Status {
        let newest = self.catalog.borrow().revision();
        self.until("the newest revision is programmed", |status| {
            status.first_pass_done && status.programmed == newest
        })
        .await
    }

    /// Moves the clock and waits until the loop has looked at the table because of that.
    async fn next_period(&self) -> Status {
        let looked = |status: &Status| status.counts.passes + status.counts.quiet_checks;
        let before = looked(&self.status());
        advance(PERIOD).await;
        self.until("it looks again", |status| looked(status) > before)
            .await
    }
}

/// Lets other tasks and threads work for a moment.
async fn look_again() {
    tokio::task::yield_now().await;
    thread::sleep(Duration::from_micros(200));
}

fn service(name: &str, at: &str) -> Mutation {
    create_service(name, tcp(at), Scheduler::Wlc)
}

fn plain(service: &str, at: &str) -> Mutation {
    create_server(service, at, 2, HealthCheck::default())
}

/// `web` with a checked and a plain server, `dns` with a plain one.
fn two_services() -> Catalog {
    catalog([
        service("web", "10.0.0.1:80"),
        create_server("web", "10.1.0.1:80", 5, checked()),
        plain("web", "10.1.0.2:80"),
        service("dns", "10.0.0.2:53"),
        plain("dns", "10.1.0.3:53"),
    ])
}

fn key(at: &str) -> Key {
    Key::from(&tcp(at))
}

#[tokio::test(start_paused = true)]
async fn the_first_pass_programs_the_whole_catalog_and_says_so() {
    let _clock = stop_clock();
    let node = Node::start(two_services());
    let status = node.until_programmed().await;
    assert_eq!(node.table(), node.wanted());
    assert_eq!(status.catalog, status.programmed);
    assert!(status.failures.is_empty() && status.foreign.is_empty());
    assert_eq!((status.counts.passes, status.counts.operations), (1, 5));
    assert_eq!(status.counts.drift_repaired, 0);
    assert!(status.last_pass.is_some() && status.last_whole.is_some());
}

#[tokio::test(start_paused = true)]
async fn one_change_reads_and_touches_its_service_alone() {
    let _clock = stop_clock();
    let many = (0..200).flat_map(|n| {
        let name = format!("service-{n}");
        [
            service(&name, &format!("10.0.{n}.1:80")),
            create_server(&name, "10.1.0.1:80", 5, checked()),
        ]
    });
    let node = Node::start(catalog(many));
    node.until_programmed().await;
    node.kernel.forget();
    let applied = node.kernel.table.applied();

    node.declare([
        set_weight("service-7", "10.1.0.1:80", 9),
        plain("service-7", "10.1.0.2:80"),
    ]);
    node.until_programmed().await;
    advance(REST).await;
    node.judge("service-9", "10.1.0.1:80", Verdict::Up);
    node.until("the verdict counts", |_| {
        node.weight("10.0.9.1:80", "10.1.0.1:80") == 5
    })
    .await;
    assert_eq!(
        *node.kernel.reads.lock().unwrap(),
        [key("10.0.7.1:80"), key("10.0.9.1:80")]
    );
    assert_eq!(node.kernel.count(Call::Dump), 0);
    assert_eq!(node.kernel.count(Call::Fingerprint), 0);
    // The checked server waits for its verdict, so its new weight is not in the kernel yet.
    assert_eq!(node.kernel.table.applied() - applied, 2);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_moves_is_added_at_its_new_key_and_removed_from_the_old() {
    let _clock = stop_clock();
    let node = Node::start(two_services());
    node.until_programmed().await;
    node.kernel.forget();
    node.declare([move_service("web", tcp("10.0.0.9:80"))]);
    node.until_programmed().await;
    assert_eq!(node.table(), node.wanted());
    assert_eq!(
        *node.kernel.reads.lock().unwrap(),
        [key("10.0.0.9:80"), key("10.0.0.1:80")]
    );
}

#[tokio::test(start_paused = true)]
async fn verdicts_become_weights_and_an_edited_check_changes_nothing() {
    let _clock = stop_clock();
    let node = Node::start(two_services());
    node.until_programmed().await;
    assert_eq!(node.weight("10.0.0.1:80", "10.1.0.1:80"), 0);
    for (verdict, weight) in [(Verdict::Up, 5), (Verdict::Down, 0), (Verdict::Up, 5)] {
        let passes = node.status().counts.passes;
        node.judge("web", "10.1.0.1:80", verdict);
        node.until("the verdict counts", |status| {
            status.counts.passes > passes && node.weight("10.0.0.1:80", "10.1.0.1:80") == weight
        })
        .await;
        advance(REST).await;
    }
    node.kernel.forget();
    let slower = HealthCheck {
        period: Duration::from_secs(30),
        ..checked()
    };
    node.declare([set_check("web", "10.1.0.1:80", slower)]);
    node.until_programmed().await;
    assert_eq!(node.kernel.count(Call::Read), 0);
}

#[tokio::test(start_paused = true)]
async fn a_restart_without_verdicts_changes_no_weight() {
    let _clock = stop_clock();
    let mut catalog = two_services();
    change(
        &mut catalog,
        [create_server("web", "10.1.0.4:80", 5, checked())],
    );
    let mut health = HealthView::default();
    judge(&mut health, "web", "10.1.0.1:80", Verdict::Up);
    judge(&mut health, "web", "10.1.0.4:80", Verdict::Down);
    let kernel = Watched::default();
    let before = Node::with_kernel(catalog.clone(), health, kernel.clone());
    before.until_programmed().await;
    assert_eq!(before.weight("10.0.0.1:80", "10.1.0.1:80"), 5);
    assert_eq!(before.weight("10.0.0.1:80", "10.1.0.4:80"), 0);
    before.shutdown.cancel();
    before.task.await.unwrap();

    let table = kernel.table.table();
    let applied = kernel.table.applied();
    let after = Node::with_kernel(catalog, HealthView::default(), kernel.clone());
    after.until_programmed().await;
    assert_eq!(kernel.table.applied(), applied);
    assert_eq!(kernel.table.table(), table);
}

#[tokio::test(start_paused = true)]
async fn drift_is_repaired_at_the_next_period_and_counted() {
    let _clock = stop_clock();
    let node = Node::start(two_services());
    node.until_programmed().await;
    // The table was just changed, so the first look is at all of it, the second at its print.
    let status = node.next_period().await;
    assert_eq!(
        (status.counts.whole_passes, status.counts.quiet_checks),
        (2, 0)
    );
    let status = node.next_period().await;
    assert_eq!(
        (status.counts.whole_passes, status.counts.quiet_checks),
        (2, 1)
    );

    node.kernel.table.meddle(|table| {
        table.remove(&key("10.0.0.2:53"));
        let web = table.get_mut(&key("10.0.0.1:80")).unwrap();
        let plain = web.destinations.get_mut(&server("10.1.0.2:80")).unwrap();
        plain.destination.weight = 77;
        let foreign = web.clone();
        table.insert(key("10.9.9.9:80"), foreign);
    });
    let status = node.next_period().await;
    assert_eq!(node.table(), node.wanted());
    // A service and its server, a weight, a foreign service.
    assert_eq!(status.counts.drift_repaired, 4);
    let status = node.next_period().await;
    assert_eq!(status.counts.drift_repaired, 4);
}

#[tokio::test(start_paused = true)]
async fn drift_that_leaves_no_trace_in_the_fingerprint_is_found_in_time() {
    let _clock = stop_clock();
    let node = Node::start(two_services());
    node.until_programmed().await;
    node.next_period().await;
    node.kernel.table.meddle(|table| {
        let dns = table.get_mut(&key("10.0.0.2:53")).unwrap();
        let plain = dns.destinations.get_mut(&server("10.1.0.3:53")).unwrap();
        plain.destination.upper_threshold = 10;
    });
    for _ in 0..9 {
        let status = node.next_period().await;
        assert_eq!(status.counts.drift_repaired, 0);
    }
    let status = node.next_period().await;
    assert_eq!(status.counts.drift_repaired, 1);
    assert_eq!(node.table(), node.wanted());
}

#[tokio::test(start_paused = true)]
async fn a_service_the_kernel_refuses_is_reported_once_and_does_not_stop_the_others() {
    let _clock = stop_clock();
    let node = Node::start(catalog([
        create_service("odd", tcp("10.0.0.1:80"), Scheduler::Twos),
        plain("odd", "10.1.0.1:80"),
        plain("odd", "10.1.0.2:80"),
        service("web", "10.0.0.2:80"),
        plain("web", "10.1.0.3:80"),
    ]));
    let status = node.until_programmed().await;
    let failures: Vec<_> = status.failures.values().collect();
    let [failure] = failures[..] else {
        panic!("{failures:#?}")
    };
    assert_eq!(failure.service, Some(id("odd")));
    assert!(failure.reason.contains("twos"), "{}", failure.reason);
    assert_eq!(node.table().services.len(), 1);
    assert_eq!(node.weight("10.0.0.2:80", "10.1.0.3:80"), 2);

    node.kernel.forget();
    advance(Backoff::default().first).await;
    let again = |status: &Status| {
        status
            .failures
            .values()
            .all(|failure| failure.attempts == 2)
    };
    node.until("it is tried again", again).await;
    assert_eq!(*node.kernel.reads.lock().unwrap(), [key("10.0.0.1:80")]);

    let mut modules = Modules::default();
    modules.schedulers.push("twos".to_owned());
    node.kernel.table.set_modules(modules);
    advance(Backoff::default().longest).await;
    let status = node
        .until("nothing fails", |status| status.failures.is_empty())
        .await;
    assert_eq!(node.table(), node.wanted());
    assert_eq!(status.counts.drift_repaired, 0);
}

#[tokio::test(start_paused = true)]
async fn a_refused_real_server_leaves_its_siblings_alone() {
    let _clock = stop_clock();
    let kernel = Watched::default();
    let at: DestinationKey = server("10.1.0.2:80");
    kernel.table.faults().refuse(move |operation| {
        matches!(operation, Operation::AddDestination(_, to, _) if *to == at).then_some(22)
    });
    let node = Node::with_kernel(two_services(), HealthView::default(), kernel);
    let status = node.until_programmed().await;
    assert_eq!(status.failures.len(), 1);
    let (object, failure) = status.failures.first_key_value().unwrap();
    assert_eq!(
        (object.service, object.destination),
        (key("10.0.0.1:80"), Some(at))
    );
    assert_eq!(
        failure.operation.to_string(),
        "add real server 10.1.0.2:80 weight 2 to TCP 10.0.0.1:80"
    );
    // A table that could not be improved needs no second look at all of it.
    node.kernel.table.faults().heal();
    advance(Backoff::default().first).await;
    node.until("nothing fails", |status| status.failures.is_empty())
        .await;
    assert_eq!(node.table(), node.wanted());
}

#[tokio::test(start_paused = true)]
async fn a_data_plane_that_fails_is_reported_and_retried() {
    let _clock = stop_clock();
    let kernel = Watched::default();
    kernel.table.faults().inject(Call::Dump, Fault::Fail(1));
    let node = Node::with_kernel(two_services(), HealthView::default(), kernel);
    let status = node
        .until("the error shows", |status| status.dataplane_error.is_some())
        .await;
    assert!(!status.first_pass_done);
    assert_ne!(status.programmed, status.catalog);
    node.kernel.table.faults().heal();
    advance(Backoff::default().first).await;
    let status = node.until_programmed().await;
    assert_eq!((status.dataplane_error, status.counts.outages), (None, 1));
    assert_eq!(node.table(), node.wanted());
}

/// In real time: a hang is a matter of it.
#[tokio::test]
async fn a_hanging_data_plane_is_reported_and_work_goes_on_when_it_returns() {
    let kernel = Watched::default();
    let handle = Handle::with_timeout(kernel.clone(), Duration::from_millis(50));
    let config = Config {
        backoff: Backoff {
            first: Duration::from_millis(10),
            longest: Duration::from_millis(50),
        },
        ..Config::default()
    };
    let node = Node::with(
        two_services(),
        HealthView::default(),
        kernel,
        handle,
        config,
    );
    node.until_programmed().await;

    for call in [Call::Read, Call::Apply, Call::Dump] {
        let faults = node.kernel.table.faults();
        faults.inject(call, Fault::Hang);
        if call == Call::Dump {
            faults.inject(Call::Read, Fault::Fail(5));
        }
        let weight = node.weight("10.0.0.1:80", "10.1.0.2:80") + 1;
        node.declare([set_weight("web", "10.1.0.2:80", weight)]);
        let status = node
            .until("the hang shows", |status| {
                let error = status.dataplane_error.as_deref();
                error.is_some_and(|error| error.contains("hanging"))
            })
            .await;
        assert!(status.programmed < status.catalog);
        faults.heal();
        let status = node.until_programmed().await;
        assert_eq!(status.dataplane_error, None);
        assert_eq!(node.weight("10.0.0.1:80", "10.1.0.2:80"), weight);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_when_the_others_are_gone_or_at_shutdown() {
    let _clock = stop_clock();
    let node = Node::start(two_services());
    node.until_programmed().await;
    let wanted = node.table();
    let Node {
        catalog,
        health,
        status,
        kernel,
        shutdown,
        task,
    } = node;
    drop((catalog, health));
    kernel.table.meddle(|table| {
        table.remove(&key("10.0.0.2:53"));
    });
    advance(PERIOD).await;
    let patience = Instant::now();
    while status.borrow().counts.drift_repaired == 0 {
        assert!(patience.elapsed() < DEADLINE);
        look_again().await;
    }
    assert_eq!(kernel.table.table(), wanted);
    shutdown.cancel();
    task.await.unwrap();
    assert_eq!(kernel.table.table(), wanted);
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_never_held_anything_deletes_nothing() {
    let _clock = stop_clock();
    let kernel = Watched::default();
    let before = Node::with_kernel(two_services(), HealthView::default(), kernel.clone());
    before.until_programmed().await;
    let table = kernel.table.table();

    let pristine = Node::with_kernel(Catalog::default(), HealthView::default(), kernel.clone());
    let status = pristine.until_programmed().await;
    assert_eq!(status.foreign, [key("10.0.0.1:80"), key("10.0.0.2:53")]);
    assert_eq!(kernel.table.table(), table);

    // Its first service makes the table merlin's, and what was found there was nobody's drift.
    pristine.declare([service("api", "10.0.0.5:80")]);
    let status = pristine.until_programmed().await;
    assert_eq!(kernel.table.table(), pristine.wanted());
    assert!(status.foreign.is_empty());
    assert_eq!(status.counts.drift_repaired, 0);
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_lost_everything_it_held_deletes_nothing() {
    let _clock = stop_clock();
    let node = Node::start(two_services());
    node.until_programmed().await;
    let table = node.table();
    node.catalog.send_replace(Arc::default());
    node.until_programmed().await;
    let status = node.next_period().await;
    assert_eq!(status.foreign, [key("10.0.0.1:80"), key("10.0.0.2:53")]);
    assert_eq!(node.table(), table);
}

#[tokio::test(start_paused = true)]
async fn foreign_services_stay_if_told_to_and_declared_ones_still_go() {
    let _clock = stop_clock();
    let kernel = Watched::default();
    let foreign = Node::with_kernel(two_services(), HealthView::default(), kernel.clone());
    foreign.until_programmed().await;
    foreign.shutdown.cancel();
    foreign.task.await.unwrap();

    let config = Config {
        foreign: Foreign::Keep,
        ..Config::default()
    };
    let ours = catalog([service("api", "10.0.0.5:80"), service("web", "10.0.0.1:80")]);
    let handle = Handle::spawn(kernel.clone());
    let node = Node::with(ours, HealthView::default(), kernel, handle, config);
    let status = node.until_programmed().await;
    assert_eq!(status.foreign, [key("10.0.0.2:53")]);
    node.declare([
        delete_service("web"),
        move_service("api", tcp("10.0.0.6:80")),
    ]);
    node.until_programmed().await;
    let keys: Vec<_> = node.table().services.into_keys().collect();
    assert_eq!(keys, [key("10.0.0.2:53"), key("10.0.0.6:80")]);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_a_hanging_data_plane() {
    let _clock = stop_clock();
    let kernel = Watched::default();
    kernel.table.faults().inject(Call::Dump, Fault::Hang);
    let node = Node::with_kernel(two_services(), HealthView::default(), kernel.clone());
    node.until("it hangs", |_| kernel.count(Call::Dump) == 1)
        .await;
    node.shutdown.cancel();
    look_again().await;
    assert!(!node.task.is_finished(), "a pass in progress gets its time");
    let patience = Instant::now();
    while !node.task.is_finished() {
        assert!(patience.elapsed() < DEADLINE);
        advance(Duration::from_secs(1)).await;
        look_again().await;
    }
    kernel.table.faults().heal();
}
