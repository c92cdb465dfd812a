//! One network namespace, and ways to do things in it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A network namespace made by `ip netns add`. The value is only its name; whoever builds the
/// network makes and deletes the namespace itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    #[must_use]
    pub fn named(name: String) -> Self {
        Self { name }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread that has entered the namespace: sockets it opens, processes and
    /// threads it starts, and `/proc/sys/net` and `/proc/thread-self/net` are the namespace's.
    /// This costs one thread, where `ip netns exec` costs two programs.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = PathBuf::from("/run/netns").join(&self.name);
        let namespace =
            File::open(&path).with_context(|| format!("opening namespace {}", path.display()))?;
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("entering namespace {}", self.name))?;
                work()
            });
            match worker.join() {
                Ok(result) => result,
                // A failed assertion in the work is the caller's.
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs a program to its end and returns its standard output; its failure is an error that
    /// shows what it said.
    pub fn run<const N: usize>(&self, program: &str, args: [&str; N]) -> Result<String> {
        self.output(Command::new(program).args(args))
    }

    /// Likewise, for a command already put together.
    pub fn output(&self, command: &mut Command) -> Result<String> {
        self.enter(|| checked_output(command))
    }

    /// Writes a sysctl of the namespace, named as under `/proc/sys` (`net/ipv4/ip_forward`).
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.enter(|| write_sysctl(name, value))
    }
}

/// For a thread that is already in the namespace.
pub(super) fn write_sysctl(name: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/{name}"), value)
        .with_context(|| format!("setting {name} to {value}"))
}

/// The standard output of a command that must succeed.
pub(super) fn checked_output(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    if !status.success() {
        bail!(
            "{command:?} failed ({status}): {}",
            String::from_utf8_lossy(&stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
