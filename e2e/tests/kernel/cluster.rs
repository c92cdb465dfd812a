//! Several balancers agree on one catalog.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::lab::{Family, Lab, Shape, vip};
use e2e::merlin::Merlin;
use e2e::peer::Protocol;
use e2e::poll::eventually;

use crate::runner::Case;
use crate::steps::{
    PORT, SOON, ask, await_rules, carry, masqueraded, server_rule, service, service_rule,
    start_load,
};

const THREE: Shape = Shape {
    balancers: 3,
    servers: 2,
};

/// For an election and what follows; a guest schedules three daemons on one CPU.
const ELECTION: Duration = Duration::from_secs(15);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "cluster::what_is_added_through_any_node_is_in_every_kernel",
            shape: THREE,
            run: what_is_added_through_any_node_is_in_every_kernel,
        },
        Case {
            name: "cluster::a_lost_quorum_changes_no_kernel_and_its_return_takes_writes_again",
            shape: THREE,
            run: a_lost_quorum_changes_no_kernel,
        },
        Case {
            name: "cluster::a_leader_cut_off_balances_on_and_catches_up",
            shape: THREE,
            run: a_leader_cut_off_balances_on_and_catches_up,
        },
    ]
}

fn three_nodes(lab: &Lab) -> Result<Vec<Merlin<'_>>> {
    let [first, others @ ..] = lab.balancers.as_slice() else {
        unreachable!("a lab of three")
    };
    let first = Merlin::start_new(lab, first, "")?;
    let mut nodes = first.join_by(others)?;
    first.await_voters(3)?;
    nodes.insert(0, first);
    Ok(nodes)
}

fn what_is_added_through_any_node_is_in_every_kernel(lab: &Lab) -> Result<()> {
    lab.serve(PORT)?;
    let nodes = three_nodes(lab)?;
    let server = masqueraded(&lab.servers[0]);
    let mut rules = Vec::new();
    for (number, node) in (1..).zip(&nodes) {
        let service = SocketAddr::new(vip(Family::V4, number), PORT);
        node.meradm(&format!("service add s{number} tcp {service} -s rr"))?;
        node.meradm(&format!("server add s{number} {server} -w 1 -f masq"))?;
        rules.extend([service_rule(service, "rr"), server_rule(service, server, 1)]);
        for balancer in &lab.balancers {
            await_rules(balancer, &rules)?;
        }
        let seen = nodes[0].meradm("list")?;
        ensure!(
            seen.contains(&format!("s{number}")),
            "a read after the write missed it:\n{seen}"
        );
    }
    for balancer in &lab.balancers {
        lab.route_through(balancer)?;
        let answers = ask(lab, Protocol::Tcp, service(), 2)?;
        ensure!(
            answers.from("rs1") == 2,
            "through {}:\n{answers}",
            balancer.name()
        );
    }
    Ok(())
}

fn a_lost_quorum_changes_no_kernel(lab: &Lab) -> Result<()> {
    lab.serve(PORT)?;
    let mut nodes = three_nodes(lab)?;
    let (service, server) = (service(), masqueraded(&lab.servers[0]));
    nodes[0].meradm(&format!("service add web tcp {service} -s rr"))?;
    nodes[0].meradm(&format!("server add web {server} -w 1 -f masq"))?;
    let rules = [service_rule(service, "rr"), server_rule(service, server, 1)];
    for balancer in &lab.balancers {
        await_rules(balancer, &rules)?;
    }
    let load = start_load(lab, service)?;
    let weights = lab.balancers[0].watch_weights()?;

    for node in &mut nodes[1..] {
        node.kill()?;
    }
    // Unknown, not refused: it may take effect when the quorum is back, so it asks for what is
    // asked for then.
    let edit = format!("server edit web {server} -w 4");
    let refused = nodes[0].try_meradm(&format!("--timeout 2s {edit}"))?;
    ensure!(
        refused.code == Some(3),
        "a write without a quorum: {refused:?}"
    );
    let stale = nodes[0].meradm("list --stale")?;
    ensure!(stale.contains("web"), "the local copy is gone:\n{stale}");
    // Even a restart finds its way by what is on its own disk.
    nodes[0].kill()?;
    nodes[0].launch()?;
    eventually(SOON, || nodes[0].meradm("list --stale")).context("restarting without a quorum")?;
    carry(&load, 100)?;
    for balancer in &lab.balancers {
        await_rules(balancer, &rules)?;
    }

    nodes[1].start()?;
    eventually(ELECTION, || nodes[0].meradm(&edit))?;
    let rules = [service_rule(service, "rr"), server_rule(service, server, 4)];
    await_rules(&lab.balancers[0], &rules)?;
    await_rules(&lab.balancers[1], &rules)?;
    let (report, weights) = (load.stop(), weights.stop()?);
    ensure!(report.flawless(), "the traffic suffered:\n{report}");
    ensure!(
        weights.to_string().contains(": 1, 4\n"),
        "one change was asked for: {weights}"
    );
    Ok(())
}

fn a_leader_cut_off_balances_on_and_catches_up(lab: &Lab) -> Result<()> {
    lab.serve(PORT)?;
    let nodes = three_nodes(lab)?;
    let (service, server) = (service(), masqueraded(&lab.servers[0]));
    nodes[0].meradm(&format!("service add web tcp {service} -s rr"))?;
    nodes[0].meradm(&format!("server add web {server} -w 1 -f masq"))?;
    let old = [service_rule(service, "rr"), server_rule(service, server, 1)];
    for balancer in &lab.balancers {
        await_rules(balancer, &old)?;
    }
    let status = nodes[0].fleet_status()?;
    let leads = |name: &str| {
        status
            .iter()
            .any(|node| node["name"] == name && node["store"]["role"] == "leader")
    };
    let leader = nodes.iter().position(|node| leads(node.host().name()));
    let leader = leader.with_context(|| format!("nobody leads: {status:?}"))?;
    let other = (leader + 1) % nodes.len();
    let cut_off = nodes[leader].host();

    lab.route_through(cut_off)?;
    let load = start_load(lab, service)?;
    lab.cut_control(cut_off)?;
    eventually(ELECTION, || {
        nodes[other].meradm(&format!("server edit web {server} -w 9"))
    })?;
    let new = [service_rule(service, "rr"), server_rule(service, server, 9)];
    await_rules(nodes[other].host(), &new)?;
    await_rules(cut_off, &old)?;
    carry(&load, 20)?;

    lab.mend_control(cut_off)?;
    eventually(ELECTION, || await_rules(cut_off, &new))?;
    let report = load.stop();
    ensure!(report.flawless(), "the traffic suffered:\n{report}");
    Ok(())
}
