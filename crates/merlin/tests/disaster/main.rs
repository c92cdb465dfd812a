//! What is left when disks, quorums or whole clusters are lost, and the way back.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, helpers too")]

mod disk;
#[path = "../daemon/support/mounts.rs"]
mod mounts;
mod node;
mod procedures;
mod recovery;
mod snapshots;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "every test uses some of it")]
mod support;
mod upgrade;

/// What [`mounts`] starts programs with.
mod process {
    use std::process::Command;

    pub(crate) fn without_settings(mut command: Command) -> Command {
        command.env_clear();
        command
    }
}
