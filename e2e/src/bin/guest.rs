//! Runs a command as root on a real Linux kernel with IPVS, in a guest that vanishes afterwards.
//!
//! Exit code: the command's; 124 if it ran into its time-out, 125 if there was no guest or it
//! died.

#![expect(
    clippy::print_stderr,
    reason = "a wrapper reports its own failures beside the output"
)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use e2e::guest::Guest;

const NO_GUEST: u8 = 125;

/// Run a command in a user-mode-Linux guest.
#[derive(Debug, Parser)]
struct Options {
    /// Memory of the guest; only touched pages are taken from the host.
    #[arg(short, long, default_value = "512M")]
    memory: String,

    /// Seconds the command may run.
    #[arg(short, long, default_value_t = 120)]
    timeout: u64,

    /// Set a variable for the command.
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = assignment)]
    environment: Vec<(String, String)>,

    /// Add a disk image (/dev/ubda, /dev/ubdb, ...).
    #[arg(short, long = "disk", value_name = "IMAGE")]
    disks: Vec<PathBuf>,

    /// Pin the guest to this host CPU.
    #[arg(long)]
    cpu: Option<usize>,

    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut command = options.command.into_iter();
    let program = command.next().expect("clap demands at least one word");
    let mut guest = Guest::new(program)
        .args(command)
        .memory(options.memory)
        .timeout(Duration::from_secs(options.timeout));
    for (name, value) in options.environment {
        guest = guest.env(name, value);
    }
    for disk in options.disks {
        guest = guest.disk(disk);
    }
    if let Some(cpu) = options.cpu {
        guest = guest.cpu(cpu);
    }
    match guest.run() {
        Ok(exit) => ExitCode::from(exit.code),
        Err(error) => {
            eprintln!("guest: {:#}", anyhow::Error::from(error));
            ExitCode::from(NO_GUEST)
        }
    }
}
