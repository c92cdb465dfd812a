//! The lab itself: with rules made by `ipvsadm`, every way of forwarding carries real traffic.
//! When one of these fails, look no further than the lab.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::lab::{Family, Lab, Shape, vip};
use e2e::peer::{Load, LoadPlan, Protocol, survey};

use crate::runner::Case;

const PORT: u16 = 80;
const TIMEOUT: Duration = Duration::from_secs(1);
const SHAPE: Shape = Shape {
    balancers: 1,
    servers: 2,
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "lab::every_forwarding_method_carries_tcp_and_udp_over_ipv4_and_ipv6",
            shape: SHAPE,
            run: every_forwarding_method_carries_traffic,
        },
        Case {
            name: "lab::the_chosen_balancer_carries_the_traffic",
            shape: Shape {
                balancers: 2,
                servers: 1,
            },
            run: the_chosen_balancer_carries_the_traffic,
        },
        Case {
            name: "lab::a_load_notices_a_lost_server_and_a_changed_weight",
            shape: SHAPE,
            run: a_load_notices_a_lost_server_and_a_changed_weight,
        },
    ]
}

/// One service per method on one virtual address each, two servers in turn behind it.
fn every_forwarding_method_carries_traffic(lab: &mut Lab) -> Result<()> {
    lab.serve(PORT)?;
    let balancer = &lab.balancers[0];
    for family in [Family::V4, Family::V6] {
        for (number, method) in [(1, "-m"), (2, "-g"), (3, "-i")] {
            let service = SocketAddr::new(vip(family, number), PORT);
            for (protocol, option) in [(Protocol::Tcp, "-t"), (Protocol::Udp, "-u")] {
                balancer.ipvsadm(&format!("-A {option} {service} -s rr"))?;
                for server in &lab.servers {
                    let address = match method {
                        "-m" => server.back(family),
                        _ => server.front(family),
                    };
                    let server = SocketAddr::new(address, PORT);
                    balancer.ipvsadm(&format!("-a {option} {service} -r {server} {method}"))?;
                }
                let answers = lab
                    .client
                    .namespace
                    .enter(|| Ok(survey(protocol, service, 6, TIMEOUT)))?;
                ensure!(
                    answers.from("rs1") == 3 && answers.from("rs2") == 3,
                    "{protocol:?} to {service} by {method}:\n{answers}"
                );
            }
        }
    }
    Ok(())
}

fn the_chosen_balancer_carries_the_traffic(lab: &mut Lab) -> Result<()> {
    lab.serve(PORT)?;
    let service = SocketAddr::new(vip(Family::V4, 1), PORT);
    for balancer in &lab.balancers {
        balancer.ipvsadm(&format!("-A -t {service} -s rr"))?;
        let server = SocketAddr::new(lab.servers[0].back(Family::V4), PORT);
        balancer.ipvsadm(&format!("-a -t {service} -r {server} -m"))?;
    }
    for chosen in lab.balancers.iter().rev() {
        lab.route_through(chosen)?;
        let answers = lab
            .client
            .namespace
            .enter(|| Ok(survey(Protocol::Http, service, 2, TIMEOUT)))?;
        ensure!(
            answers.from("rs1") == 2,
            "through {}:\n{answers}",
            chosen.name()
        );
    }
    for balancer in &lab.balancers {
        let connections = balancer.ipvsadm("-L -n -c")?;
        ensure!(
            connections.matches("TCP").count() == 2,
            "{} should have carried 2 connections:\n{connections}",
            balancer.name()
        );
    }
    Ok(())
}

fn a_load_notices_a_lost_server_and_a_changed_weight(lab: &mut Lab) -> Result<()> {
    lab.serve(PORT)?;
    let balancer = &lab.balancers[0];
    let service = SocketAddr::new(vip(Family::V4, 1), PORT);
    let [one, two] = [0, 1].map(|n: usize| SocketAddr::new(lab.servers[n].front(Family::V4), PORT));
    balancer.ipvsadm(&format!("-A -t {service} -s rr"))?;
    balancer.ipvsadm(&format!("-a -t {service} -r {one} -g -w 1"))?;
    balancer.ipvsadm(&format!("-a -t {service} -r {two} -g -w 1"))?;

    let plan = LoadPlan {
        target: service,
        lasting: 4,
        pause: Duration::from_millis(2),
        timeout: Duration::from_millis(200),
    };
    let start = |plan: LoadPlan| lab.client.namespace.enter(move || Ok(Load::start(plan)?));
    let carry = |load: &Load, more: usize| {
        let goal = load.opened() + more;
        e2e::poll::eventually(Duration::from_secs(10), || {
            ensure!(
                load.opened() >= goal,
                "{} of {goal} connections opened",
                load.opened()
            );
            Ok(())
        })
    };

    let load = start(plan.clone())?;
    let watch = balancer.watch_weights()?;
    carry(&load, 20)?;
    let (report, weights) = (load.stop(), watch.stop()?);
    ensure!(
        report.flawless() && report.opened() >= 20,
        "nothing happened, but:\n{report}"
    );
    ensure!(weights.none(), "nothing changed, but: {weights}");

    let load = start(plan)?;
    let watch = balancer.watch_weights()?;
    carry(&load, 5)?;
    balancer.ipvsadm(&format!("-e -t {service} -r {one} -g -w 2"))?;
    balancer.ipvsadm(&format!("-d -t {service} -r {two}"))?;
    carry(&load, 10)?;
    let (report, weights) = (load.stop(), watch.stop()?);
    ensure!(
        report.broken.len() == 2,
        "half the lasting connections lost their server:\n{report}"
    );
    ensure!(!weights.none(), "a weight and a server changed: {weights}");
    Ok(())
}
