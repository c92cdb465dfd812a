//! How long the kernel takes to be given a large table, and to be asked for it.
//!
//! For a throw-away machine: it needs root. Every run has a network namespace of its own.
//!
//! ```text
//! ipvs-apply [SERVICES [DESTINATIONS]]
//! ```
#![expect(
    clippy::print_stdout,
    reason = "a program whose result is what it prints"
)]

use std::process::Command;
use std::time::Instant;

use merlin_ipvs::conformance::samples::{additions, many};
use merlin_ipvs::wire::Request;
use merlin_ipvs::wire::netlink::Header;
use merlin_ipvs::{Dataplane, Kernel};
use merlin_model::table::Operation;
use nix::sched::{CloneFlags, unshare};

const RUNS: u32 = 3;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| {
        let argument = arguments.next();
        argument.map_or(default, |text| text.parse().expect("a number up to 65535"))
    };
    let (services, destinations) = (number(1000), number(10));
    let table = many(services, destinations);
    let mut operations = additions(&table);
    for operation in &mut operations {
        if let Operation::AddService(_, service) = operation {
            service.scheduler = "rr".to_owned();
        }
    }
    println!("{} operations", operations.len());
    timed("encode", || encode(&operations));
    for _ in 0..RUNS {
        unshare(CloneFlags::CLONE_NEWNET).expect("root can make a network namespace");
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.expect("ip is installed").success());
        let mut kernel = Kernel::open().expect("IPVS is available");
        let answers = timed("apply", || kernel.apply(&operations));
        let refused = answers.expect("the table can be changed");
        assert!(refused.iter().all(Result::is_ok));
        timed("fingerprint", || kernel.fingerprint()).expect("it can be read");
        let dumped = timed("dump", || kernel.dump()).expect("it can be read");
        assert_eq!(dumped.services.len(), table.services.len());
    }
}

fn encode(operations: &[Operation]) -> usize {
    let mut buffer = Vec::new();
    let mut bytes = 0;
    for batch in operations.chunks(256) {
        buffer.clear();
        for operation in batch {
            let header = Header {
                family: 0,
                flags: 0,
                sequence: 0,
            };
            Request::from(operation).encode(header, &mut buffer);
        }
        bytes += std::hint::black_box(&buffer).len();
    }
    bytes
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what:12} {:8.2} ms", start.elapsed().as_secs_f64() * 1e3);
    result
}
