//! What becomes of the members of an etcd that keeps the catalog. Daemons of merlin go on.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::Rng;

use super::{Begun, Kind, Nemesis};
use crate::lab::etcd::Member;
use crate::lab::machine::Machine;
use crate::ops::Node;

impl Nemesis {
    fn member(&self, node: Node) -> Result<(Arc<Machine>, &Member)> {
        let machine = self.machine(node);
        let member = machine.member.as_ref();
        let member = member.context("the catalog is not kept in an etcd")?;
        Ok((Arc::clone(machine), member))
    }

    /// The node whose member leads, which may take an election.
    pub(super) fn leading_member(&self) -> Result<Node> {
        let deadline = Instant::now() + self.patience;
        loop {
            for node in self.nodes() {
                if self.member(node)?.1.leads() == Some(true) {
                    return Ok(node);
                }
            }
            ensure!(Instant::now() < deadline, "no member leads");
            thread::sleep(Duration::from_millis(50));
        }
    }

    pub(super) fn hurt_members_of_etcd(&mut self, kind: Kind) -> Result<Begun> {
        match kind {
            Kind::EtcdKillAll => {
                let begun = self.begin(kind, "all of them", []);
                for node in self.nodes() {
                    self.member(node)?.1.kill()?;
                }
                thread::sleep(Duration::from_millis(self.dice.random_range(0..2000)));
                for node in self.nodes() {
                    self.member(node)?.1.start()?;
                }
                Ok(begun)
            }
            Kind::EtcdPause => {
                let victim = self.victim()?;
                let begun = self.begin(kind, format!("the member of n{victim}"), []);
                self.member(victim)?.1.pause()?;
                self.hold();
                self.member(victim)?.1.resume()?;
                Ok(begun)
            }
            Kind::EtcdCompact => {
                let begun = self.begin(kind, String::new(), []);
                let mut compacted = Vec::new();
                for _ in 0..3 {
                    // A watch that is away meanwhile finds nothing to go on from.
                    let node = self.any();
                    self.machine(node).kill()?;
                    self.hold();
                    compacted.push(self.member(node)?.1.compact()?);
                    self.machine(node).start()?;
                }
                let detail = format!("up to {compacted:?}");
                Ok(Begun { detail, ..begun })
            }
            _ => {
                let victim = match kind {
                    Kind::EtcdKillLeader => self.leading_member()?,
                    _ => self.any(),
                };
                let begun = self.begin(kind, format!("the member of n{victim}"), []);
                self.member(victim)?.1.kill()?;
                self.hold();
                self.member(victim)?.1.start()?;
                Ok(begun)
            }
        }
    }
}
