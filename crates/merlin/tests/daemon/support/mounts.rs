//! Disks that are full, read-only or small, for one daemon to see and nobody else.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::process::without_settings;

/// A mount namespace of its own. Needs root, or a system that lets users have namespaces.
#[derive(Debug)]
pub(crate) struct Mounts {
    /// Keeps the namespace, and runs commands in it.
    keeper: Child,
}

impl Mounts {
    pub(crate) fn new() -> Self {
        let mut unshare = Command::new("unshare");
        if !nix::unistd::geteuid().is_root() {
            unshare.arg("--map-root-user");
        }
        let mut keeper = unshare
            .args(["--mount", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is in the package util-linux");
        let mut ready = String::new();
        let mut stdout = BufReader::new(keeper.stdout.take().unwrap());
        stdout.read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n", "no mount namespace: run as root");
        Self { keeper }
    }

    /// Mounts in here.
    pub(crate) fn mount(&self, args: &[&str], at: &Path) {
        let status = self.enter("mount").args(args).arg(at).status().unwrap();
        assert!(
            status.success(),
            "mount {args:?} {}: {status}",
            at.display()
        );
    }

    /// A program that will see these mounts. It becomes that program: a signal to one is a signal
    /// to the other.
    pub(crate) fn enter(&self, program: &str) -> Command {
        let mut nsenter = without_settings(Command::new("nsenter"));
        nsenter.args(["--target", &self.keeper.id().to_string(), "--mount"]);
        if !nix::unistd::geteuid().is_root() {
            nsenter.args(["--user", "--preserve-credentials"]);
        }
        nsenter.arg(program);
        nsenter
    }

    /// A path as it looks in here, for those outside.
    pub(crate) fn see(&self, path: &Path) -> PathBuf {
        let root = format!("/proc/{}/root", self.keeper.id());
        Path::new(&root).join(path.strip_prefix("/").unwrap())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
