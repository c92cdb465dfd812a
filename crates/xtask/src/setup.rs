//! Debian packages that the tasks need.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// What the build itself runs: a C compiler for the cryptography, and the compiler of protobuf
/// files for etcd's, with the files that those import.
pub(crate) const BUILD: &[&str] = &["gcc", "libc6-dev", "libprotobuf-dev", "protobuf-compiler"];

/// A guest with a real IPVS kernel, and what the demo runs in it.
pub(crate) const GUEST: &[&str] = &[
    "e2fsprogs",
    "user-mode-linux",
    "ipvsadm",
    "iproute2",
    "iptables",
    "kmod",
    "procps",
    "util-linux",
];

/// What the tests need beyond that: another language's gRPC, and what reads manual pages.
pub(crate) const TEST: &[&str] = &["groff-base", "python3-grpcio", "python3-protobuf"];

/// A cluster in namespaces, with disks and clocks that fail; its catalog may be in an etcd.
pub(crate) const LAB: &[&str] = &[
    "e2fsprogs",
    "etcd-client",
    "etcd-server",
    "iproute2",
    "libfaketime",
    "mount",
    "nftables",
    "util-linux",
];

/// The rivals that benchmarks measure beside merlin.
pub(crate) const BENCH: &[&str] = &["etcd-client", "etcd-server", "keepalived"];

pub(crate) const ALL: &[&[&str]] = &[BUILD, GUEST, LAB, TEST, BENCH];

/// Installs whichever packages are missing; a machine that has them all is left alone.
pub(crate) fn install(sets: &[&[&str]]) -> Result<()> {
    let missing: Vec<&str> = sets
        .iter()
        .copied()
        .flatten()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("xtask: installing {}", missing.join(" "));
    let hint = || format!("run as root: apt-get install {}", missing.join(" "));
    apt_get(&["update"]).with_context(hint)?;
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(&missing);
    apt_get(&install).with_context(hint)
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

/// Runs apt-get quietly, as root. Services of installed packages are kept from starting: the tasks
/// start what they need themselves.
fn apt_get(args: &[&str]) -> Result<()> {
    let is_root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|id| id.stdout == b"0\n");
    let mut command = if is_root {
        Command::new("env")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("env");
        sudo
    };
    command
        .args([
            "DEBIAN_FRONTEND=noninteractive",
            "RUNLEVEL=1",
            "apt-get",
            "-qq",
        ])
        .args(args)
        .stdout(Stdio::null())
        .stdin(Stdio::null());
    let status = command.status().context("starting apt-get")?;
    ensure!(
        status.success(),
        "apt-get {} failed: {status}",
        args.join(" ")
    );
    Ok(())
}
