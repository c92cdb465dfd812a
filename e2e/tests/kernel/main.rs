//! Tests on a real IPVS kernel.
//!
//! `cargo test -p e2e --test kernel [FILTER]` boots one user-mode-Linux guest and runs this same
//! executable in it, where every case gets a network of namespaces of its own. One boot and one
//! CPU for all cases, hence one after the other. What they drive must have been built:
//! `cargo build --workspace --bins --examples`.

mod catalog;
mod cluster;
mod dataplane;
mod drift;
mod etcd;
mod forwarding;
mod health;
mod lab;
mod outage;
mod restart;
mod runner;
mod steps;

use std::process::ExitCode;

fn main() -> ExitCode {
    let cases = [
        lab::cases(),
        dataplane::cases(),
        forwarding::cases(),
        catalog::cases(),
        drift::cases(),
        outage::cases(),
        health::cases(),
        restart::cases(),
        cluster::cases(),
        etcd::cases(),
    ];
    runner::main(cases.into_iter().flatten().collect())
}
