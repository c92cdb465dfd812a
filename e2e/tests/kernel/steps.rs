//! What most cases do: ask a service who is there, look at the rules, let some traffic pass.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::lab::{Family, Host, Lab, Shape, vip};
use e2e::peer::{Answers, Load, LoadPlan, Protocol, survey};
use e2e::poll::eventually;

/// Where every test service and server listens.
pub(crate) const PORT: u16 = 80;

/// One balancer and two real servers: enough for most.
pub(crate) const SMALL: Shape = Shape {
    balancers: 1,
    servers: 2,
};

/// For a change to reach the kernel, on a slow machine.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// After which an unanswered question counts as failed.
const ANSWER: Duration = Duration::from_secs(1);

/// The IPv4 service of most cases.
pub(crate) fn service() -> SocketAddr {
    SocketAddr::new(vip(Family::V4, 1), PORT)
}

/// A real server's IPv4 address for masquerading.
pub(crate) fn masqueraded(server: &Host) -> SocketAddr {
    SocketAddr::new(server.back(Family::V4), PORT)
}

/// Asks as the client.
pub(crate) fn ask(
    lab: &Lab,
    protocol: Protocol,
    service: SocketAddr,
    questions: usize,
) -> Result<Answers> {
    lab.client
        .namespace
        .enter(|| Ok(survey(protocol, service, questions, ANSWER)))
}

/// Waits until the host's kernel holds these rules, as `ipvsadm --save` writes them, and no others.
pub(crate) fn await_rules(host: &Host, wanted: &[String]) -> Result<()> {
    let wanted: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
    eventually(SOON, || {
        let rules = host.rules()?;
        let rules: BTreeSet<&str> = rules.iter().map(String::as_str).collect();
        ensure!(
            rules == wanted,
            "{} holds {rules:#?}, not {wanted:#?}",
            host.name()
        );
        Ok(())
    })
}

/// The rule of a TCP service.
pub(crate) fn service_rule(service: SocketAddr, scheduler: &str) -> String {
    format!("-A -t {service} -s {scheduler}")
}

/// The rule of a masqueraded server of a TCP service.
pub(crate) fn server_rule(service: SocketAddr, server: SocketAddr, weight: u32) -> String {
    format!("-a -t {service} -r {server} -m -w {weight}")
}

/// Traffic to a service, with connections that must last.
pub(crate) fn start_load(lab: &Lab, service: SocketAddr) -> Result<Load> {
    let plan = LoadPlan {
        target: service,
        lasting: 4,
        pause: Duration::from_millis(2),
        timeout: ANSWER,
    };
    lab.client.namespace.enter(|| Ok(Load::start(plan)?))
}

/// Lets a load open some more connections.
pub(crate) fn carry(load: &Load, more: usize) -> Result<()> {
    let goal = load.opened() + more;
    eventually(Duration::from_secs(20), || {
        ensure!(
            load.opened() >= goal,
            "{} of {goal} connections opened",
            load.opened()
        );
        Ok(())
    })
}
