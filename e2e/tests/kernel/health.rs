//! Real servers fall ill and recover.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::lab::Lab;
use e2e::merlin::Merlin;
use e2e::peer::Protocol;
use e2e::peer::client::Conversation;

use crate::runner::Case;
use crate::steps::{
    PORT, SMALL, ask, await_rules, masqueraded, server_rule, service, service_rule,
};

pub(crate) const CHECK: &str = "--health-endpoint http://:80/health --health-period 200ms \
     --health-timeout 500ms --health-up 2 --health-down 2";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "health::a_sick_server_gets_no_new_connections_until_it_is_well",
            shape: SMALL,
            run: a_sick_server_gets_no_new_connections,
        },
        Case {
            name: "health::a_server_is_brought_in_by_its_first_good_checks",
            shape: SMALL,
            run: a_server_is_brought_in_by_its_first_good_checks,
        },
    ]
}

fn rules(service: SocketAddr, [one, two]: [(SocketAddr, u32); 2]) -> [String; 3] {
    [
        service_rule(service, "rr"),
        server_rule(service, one.0, one.1),
        server_rule(service, two.0, two.1),
    ]
}

fn a_sick_server_gets_no_new_connections(lab: &Lab) -> Result<()> {
    lab.serve(PORT)?;
    let balancer = &lab.balancers[0];
    let merlin = Merlin::start_new(lab, balancer, "")?;
    let service = service();
    let [one, two] = [0, 1].map(|n| masqueraded(&lab.servers[n]));
    merlin.meradm(&format!("service add web tcp {service} -s rr"))?;
    merlin.meradm(&format!("server add web {one} -w 1 -f masq {CHECK}"))?;
    merlin.meradm(&format!("server add web {two} -w 1 -f masq {CHECK}"))?;
    await_rules(balancer, &rules(service, [(one, 1), (two, 1)]))?;

    // Two connections in turn: one of them is with the server that will be sick.
    let mut connections = lab.client.namespace.enter(|| {
        let open = || Conversation::open(service, Duration::from_secs(1));
        Ok([open()?, open()?])
    })?;
    let partners = ask_each(&mut connections)?;
    ensure!(
        partners[0] != partners[1],
        "both connections went to {}",
        partners[0]
    );

    lab.set_healthy(&lab.servers[0], false)?;
    await_rules(balancer, &rules(service, [(one, 0), (two, 1)]))?;
    let answers = ask(lab, Protocol::Tcp, service, 6)?;
    ensure!(answers.from("rs2") == 6, "while rs1 was sick:\n{answers}");
    ensure!(
        ask_each(&mut connections)? == partners,
        "an established connection moved"
    );
    let live = merlin.meradm("list --live")?;
    ensure!(live.contains("503"), "the reason is not shown:\n{live}");

    lab.set_healthy(&lab.servers[0], true)?;
    await_rules(balancer, &rules(service, [(one, 1), (two, 1)]))?;
    let answers = ask(lab, Protocol::Tcp, service, 6)?;
    ensure!(answers.from("rs1") == 3, "after rs1 recovered:\n{answers}");

    // Without its check, what it answers no longer matters.
    lab.set_healthy(&lab.servers[1], false)?;
    await_rules(balancer, &rules(service, [(one, 1), (two, 0)]))?;
    merlin.meradm(&format!("server edit web {two} --health-endpoint="))?;
    await_rules(balancer, &rules(service, [(one, 1), (two, 1)]))
}

fn ask_each(connections: &mut [Conversation; 2]) -> Result<[String; 2]> {
    let [first, second] = connections;
    let context = "an established connection broke";
    Ok([
        first.ask().context(context)?,
        second.ask().context(context)?,
    ])
}

/// The server that nobody runs stays at weight 0, and the one that runs gets its weight.
fn a_server_is_brought_in_by_its_first_good_checks(lab: &Lab) -> Result<()> {
    let balancer = &lab.balancers[0];
    let merlin = Merlin::start_new(lab, balancer, "")?;
    let service = service();
    let [one, two] = [0, 1].map(|n| masqueraded(&lab.servers[n]));
    merlin.meradm(&format!("service add web tcp {service} -s rr"))?;
    merlin.meradm(&format!("server add web {one} -w 5 -f masq {CHECK}"))?;
    merlin.meradm(&format!("server add web {two} -w 5 -f masq"))?;
    await_rules(balancer, &rules(service, [(one, 0), (two, 5)]))?;
    lab.serve(PORT)?;
    await_rules(balancer, &rules(service, [(one, 5), (two, 5)]))
}
