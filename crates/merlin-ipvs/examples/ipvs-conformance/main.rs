//! Holds the kernel's IPVS to the conformance suite, and to `ipvsadm`.
//!
//! For a throw-away machine: it needs root, loads modules and changes socket buffer limits while
//! it runs. Every check gets a network namespace of its own.
//!
//! ```text
//! ipvs-conformance            all checks
//! ipvs-conformance WORD       those with WORD in their names
//! ipvs-conformance --open     only opens IPVS and says what comes of it
//! ```
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program whose result is what it prints"
)]

mod ipvsadm;
mod kernel;
mod random;

use std::process::{Command, ExitCode};
use std::thread;
use std::time::Instant;

use merlin_ipvs::{Kernel, conformance};
use nix::sched::{CloneFlags, unshare};

/// Something the kernel's table must do.
struct Check {
    name: &'static str,
    run: Box<dyn FnOnce() + Send>,
}

/// Lists functions that take a [`Kernel`] as checks that have their names.
macro_rules! checks {
    ($($name:ident),* $(,)?) => {
        pub(crate) fn checks() -> Vec<crate::Check> {
            vec![$(crate::Check {
                name: stringify!($name),
                run: Box::new(|| $name(&mut crate::open())),
            }),*]
        }
    };
}
pub(crate) use checks;

fn main() -> ExitCode {
    let word = std::env::args().nth(1).unwrap_or_default();
    if word == "--open" {
        return open_only();
    }
    // Fails where it is built in.
    let _ = Command::new("modprobe").arg("ipv6").status();

    let suite = conformance::cases().map(|case| Check {
        name: case.name,
        run: Box::new(move || (case.run)(&mut open())),
    });
    let checks = suite
        .chain(ipvsadm::checks())
        .chain(kernel::checks())
        .chain(random::checks())
        .filter(|check| check.name.contains(&word));
    let mut failed = 0_u32;
    let mut passed = 0_u32;
    for Check { name, run } in checks {
        let in_namespace = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root can make a network namespace");
            command("ip", &["link", "set", "lo", "up"]);
            run();
        };
        let start = Instant::now();
        let joined = thread::spawn(in_namespace).join();
        let taken = start.elapsed().as_millis();
        match joined {
            Ok(()) => {
                passed += 1;
                println!("ok      {name} ({taken} ms)");
            }
            Err(_) => {
                failed += 1;
                println!("FAILED  {name} ({taken} ms)");
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn open_only() -> ExitCode {
    match Kernel::open() {
        Ok(_) => {
            println!("IPVS is available");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn open() -> Kernel {
    Kernel::open().expect("IPVS is available")
}

/// Runs a program that must succeed; what it printed.
#[track_caller]
fn command(program: &str, arguments: &[&str]) -> String {
    let run = Command::new(program).args(arguments).output();
    let output = run.expect("the program is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
