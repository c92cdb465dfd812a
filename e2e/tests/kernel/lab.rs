//! The lab itself: with rules made by `ipvsadm`, every way of forwarding carries real traffic.
//! When one of these fails, look no further than the lab.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use e2e::lab::{Family, Lab, Shape, vip};
use e2e::peer::Protocol;

use crate::runner::Case;
use crate::steps::{PORT, SMALL, ask, carry, masqueraded, service, start_load};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "lab::every_forwarding_method_carries_tcp_and_udp_over_ipv4_and_ipv6",
            shape: SMALL,
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
            shape: SMALL,
            run: a_load_notices_a_lost_server_and_a_changed_weight,
        },
    ]
}

/// One service per method on one virtual address each, two servers in turn behind it.
fn every_forwarding_method_carries_traffic(lab: &Lab) -> Result<()> {
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
                let answers = ask(lab, protocol, service, 6)?;
                ensure!(
                    answers.from("rs1") == 3 && answers.from("rs2") == 3,
                    "{protocol:?} to {service} by {method}:\n{answers}"
                );
            }
        }
    }
    Ok(())
}

fn the_chosen_balancer_carries_the_traffic(lab: &Lab) -> Result<()> {
    lab.serve(PORT)?;
    let (service, server) = (service(), masqueraded(&lab.servers[0]));
    for balancer in &lab.balancers {
        balancer.ipvsadm(&format!("-A -t {service} -s rr"))?;
        balancer.ipvsadm(&format!("-a -t {service} -r {server} -m"))?;
    }
    for chosen in lab.balancers.iter().rev() {
        lab.route_through(chosen)?;
        let answers = ask(lab, Protocol::Http, service, 2)?;
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

fn a_load_notices_a_lost_server_and_a_changed_weight(lab: &Lab) -> Result<()> {
    lab.serve(PORT)?;
    let balancer = &lab.balancers[0];
    let service = service();
    let [one, two] = [0, 1].map(|n| masqueraded(&lab.servers[n]));
    balancer.ipvsadm(&format!("-A -t {service} -s rr"))?;
    balancer.ipvsadm(&format!("-a -t {service} -r {one} -m -w 1"))?;
    balancer.ipvsadm(&format!("-a -t {service} -r {two} -m -w 1"))?;

    let load = start_load(lab, service)?;
    let watch = balancer.watch_weights()?;
    carry(&load, 20)?;
    let (report, weights) = (load.stop(), watch.stop()?);
    ensure!(
        report.flawless() && report.opened() >= 20,
        "nothing happened, but:\n{report}"
    );
    ensure!(weights.none(), "nothing changed, but: {weights}");

    let load = start_load(lab, service)?;
    let watch = balancer.watch_weights()?;
    carry(&load, 5)?;
    balancer.ipvsadm(&format!("-e -t {service} -r {one} -m -w 2"))?;
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
