//! What a machine must have before a guest can run, and what to install if it has not.

use std::env;
use std::path::Path;

use thiserror::Error;

/// A program per Debian package that a guest or the lab in it cannot do without.
const PROGRAMS: [(&str, &str); 8] = [
    ("linux.uml", "user-mode-linux"),
    ("ipvsadm", "ipvsadm"),
    ("ip", "iproute2"),
    ("iptables-legacy", "iptables"),
    ("modprobe", "kmod"),
    ("sysctl", "procps"),
    ("setsid", "util-linux"),
    ("mkfs.ext4", "e2fsprogs"),
];

/// Where Debian puts programs for administrators, on the path of an ordinary user or not.
const SYSTEM_PATHS: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];

/// Packages this machine lacks.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a guest needs {}; on Debian: apt-get install {}", .programs.join(", "), .packages.join(" "))]
pub struct Missing {
    pub programs: Vec<&'static str>,
    pub packages: Vec<&'static str>,
}

/// Checks that this machine can run a guest.
pub fn requirements() -> Result<(), Missing> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories: Vec<_> = env::split_paths(&path)
        .chain(SYSTEM_PATHS.iter().map(Into::into))
        .collect();
    check(|program| {
        directories
            .iter()
            .any(|directory| is_program(&directory.join(program)))
    })
}

fn is_program(path: &Path) -> bool {
    path.is_file()
}

fn check(present: impl Fn(&str) -> bool) -> Result<(), Missing> {
    let (programs, packages): (Vec<_>, Vec<_>) = PROGRAMS
        .into_iter()
        .filter(|(program, _)| !present(program))
        .unzip();
    if programs.is_empty() {
        Ok(())
    } else {
        Err(Missing { programs, packages })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_packages_that_bring_it() {
        let missing = check(|program| !matches!(program, "linux.uml" | "ipvsadm")).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "a guest needs linux.uml, ipvsadm; \
             on Debian: apt-get install user-mode-linux ipvsadm"
        );
        assert_eq!(check(|_| true), Ok(()));
    }
}
