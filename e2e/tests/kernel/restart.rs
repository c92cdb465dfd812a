//! The daemon goes away and comes back, and the traffic does not notice.

use anyhow::{Result, ensure};
use e2e::lab::Lab;
use e2e::merlin::Merlin;

use crate::health::CHECK;
use crate::runner::Case;
use crate::steps::{
    PORT, SMALL, await_rules, carry, masqueraded, server_rule, service, service_rule, start_load,
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "restart::a_crash_under_load_fails_no_connection_and_changes_no_weight",
            shape: SMALL,
            run: |lab| under_load(lab, |merlin| merlin.kill()),
        },
        Case {
            name: "restart::a_stop_under_load_fails_no_connection_and_changes_no_weight",
            shape: SMALL,
            run: |lab| {
                under_load(lab, |merlin| {
                    let status = merlin.stop()?;
                    ensure!(status.success(), "it stopped with {status}");
                    Ok(())
                })
            },
        },
    ]
}

fn under_load(lab: &Lab, end: fn(&mut Merlin<'_>) -> Result<()>) -> Result<()> {
    lab.serve(PORT)?;
    let balancer = &lab.balancers[0];
    let mut merlin = Merlin::start_new(lab, balancer, "")?;
    let service = service();
    let [one, two] = [0, 1].map(|n| masqueraded(&lab.servers[n]));
    merlin.meradm(&format!("service add web tcp {service} -s wrr"))?;
    merlin.meradm(&format!("server add web {one} -w 1 -f masq {CHECK}"))?;
    merlin.meradm(&format!("server add web {two} -w 2 -f masq {CHECK}"))?;
    let rules = [
        service_rule(service, "wrr"),
        server_rule(service, one, 1),
        server_rule(service, two, 2),
    ];
    await_rules(balancer, &rules)?;

    let load = start_load(lab, service)?;
    let weights = balancer.watch_weights()?;
    carry(&load, 20)?;
    for _ in 0..2 {
        end(&mut merlin)?;
        carry(&load, 20)?;
        merlin.start()?;
        // Long enough for every check to run again and to reach its verdict.
        carry(&load, 200)?;
    }
    let (report, weights) = (load.stop(), weights.stop()?);
    ensure!(report.flawless(), "the traffic suffered:\n{report}");
    ensure!(weights.none(), "weights changed: {weights}");
    await_rules(balancer, &rules)
}
