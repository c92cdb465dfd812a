//! From the host into the guest, and a case from its network to its verdict.

#![expect(
    clippy::print_stderr,
    reason = "what fails before the first case has no better place"
)]

use std::io::IsTerminal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use e2e::guest::{self, Guest};
use e2e::lab::{Lab, Shape};
use e2e::programs;
use libtest_mimic::{Arguments, Failed, Trial};

/// For all cases together; each has deadlines of its own.
const TIMEOUT: Duration = Duration::from_secs(900);
const MEMORY: &str = "1G";

/// What the cases run. Looked for before a guest is booted, so that a missing one costs nothing.
const PROGRAMS: [&str; 2] = ["merlin", "meradm"];

/// A test: what it shows, the network it wants, and what to do there.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    pub(crate) run: fn(&Lab) -> Result<()>,
}

pub(crate) fn main(cases: Vec<Case>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A guest for nothing would be wasted on a filter meant for other tests.
    let any = cases.iter().any(|case| wanted(&arguments, case.name));
    if arguments.list || guest::inside() || !any {
        arguments.test_threads = Some(1);
        let trials = cases.into_iter().map(Case::into_trial).collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    match run_in_guest(&arguments) {
        Ok(exit) => ExitCode::from(exit.code),
        Err(error) => {
            eprintln!("kernel tests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the filters let a case through, by the rules of libtest.
fn wanted(arguments: &Arguments, name: &str) -> bool {
    let matches = |filter: &String| {
        if arguments.exact {
            name == filter
        } else {
            name.contains(filter.as_str())
        }
    };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}

fn run_in_guest(arguments: &Arguments) -> Result<guest::Exit> {
    for program in PROGRAMS {
        programs::locate(program)?;
    }
    let this = std::env::current_exe().context("finding this test's executable")?;
    let mut guest = Guest::new(this)
        .args(std::env::args_os().skip(1))
        .memory(MEMORY)
        .timeout(TIMEOUT);
    if let Some(directory) = std::env::var_os(programs::DIRECTORY) {
        guest = guest.env(programs::DIRECTORY, directory);
    }
    if arguments.color.is_none() {
        // The guest always believes to talk to a terminal; whether it does is known here.
        let color = if std::io::stdout().is_terminal() {
            "always"
        } else {
            "never"
        };
        guest = guest.args(["--color", color]);
    }
    Ok(guest.run()?)
}

impl Case {
    fn into_trial(self) -> Trial {
        Trial::test(self.name, move || {
            let lab = Lab::new(self.shape).map_err(|error| failed(&error, ""))?;
            let outcome = catch_unwind(AssertUnwindSafe(|| (self.run)(&lab)))
                .unwrap_or_else(|panic| Err(anyhow!("panicked: {}", panic_message(&*panic))));
            outcome.map_err(|error| failed(&error, &lab.logs()))
        })
    }
}

fn failed(error: &anyhow::Error, logs: &str) -> Failed {
    format!("{error:#}\n{logs}").into()
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("with something that is no message")
}
