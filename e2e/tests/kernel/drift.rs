//! Someone changes the table behind merlin's back.

use anyhow::{Result, ensure};
use e2e::lab::Lab;
use e2e::merlin::Merlin;
use e2e::poll::eventually;
use serde_json::Value;

use crate::runner::Case;
use crate::steps::{SMALL, SOON, await_rules, masqueraded, server_rule, service, service_rule};

pub(crate) fn cases() -> Vec<Case> {
    vec![Case {
        name: "drift::whatever_ipvsadm_changes_is_put_right_and_counted",
        shape: SMALL,
        run: whatever_ipvsadm_changes_is_put_right_and_counted,
    }]
}

fn whatever_ipvsadm_changes_is_put_right_and_counted(lab: &Lab) -> Result<()> {
    let balancer = &lab.balancers[0];
    let merlin = Merlin::start_new(lab, balancer, "--reconcile-sync-period 300ms")?;
    let service = service();
    let [one, two] = [0, 1].map(|n| masqueraded(&lab.servers[n]));
    merlin.meradm(&format!("service add web tcp {service} -s wrr"))?;
    merlin.meradm(&format!("server add web {one} -w 1 -f masq"))?;
    merlin.meradm(&format!("server add web {two} -w 2 -f masq"))?;
    let rules = [
        service_rule(service, "wrr"),
        server_rule(service, one, 1),
        server_rule(service, two, 2),
    ];
    await_rules(balancer, &rules)?;

    for meddling in [
        format!("-d -t {service} -r {one}"),
        format!("-a -t {service} -r 10.2.0.99:80 -m"),
        format!("-e -t {service} -r {two} -m -w 77"),
        format!("-e -t {service} -r {two} -m -w 2 -x 5"),
        format!("-e -t {service} -r {two} -g -w 2"),
        format!("-E -t {service} -s rr -p 60"),
        format!("-D -t {service}"),
        "-A -u 10.9.0.3:53 -s rr".to_owned(),
        "-C".to_owned(),
    ] {
        let before = repaired(&merlin.status()?);
        balancer.ipvsadm(&meddling)?;
        eventually(SOON, || {
            let after = repaired(&merlin.status()?);
            ensure!(
                after > before,
                "`ipvsadm {meddling}` was not counted as drift"
            );
            Ok(())
        })?;
        await_rules(balancer, &rules)?;
    }
    let thresholds = balancer.ipvsadm("-L -n --thresholds")?;
    ensure!(
        !thresholds.contains(" 5 "),
        "a threshold stayed:\n{thresholds}"
    );
    Ok(())
}

/// JSON writes a 64-bit number as a string, and a zero not at all.
fn repaired(status: &Value) -> u64 {
    match &status["drift"]["repaired"] {
        Value::String(count) => count.parse().unwrap_or(0),
        count => count.as_u64().unwrap_or(0),
    }
}
