//! Declarations change, or are beyond this kernel.

use anyhow::{Context, Result, ensure};
use e2e::lab::Lab;
use e2e::merlin::Merlin;
use e2e::peer::Protocol;
use e2e::poll::eventually;
use serde_json::Value;

use crate::runner::Case;
use crate::steps::{
    PORT, SMALL, SOON, ask, await_rules, carry, masqueraded, server_rule, service, service_rule,
    start_load,
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "catalog::edits_reach_the_kernel_without_breaking_a_connection",
            shape: SMALL,
            run: edits_reach_the_kernel_without_breaking_a_connection,
        },
        Case {
            name: "catalog::what_is_deleted_leaves_the_kernel",
            shape: SMALL,
            run: what_is_deleted_leaves_the_kernel,
        },
        Case {
            name: "catalog::a_scheduler_the_kernel_lacks_is_reported_and_stops_nothing_else",
            shape: SMALL,
            run: a_scheduler_the_kernel_lacks_is_reported,
        },
        Case {
            name: "catalog::foreign_services_of_any_kind_disturb_nothing",
            shape: SMALL,
            run: foreign_services_of_any_kind_disturb_nothing,
        },
    ]
}

fn edits_reach_the_kernel_without_breaking_a_connection(lab: &Lab) -> Result<()> {
    lab.serve(PORT)?;
    let balancer = &lab.balancers[0];
    let merlin = Merlin::start_new(lab, balancer, "")?;
    let service = service();
    let [one, two] = [0, 1].map(|n| masqueraded(&lab.servers[n]));
    merlin.meradm(&format!("service add web tcp {service} -s wrr"))?;
    merlin.meradm(&format!("server add web {one} -w 1 -f masq"))?;
    merlin.meradm(&format!("server add web {two} -w 1 -f masq"))?;
    let rules = |scheduler: &str, weight| {
        [
            service_rule(service, scheduler),
            server_rule(service, one, weight),
            server_rule(service, two, 1),
        ]
    };
    await_rules(balancer, &rules("wrr", 1))?;

    let load = start_load(lab, service)?;
    carry(&load, 10)?;
    merlin.meradm(&format!("server edit web {one} -w 3"))?;
    await_rules(balancer, &rules("wrr", 3))?;
    carry(&load, 10)?;
    merlin.meradm("service edit web -s mh -b mh-port")?;
    await_rules(balancer, &rules("mh -b mh-port", 3))?;
    carry(&load, 10)?;
    let report = load.stop();
    ensure!(report.flawless(), "edits disturbed the traffic:\n{report}");
    Ok(())
}

fn what_is_deleted_leaves_the_kernel(lab: &Lab) -> Result<()> {
    let balancer = &lab.balancers[0];
    let merlin = Merlin::start_new(lab, balancer, "")?;
    let service = service();
    let [one, two] = [0, 1].map(|n| masqueraded(&lab.servers[n]));
    merlin.meradm(&format!("service add web tcp {service} -s rr"))?;
    merlin.meradm(&format!("server add web {one} -w 1 -f masq"))?;
    merlin.meradm(&format!("server add web {two} -w 1 -f masq"))?;
    merlin.meradm(&format!("server del web {one}"))?;
    await_rules(
        balancer,
        &[service_rule(service, "rr"), server_rule(service, two, 1)],
    )?;

    merlin.meradm("service del web")?;
    await_rules(balancer, &[])?;
    let gone = merlin.try_meradm(&format!("server edit web {two} -w 2"))?;
    ensure!(
        gone.code == Some(4),
        "its servers went with it, but: {gone:?}"
    );
    let again = merlin.meradm("list")?;
    ensure!(!again.contains("web"), "the list still shows it:\n{again}");
    Ok(())
}

/// Linux 6.1 as Debian builds it for the guest has no `ip_vs_twos`.
fn a_scheduler_the_kernel_lacks_is_reported(lab: &Lab) -> Result<()> {
    lab.serve(PORT)?;
    let balancer = &lab.balancers[0];
    let merlin = Merlin::start_new(lab, balancer, "")?;
    let (web, one) = (service(), masqueraded(&lab.servers[0]));
    let mut odd = web;
    odd.set_port(PORT + 1);
    merlin.meradm(&format!("service add odd tcp {odd} -s twos"))?;
    merlin.meradm(&format!("server add odd {one} -w 1 -f masq"))?;
    merlin.meradm(&format!("service add web tcp {web} -s rr"))?;
    merlin.meradm(&format!("server add web {one} -w 1 -f masq"))?;
    let web_rules = [service_rule(web, "rr"), server_rule(web, one, 1)];
    await_rules(balancer, &web_rules)?;
    ensure!(
        ask(lab, Protocol::Tcp, web, 2)?.from("rs1") == 2,
        "the other service does not work"
    );

    let reason = eventually(SOON, || {
        let failures = failures(&merlin.status()?);
        let failure = failures
            .iter()
            .find(|failure| failure["serviceId"] == "odd");
        Ok(failure.with_context(|| format!("not among {failures:?}"))?["reason"].to_string())
    })?;
    ensure!(
        reason.contains("twos"),
        "the reason does not name the scheduler: {reason}"
    );
    let shown = merlin.meradm("status")?;
    ensure!(
        shown.contains("odd") && shown.contains("twos"),
        "the table says nothing:\n{shown}"
    );

    merlin.meradm("service edit odd -s rr")?;
    let odd_rules = [service_rule(odd, "rr"), server_rule(odd, one, 1)];
    await_rules(balancer, &[web_rules, odd_rules].concat())?;
    eventually(SOON, || {
        let failures = failures(&merlin.status()?);
        ensure!(failures.is_empty(), "still reported: {failures:?}");
        Ok(())
    })
}

fn failures(status: &Value) -> Vec<Value> {
    status["failures"].as_array().cloned().unwrap_or_default()
}

/// A node that has never held a service leaves what it finds; then the table is merlin's, unless
/// it is told to keep what is foreign.
fn foreign_services_of_any_kind_disturb_nothing(lab: &Lab) -> Result<()> {
    let balancer = &lab.balancers[0];
    let service = service();
    balancer.ipvsadm("-A -f 7 -s rr")?;
    balancer.ipvsadm("-A --sctp-service 10.9.0.2:9 -s rr")?;
    let foreign = balancer.rules()?;
    ensure!(foreign.len() == 2, "ipvsadm made {foreign:?}");
    let foreign: Vec<String> = foreign.into_iter().collect();

    let mut merlin = Merlin::start_new(lab, balancer, "")?;
    await_rules(balancer, &foreign)?;
    let status = merlin.status()?;
    let count = &status["drift"]["foreignServices"];
    ensure!(
        count == "2" || count == 2,
        "foreign services are not counted: {status}"
    );
    for look in [
        "list",
        "list --live",
        "status",
        "list -o json",
        "list --live -o json",
    ] {
        merlin.meradm(look)?;
    }
    merlin.stop()?;

    let mut merlin = Merlin::start_new(lab, balancer, "--foreign keep")?;
    merlin.meradm(&format!("service add web tcp {service} -s rr"))?;
    await_rules(
        balancer,
        &[foreign, vec![service_rule(service, "rr")]].concat(),
    )?;
    for look in ["list", "list --live", "status"] {
        merlin.meradm(look)?;
    }
    merlin.stop()?;

    let _merlin = Merlin::start_new(lab, balancer, "")?;
    await_rules(balancer, &[service_rule(service, "rr")])
}
