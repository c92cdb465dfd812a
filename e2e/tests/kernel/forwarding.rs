//! The main job: what is declared with `meradm` carries a client's traffic to real servers.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use e2e::lab::{Family, Lab, vip};
use e2e::merlin::Merlin;
use e2e::peer::Protocol;

use crate::runner::Case;
use crate::steps::{PORT, SMALL, ask, await_rules};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "forwarding::every_method_carries_tcp_and_udp_over_ipv4",
            shape: SMALL,
            run: |lab| every_method_carries_tcp_and_udp(lab, Family::V4),
        },
        Case {
            name: "forwarding::every_method_carries_tcp_and_udp_over_ipv6",
            shape: SMALL,
            run: |lab| every_method_carries_tcp_and_udp(lab, Family::V6),
        },
    ]
}

/// A way of forwarding as `meradm` and as `ipvsadm` call it, on a virtual address of its own.
const METHODS: [(&str, &str, u8); 3] = [("masq", "-m", 1), ("route", "-g", 2), ("tunnel", "-i", 3)];

fn every_method_carries_tcp_and_udp(lab: &Lab, family: Family) -> Result<()> {
    lab.serve(PORT)?;
    let balancer = &lab.balancers[0];
    let merlin = Merlin::start_new(lab, balancer, "")?;
    let protocols = [(Protocol::Tcp, "tcp", "-t"), (Protocol::Udp, "udp", "-u")];

    let mut rules = Vec::new();
    for (method, letter, number) in METHODS {
        let service = SocketAddr::new(vip(family, number), PORT);
        for (_, protocol, option) in protocols {
            let id = format!("{method}-{protocol}");
            merlin.meradm(&format!("service add {id} {protocol} {service} -s rr"))?;
            rules.push(format!("-A {option} {service} -s rr"));
            for server in &lab.servers {
                let address = match method {
                    "masq" => server.back(family),
                    _ => server.front(family),
                };
                let server = SocketAddr::new(address, PORT);
                merlin.meradm(&format!("server add {id} {server} -w 1 -f {method}"))?;
                let tunnel = if method == "tunnel" {
                    " --tun-type ipip"
                } else {
                    ""
                };
                rules.push(format!(
                    "-a {option} {service} -r {server} {letter} -w 1{tunnel}"
                ));
            }
        }
    }
    await_rules(balancer, &rules)?;

    for (method, _, number) in METHODS {
        let service = SocketAddr::new(vip(family, number), PORT);
        for (protocol, ..) in protocols {
            let answers = ask(lab, protocol, service, 6)?;
            ensure!(
                answers.from("rs1") == 3 && answers.from("rs2") == 3,
                "{protocol:?} to {service} by {method}:\n{answers}"
            );
        }
    }
    Ok(())
}
