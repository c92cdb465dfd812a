//! Namespaces around a whole run.
//!
//! The program starts itself again under `unshare`: as the first process of a process namespace,
//! with networks and mounts of its own. When it ends, however it ends, the kernel kills the rest,
//! and mounts, loop devices and networks go with the last process.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result};

/// Set in the environment of the program that runs inside.
const INSIDE: &str = "JEPSEN_LIKE_INSIDE";

#[must_use]
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs this program again inside an enclosure, and waits. What is inside ends with this thread.
pub fn run(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<ExitStatus> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new("setpriv")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("setpriv");
        sudo
    };
    // `unshare` itself ignores the signals that end other programs.
    command.args(["--pdeathsig", "KILL", "unshare"]);
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child"]);
    command.args(["--mount-proc", "--propagation", "private", "--", "env"]);
    command.arg(format!("{INSIDE}=1"));
    if let Some(programs) = std::env::var_os(e2e::programs::DIRECTORY) {
        let mut setting = OsString::from(e2e::programs::DIRECTORY);
        setting.push("=");
        setting.push(programs);
        command.arg(setting);
    }
    let status = command.arg(program).args(args).status();
    status.context("starting setpriv and unshare (Debian: util-linux)")
}

/// Covers what the lab would otherwise share with the host.
pub fn settle() -> Result<()> {
    super::network::checked("mount", &["-t", "tmpfs", "tmpfs", "/run"])?;
    std::fs::create_dir_all(Path::new(super::PRIVATE))?;
    Ok(())
}
