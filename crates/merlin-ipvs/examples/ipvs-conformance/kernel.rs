//! What only a real kernel does: other commands, privileges, buffers that overflow.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use merlin_ipvs::conformance::samples::{at, fwmark, service, tcp, to};
use merlin_ipvs::wire::{Daemon, DaemonState, Info, Request};
use merlin_ipvs::{Dataplane, DataplaneError, Kernel};
use merlin_model::Family;
use merlin_model::table::{ForwardMethod, Key, Operation, Table};

use crate::ipvsadm::apply;
use crate::{checks, command};

checks![
    the_kernel_says_which_ipvs_it_is,
    one_request_empties_the_table,
    counters_are_reset_for_one_service_and_for_all,
    synchronisation_daemons_start_and_stop,
    a_synchronisation_daemon_forbids_the_other_family,
    without_privileges_the_error_names_the_capability,
    without_lo_the_refusal_says_so,
    answers_that_do_not_fit_are_reported_and_never_misattributed,
    requests_that_do_not_fit_are_sent_in_smaller_batches,
    a_dump_is_whole_or_says_that_it_cannot_be,
    each_network_namespace_has_its_own_table,
    clashing_refusals_are_stale,
    an_unloaded_module_is_loaded_again,
];

/// One of many services.
fn key(number: u16) -> Key {
    let [high, low] = number.to_be_bytes();
    tcp(&format!("10.0.{high}.{low}"), 80)
}

fn add(number: u16) -> Operation {
    Operation::AddService(key(number), service(&key(number), "rr"))
}

fn dump(kernel: &mut Kernel) -> Table {
    kernel.dump().expect("the table can be read")
}

#[track_caller]
fn ask(kernel: &mut Kernel, request: &Request<'_>) {
    let asked = kernel.request(request, |_| Ok(()));
    asked.unwrap_or_else(|error| panic!("{request:?}: {error:?}"));
}

fn the_kernel_says_which_ipvs_it_is(kernel: &mut Kernel) {
    let mut info = Info::default();
    let asked = kernel.request(&Request::GetInfo, |message| {
        info = message.info()?;
        Ok(())
    });
    asked.expect("it answers");
    assert_eq!(info.version >> 16, 1, "{info:?}");
    assert!(info.connection_table_size.is_power_of_two(), "{info:?}");
}

fn one_request_empties_the_table(kernel: &mut Kernel) {
    apply(kernel, &[add(1)]);
    ask(kernel, &Request::Flush);
    assert_eq!(dump(kernel), Table::default());
}

fn counters_are_reset_for_one_service_and_for_all(kernel: &mut Kernel) {
    apply(kernel, &[add(1)]);
    // A connection without servers counts as none, but its packet and bytes are seen by `lo`; what
    // matters here is that the kernel takes the requests and knows the service.
    ask(kernel, &Request::Zero(Some(&key(1))));
    ask(kernel, &Request::Zero(None));
    let missing = kernel.request(&Request::Zero(Some(&key(2))), |_| Ok(()));
    assert!(matches!(missing, Err(DataplaneError::Refused { .. })));
}

fn daemons(kernel: &mut Kernel) -> Vec<Daemon> {
    let mut daemons = Vec::new();
    let asked = kernel.request(&Request::DumpDaemons, |message| {
        daemons.push(message.daemon()?);
        Ok(())
    });
    asked.expect("they can be listed");
    daemons
}

fn daemon() -> Daemon {
    command("ip", &["link", "add", "sync0", "type", "dummy"]);
    command("ip", &["addr", "add", "10.99.0.1/24", "dev", "sync0"]);
    command("ip", &["link", "set", "sync0", "up", "multicast", "on"]);
    Daemon {
        state: DaemonState::Master,
        interface: "sync0".to_owned(),
        sync_id: 3,
        max_length: 1400,
        group: Some([224, 0, 0, 99].into()),
        port: 8850,
        ttl: 2,
    }
}

/// Stops a daemon. The kernel does not answer if the daemon's thread had no time to begin: it
/// ends with `EINTR`, which netlink takes for a request to be made again.
fn stop(kernel: &mut Kernel, state: DaemonState) {
    match kernel.request(&Request::DelDaemon(state), |_| Ok(())) {
        Ok(()) | Err(DataplaneError::Unanswered { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
    assert_eq!(daemons(kernel), []);
}

fn synchronisation_daemons_start_and_stop(kernel: &mut Kernel) {
    assert_eq!(daemons(kernel), []);
    let master = daemon();
    ask(kernel, &Request::NewDaemon(&master));
    assert_eq!(daemons(kernel), std::slice::from_ref(&master));
    stop(kernel, DaemonState::Master);
    let backup = Daemon {
        state: DaemonState::Backup,
        ..master
    };
    ask(kernel, &Request::NewDaemon(&backup));
    assert_eq!(daemons(kernel), [backup]);
    stop(kernel, DaemonState::Backup);
}

fn a_synchronisation_daemon_forbids_the_other_family(kernel: &mut Kernel) {
    ask(kernel, &Request::NewDaemon(&daemon()));
    apply(kernel, &[add(1)]);
    let mixed =
        Operation::AddDestination(key(1), at("2001:db8::1", 80), to(ForwardMethod::Tunnel, 1));
    let answers = kernel.apply(&[mixed]).expect("the table can be changed");
    let refusal = answers[0].as_ref().expect_err("it is refused").to_string();
    stop(kernel, DaemonState::Master);
    assert!(refusal.contains("synchronisation daemon"), "{refusal}");
}

fn without_privileges_the_error_names_the_capability(_: &mut Kernel) {
    let program = std::env::current_exe().expect("this program has a file");
    let nobody = 65_534;
    let opened = Command::new(program)
        .arg("--open")
        .uid(nobody)
        .gid(nobody)
        .output();
    let output = opened.expect("it can be run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    let capability = "CAP_NET_ADMIN in the initial user namespace";
    assert!(error.contains(capability), "{error}");
}

fn without_lo_the_refusal_says_so(_: &mut Kernel) {
    // Once it was up the kernel has the routes it looks for, so this takes another namespace.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root can make one");
    let mut kernel = crate::open();
    apply(&mut kernel, &[add(1)]);
    let add = Operation::AddDestination(key(1), at("192.168.0.1", 80), to(ForwardMethod::Masq, 1));
    let answers = kernel.apply(&[add]).expect("the table can be changed");
    let refusal = answers[0].as_ref().expect_err("it is refused").to_string();
    assert!(refusal.contains("is the lo interface up"), "{refusal}");
}

/// Sets a kernel parameter for as long as this lives.
struct Parameter {
    path: &'static str,
    before: String,
}

impl Parameter {
    fn set(path: &'static str, value: &str) -> Self {
        let before = in_first_namespace(&format!("cat {path}"));
        in_first_namespace(&format!("echo {value} > {path}"));
        Self { path, before }
    }
}

impl Drop for Parameter {
    fn drop(&mut self) {
        in_first_namespace(&format!("echo {} > {}", self.before.trim(), self.path));
    }
}

/// Runs a shell command where the parameters that concern all namespaces can be seen.
fn in_first_namespace(line: &str) -> String {
    command("nsenter", &["--net=/proc/1/ns/net", "sh", "-c", line])
}

fn answers_that_do_not_fit_are_reported_and_never_misattributed(_: &mut Kernel) {
    let _small = Parameter::set("/proc/sys/net/core/rmem_max", "4608");
    let mut kernel = crate::open();
    // Every third is refused, and there is room for a dozen answers.
    let operations: Vec<_> = (0..600)
        .map(|number| add(number - u16::from(number % 3 == 2)))
        .collect();
    let mut lost = 0;
    let answers = loop {
        match kernel.apply(&operations) {
            Ok(answers) => break answers,
            Err(DataplaneError::Lost { .. }) => lost += 1,
            Err(error) => panic!("{error:?}"),
        }
        ask(&mut kernel, &Request::Flush);
        assert!(lost < 10, "it never gets through");
    };
    assert!(lost > 0, "the answers were meant not to fit");
    for (number, answer) in answers.into_iter().enumerate() {
        let errno = answer.err().map_or(0, |refusal| refusal.errno);
        assert_eq!(
            errno,
            if number % 3 == 2 { 17 } else { 0 },
            "operation {number}"
        );
    }
}

fn requests_that_do_not_fit_are_sent_in_smaller_batches(_: &mut Kernel) {
    let _small = Parameter::set("/proc/sys/net/core/wmem_default", "4608");
    let mut kernel = crate::open();
    let operations: Vec<_> = (0..500).map(add).collect();
    apply(&mut kernel, &operations);
    assert_eq!(dump(&mut kernel).services.len(), operations.len());
}

/// Beside a writer that never rests and changes the heads of the lists by which dumps go.
fn a_dump_is_whole_or_says_that_it_cannot_be(kernel: &mut Kernel) {
    const WINDOW: u32 = 100;

    let additions: Vec<_> = (0..300).map(add).collect();
    apply(kernel, &additions);
    let expected: BTreeSet<_> = (0..300).map(key).collect();
    let missing = |table: &Table| {
        let keys = table.services.keys().copied().collect();
        expected.difference(&keys).count()
    };
    let passing = |number: u32| Key::Address {
        protocol: 17,
        address: number.to_be_bytes().into(),
        port: 53,
    };
    // In the same namespace, which is that of the thread.
    let mut writer = crate::open();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // A moving window, so that the table never becomes what it was before.
            for number in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                let (new, old) = (passing(WINDOW + number), passing(number));
                let add = Operation::AddService(new, service(&new, "rr"));
                // At first there is nothing to delete.
                let done = writer.apply(&[add, Operation::DeleteService(old)]);
                done.expect("the table can be changed");
            }
        });
        let dumps: Vec<_> = (0..5).map(|_| kernel.dump()).collect();
        stop.store(true, Ordering::Relaxed);
        for dump in dumps {
            match dump {
                Ok(table) => assert_eq!(missing(&table), 0),
                Err(DataplaneError::Unsettled { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    });
    assert_eq!(missing(&dump(kernel)), 0);
}

fn each_network_namespace_has_its_own_table(kernel: &mut Kernel) {
    apply(kernel, &[add(1)]);
    let fingerprint = kernel.fingerprint().expect("there is one");
    let elsewhere = thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root can make one");
        let mut kernel = crate::open();
        assert_eq!(dump(&mut kernel), Table::default());
        assert_ne!(kernel.fingerprint().expect("there is one"), fingerprint);
    });
    elsewhere.join().expect("it goes well elsewhere");
    assert_eq!(dump(kernel).services.len(), 1);
}

fn clashing_refusals_are_stale(kernel: &mut Kernel) {
    let (there, missing) = (key(1), key(2));
    let server = at("192.168.0.1", 80);
    let masq = to(ForwardMethod::Masq, 1);
    let mark = fwmark(Family::Ipv4, 1);
    apply(
        kernel,
        &[add(1), Operation::AddDestination(there, server, masq)],
    );
    let bogus = service(&there, "bogus");
    for (operation, stale) in [
        (add(1), true),
        (
            Operation::EditService(missing, service(&missing, "rr")),
            true,
        ),
        (Operation::DeleteService(mark), true),
        (Operation::AddDestination(there, server, masq), true),
        (Operation::AddDestination(missing, server, masq), true),
        (
            Operation::EditDestination(there, at("192.168.0.2", 80), masq),
            true,
        ),
        (
            Operation::DeleteDestination(there, at("192.168.0.2", 80)),
            true,
        ),
        (Operation::AddService(mark, bogus.clone()), false),
        (Operation::EditService(there, bogus), false),
        (
            Operation::AddDestination(there, at("224.0.0.1", 80), masq),
            false,
        ),
    ] {
        let answers = kernel
            .apply(std::slice::from_ref(&operation))
            .expect("it can be changed");
        let refusal = answers[0].as_ref().expect_err("it is refused");
        assert_eq!(refusal.is_stale(), stale, "{operation}: {refusal}");
    }
}

fn an_unloaded_module_is_loaded_again(kernel: &mut Kernel) {
    // The tables of earlier namespaces hold the module until the kernel has cleaned up.
    let deadline = Instant::now() + Duration::from_secs(20);
    let unload = "{ rmmod $(lsmod | awk '/^ip_vs_/ { print $1 }'); rmmod ip_vs; } 2>/dev/null";
    while in_first_namespace(&format!("{unload}; lsmod")).contains("ip_vs") {
        assert!(Instant::now() < deadline, "something still uses it");
    }
    assert_eq!(dump(kernel), Table::default());
    apply(kernel, &[add(1)]);
    assert_eq!(dump(kernel).services.len(), 1);
}
