//! The kernel's IPVS is not there for a while, or the daemon's own files are not what they were.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::lab::Lab;
use e2e::merlin::Merlin;
use e2e::poll::eventually;

use crate::runner::Case;
use crate::steps::{SMALL, SOON, await_rules, masqueraded, server_rule, service, service_rule};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "outage::an_ipvs_that_is_unloaded_is_reported_and_taken_up_again",
            shape: SMALL,
            run: an_ipvs_that_is_unloaded_is_reported_and_taken_up_again,
        },
        Case {
            name: "outage::a_daemon_that_cannot_use_its_directory_leaves_the_kernel_alone",
            shape: SMALL,
            run: a_daemon_that_cannot_use_its_directory_leaves_the_kernel_alone,
        },
    ]
}

/// The program the kernel loads modules with when somebody asks for what is in one.
const LOADER: &str = "/proc/sys/kernel/modprobe";

/// More than the longest pause between two attempts.
const RETRY: Duration = Duration::from_secs(40);

/// IPVS without its module. Dropping it brings the module back, for the cases to come.
struct Unloaded {
    loader: String,
}

impl Unloaded {
    fn new() -> Result<Self> {
        let unloaded = Self {
            loader: fs::read_to_string(LOADER)?,
        };
        // Or the daemon's next question would load it.
        fs::write(LOADER, "/bin/false\n")?;
        // Schedulers first. Namespaces of other cases may be on their way out yet.
        eventually(SOON, || {
            for module in loaded()?
                .iter()
                .filter(|module| module.starts_with("ip_vs_"))
            {
                modprobe(&["-r", module])?;
            }
            modprobe(&["-r", "ip_vs"])
        })?;
        Ok(unloaded)
    }
}

impl Drop for Unloaded {
    fn drop(&mut self) {
        let restored = fs::write(LOADER, &self.loader)
            .context("restoring the loader of modules")
            .and_then(|()| modprobe(&["ip_vs"]));
        if let Err(error) = restored {
            panic!("{error:#}");
        }
    }
}

fn loaded() -> Result<Vec<String>> {
    let modules = fs::read_to_string("/proc/modules")?;
    let names = modules.lines().filter_map(|line| line.split(' ').next());
    Ok(names.map(str::to_owned).collect())
}

fn modprobe(words: &[&str]) -> Result<()> {
    let output = Command::new("modprobe").args(words).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "modprobe {words:?}: {said}");
    Ok(())
}

fn an_ipvs_that_is_unloaded_is_reported_and_taken_up_again(lab: &Lab) -> Result<()> {
    let balancer = &lab.balancers[0];
    let merlin = Merlin::start_new(lab, balancer, "--reconcile-sync-period 200ms")?;
    let (web, one) = (service(), masqueraded(&lab.servers[0]));
    let rules = [service_rule(web, "rr"), server_rule(web, one, 1)];
    merlin.meradm(&format!("service add web tcp {web} -s rr"))?;
    merlin.meradm(&format!("server add web {one} -w 1 -f masq"))?;
    await_rules(balancer, &rules)?;
    merlin.meradm("service del web")?;
    await_rules(balancer, &[])?;

    let unloaded = Unloaded::new()?;
    merlin.meradm(&format!("service add web tcp {web} -s rr"))?;
    merlin.meradm(&format!("server add web {one} -w 1 -f masq"))?;
    eventually(SOON, || {
        let status = merlin.status()?;
        let words = status["dataplaneError"].as_str().unwrap_or_default();
        ensure!(words.contains("modprobe ip_vs"), "reported: {status}");
        let (code, page) = merlin.http("/health")?;
        ensure!(
            code == 503 && page.contains("data plane: ") && page.contains("modprobe ip_vs"),
            "/health answers {code}: {page}"
        );
        Ok(())
    })?;
    // Tried again and again, this is one outage; the API goes on.
    let (_, metrics) = merlin.http("/metrics")?;
    for sample in [
        "merlin_dataplane_outages_total 1\n",
        "merlin_dataplane_available 0",
    ] {
        ensure!(metrics.contains(sample), "no {sample:?} in {metrics}");
    }
    ensure!(merlin.meradm("list")?.contains("web"), "the API is gone");

    drop(unloaded);
    eventually(RETRY, || {
        let (code, page) = merlin.http("/health")?;
        ensure!(code == 200, "/health answers {code}: {page}");
        Ok(())
    })?;
    await_rules(balancer, &rules)?;
    let status = merlin.status()?;
    ensure!(status["dataplaneError"] == "", "still reported: {status}");
    Ok(())
}

/// Damaged, emptied or removed: none of it is a reason to take anything from the kernel.
fn a_daemon_that_cannot_use_its_directory_leaves_the_kernel_alone(lab: &Lab) -> Result<()> {
    let balancer = &lab.balancers[0];
    let mut merlin = Merlin::start_new(lab, balancer, "")?;
    let (web, one) = (service(), masqueraded(&lab.servers[0]));
    let rules = [service_rule(web, "rr"), server_rule(web, one, 1)];
    merlin.meradm(&format!("service add web tcp {web} -s rr"))?;
    merlin.meradm(&format!("server add web {one} -w 1 -f masq"))?;
    await_rules(balancer, &rules)?;
    merlin.kill()?;
    for file in ["log/tip", "log/sled/db", "node.json"] {
        let path = merlin.data_dir().join(file);
        let sound = fs::read(&path)?;
        fs::write(&path, "damaged")?;
        let status = merlin.refuse()?;
        ensure!(status.code() == Some(1), "{file}: {status}");
        await_rules(balancer, &rules)?;
        ensure!(fs::read(&path)? == b"damaged", "{file} was changed");
        fs::write(&path, sound)?;
    }
    // It was all still there.
    merlin.start()?;
    ensure!(
        merlin.meradm("list")?.contains("web"),
        "the catalog is gone"
    );
    await_rules(balancer, &rules)?;
    // Without a directory it is a new node, which has no say about what it finds.
    merlin.kill()?;
    fs::remove_dir_all(merlin.data_dir())?;
    merlin.start()?;
    await_rules(balancer, &rules)
}
