//! Changes of who is in the cluster, while it is used and hurt.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::poll::eventually;

use super::{Begun, Kind, Nemesis};
use crate::lab::machine::Machine;
use crate::ops::Node;

impl Nemesis {
    pub(super) fn change_members(&mut self, kind: Kind) -> Result<Begun> {
        match kind {
            Kind::LeaderTransfer => self.transfer(kind),
            Kind::Demotion => {
                let victim = self.any();
                let begun = self.begin(kind, format!("n{victim}"), []);
                self.administer(victim, &["demote", &format!("n{victim}")])?;
                // A node that is cut off may still show the members from before.
                eventually(self.patience, || {
                    ensure!(
                        self.voters()? < self.nodes().len(),
                        "the demoted one votes on"
                    );
                    Ok(())
                })?;
                self.hold();
                self.administer(victim, &["promote", &format!("n{victim}")])?;
                self.await_voters()?;
                Ok(begun)
            }
            Kind::AuthorityRotation => self.rotate(kind),
            _ => self.replace(kind),
        }
    }

    fn transfer(&self, kind: Kind) -> Result<Begun> {
        let before = self.leader()?;
        let mut begun = self.begin(kind, String::new(), []);
        self.administer(before, &["transfer-leader"])?;
        let after = self.leader()?;
        begun.detail = format!("from n{before} to n{after}");
        Ok(begun)
    }

    fn rotate(&mut self, kind: Kind) -> Result<Begun> {
        let begun = self.begin(kind, String::new(), []);
        let before = self.authorities()?;
        let helper = self.any();
        // Whoever is away is waited for.
        self.administer(helper, &["ca", "rotate"])?;
        self.hold();
        let helper = self.any();
        insist(
            || match self.machine(helper).cluster(&["ca", "rotate", "--finish"]) {
                // The first answer may have been lost.
                Err(error) if format!("{error:#}").contains("nothing to finish") => Ok(()),
                finished => finished.map(drop),
            },
        )?;
        let after = self.authorities()?;
        ensure!(
            after.iter().all(|authority| !before.contains(authority)),
            "a node has a certificate of an authority before"
        );
        let detail = format!("finished by n{helper}");
        Ok(Begun { detail, ..begun })
    }

    /// The last part of each node's file is the authority's certificate.
    fn authorities(&self) -> Result<BTreeSet<String>> {
        let machines = self.shared.lab.machines.iter();
        let authority = |machine: &Arc<Machine>| {
            let text = fs::read_to_string(machine.data().join("identity/node.pem"))?;
            let at = text.rfind("-----BEGIN").context("no certificate")?;
            Ok(text[at..].to_owned())
        };
        machines.map(authority).collect()
    }

    fn replace(&mut self, kind: Kind) -> Result<Begun> {
        let victim = self.any();
        let machine = self.machine(victim).clone();
        let begun = self.begin(kind, format!("n{victim}"), [victim]);
        machine.kill()?;
        fs::remove_dir_all(machine.data())?;
        let leader = self.leader_but(victim)?;
        self.machine(leader).kill()?;
        let helper = self
            .nodes()
            .into_iter()
            .find(|n| ![victim, leader].contains(n));
        let helper = helper.context("nobody is left to ask")?;
        let asked = thread::spawn({
            let machine = self.machine(helper).clone();
            let name = machine_name(victim);
            move || insist(|| machine.cluster(&["remove", &name]))
        });
        thread::sleep(Duration::from_millis(300));
        self.machine(leader).start()?;
        let removed = asked.join();
        removed.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))?;
        let token = insist(|| self.machine(helper).create_token(&machine_name(victim)))?;
        machine.set_token(&token)?;
        // What the former node said is not what this one says.
        machine.set_log_aside()?;
        machine.start()?;
        self.await_voters()?;
        Ok(begun)
    }

    /// The leader, as the others see it.
    fn leader_but(&self, gone: Node) -> Result<Node> {
        eventually(self.patience, || {
            let leader = self.leader()?;
            ensure!(leader != gone, "n{gone} is gone and leads on");
            Ok(leader)
        })
    }

    fn administer(&self, at: Node, args: &[&str]) -> Result<String> {
        insist(|| self.machine(at).cluster(args))
    }

    fn voters(&self) -> Result<usize> {
        let described = self.descriptions();
        let newest = described.iter().max_by_key(|d| (d.term, d.revision));
        let members = &newest.context("nobody describes the cluster")?.members;
        Ok(members.iter().filter(|member| member.voter).count())
    }

    fn await_voters(&self) -> Result<()> {
        let wanted = self.nodes().len();
        eventually(self.patience, || {
            let voters = self.voters()?;
            ensure!(voters == wanted, "{voters} of {wanted} voters");
            Ok(())
        })
    }
}

fn machine_name(node: Node) -> String {
    format!("n{node}")
}

/// What was asked while nobody led is asked again.
pub(super) fn insist<T>(attempt: impl FnMut() -> Result<T>) -> Result<T> {
    eventually(Duration::from_secs(30), attempt)
}
