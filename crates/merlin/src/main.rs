//! The merlin daemon and its cluster commands.

mod api;
mod cli;
mod clock;
mod cluster;
mod config;
mod daemon;
mod fleet;
mod generate;
mod http;
mod listen;
mod logging;
mod metrics;
mod migrate;
mod node;
mod rejoin;
mod store;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;

use crate::cli::{Cli, Command, RunArgs};
use crate::config::Config;
use crate::daemon::Ended;

/// Messages and entries come and go in many small pieces, on whichever thread is free. The allocator
/// of glibc takes locks and asks the kernel for that.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(cli::modernise(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => {
            // Help that was asked for goes to standard output, everything else does not.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()) * 2);
        }
    };
    match cli.command {
        None => run(&cli.run),
        Some(Command::Run(args)) => run(&args),
        Some(Command::Cluster(args)) => with_runtime(cluster::run(&args)),
        Some(Command::Migrate(args)) => with_runtime(migrate::run(&args)),
        Some(Command::Completions { shell }) => generate::completions(shell),
        Some(Command::Man { out_dir }) => generate::man(out_dir.as_deref()),
    }
}

fn run(args: &RunArgs) -> ExitCode {
    let config = match Config::load(args) {
        Ok(config) => config,
        Err(error) => {
            report(&error);
            return ExitCode::from(2);
        }
    };
    let level = logging::start(config.log_format, config.debug);
    raise_descriptor_limit();
    end_at_panics();
    with_runtime(async {
        loop {
            match daemon::run(config.clone(), args, &level).await {
                Ok(Ended::Stopped) => return ExitCode::SUCCESS,
                Ok(Ended::Joined) => {}
                Err(error) => {
                    report(&error);
                    return ExitCode::FAILURE;
                }
            }
        }
    })
}

fn with_runtime(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            report(&anyhow::Error::new(error).context("starting the runtime"));
            ExitCode::FAILURE
        }
    }
}

/// A task that panicked has left undone nobody knows what. So the process ends with it: the kernel
/// keeps its rules, and the supervisor starts a new one that looks at everything afresh.
fn end_at_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !merlin_raft::panic_is_expected() {
            report(panic);
            std::process::abort();
        }
    }));
}

/// Every probe in flight and every client takes a descriptor, and the usual soft limit of 1024 is
/// there for programs that use `select`. What the administrator set as the hard limit stands.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn report(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "merlin: {error:#}");
}
