//! A network of its own for a test, with addresses that are not loopback ones.

use std::net::SocketAddr;
use std::process::Command;

/// Said to the test that runs inside.
const INSIDE: &str = "MERLIN_TEST_NAMESPACE";

/// Where nodes in a namespace answer other hosts.
pub(crate) fn address(host: u8) -> SocketAddr {
    ([10, 9, 9, host], 4282).into()
}

/// Runs the test of this name in a network namespace: the test program runs itself again there.
pub(crate) fn alone(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let setup = "ip link set lo up && \
         for host in 1 2 3; do ip address add 10.9.9.$host/32 dev lo || exit; done && \
         exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.arg("--net");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let ended = command
        .args(["sh", "-c", setup])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(ended.success(), "{name}: {ended}");
}

/// The same for a test that waits for answers.
pub(crate) fn alone_async(name: &str, test: impl AsyncFnOnce()) {
    alone(name, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(test());
    });
}
