//! What becomes of the members of an etcd that keeps the catalog. Daemons of merlin go on.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::poll::eventually;
use rand::Rng;

use super::{Begun, Kind, Nemesis};
use crate::lab::etcd::Member;
use crate::lab::machine::Machine;
use crate::lab::network::{self, Filter};
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
                let victim = self.take_victim()?;
                let begun = self.begin(kind, format!("the member of n{victim}"), []);
                self.member(victim)?.1.pause()?;
                self.hold();
                self.member(victim)?.1.resume()?;
                Ok(begun)
            }
            Kind::EtcdCompact => self.compact(kind),
            Kind::EtcdReplacement => self.replace_member(kind),
            Kind::EtcdKillLeader => self.kill_leading_members(kind),
            _ => {
                let victim = self.take_any();
                let begun = self.begin(kind, format!("the member of n{victim}"), []);
                self.member(victim)?.1.kill()?;
                self.hold();
                self.member(victim)?.1.start()?;
                Ok(begun)
            }
        }
    }

    fn kill_leading_members(&mut self, kind: Kind) -> Result<Begun> {
        let begun = self.begin(kind, String::new(), []);
        let mut killed = Vec::new();
        while killed.len() < 3 && !self.stopped() {
            let leader = self.leading_member()?;
            self.member(leader)?.1.kill()?;
            // Another one, as this one does not answer.
            self.leading_member()?;
            self.member(leader)?.1.start()?;
            killed.push(leader);
            let pause = Duration::from_millis(self.dice.random_range(0..1500));
            thread::sleep(pause);
        }
        let detail = format!("those of {killed:?}");
        Ok(Begun { detail, ..begun })
    }

    fn replace_member(&mut self, kind: Kind) -> Result<Begun> {
        let victim = self.victim()?;
        let begun = self.begin(kind, format!("the member of n{victim}"), []);
        self.member(victim)?.1.kill()?;
        self.hold();
        let (_, member) = self.member(victim)?;
        // Others may be cut off meanwhile.
        eventually(self.patience, || {
            member.replace(self.member(self.leading_member()?)?.1)
        })?;
        // Until it has what the others have, nobody else may go.
        member.await_ready()?;
        Ok(begun)
    }

    /// A daemon that was cut off meanwhile finds nothing to go on from, and says so.
    fn compact(&mut self, kind: Kind) -> Result<Begun> {
        let begun = self.begin(kind, String::new(), []);
        let node = self.any();
        let machine = Arc::clone(self.machine(node));
        let others = || self.shared.lab.nodes().filter(|other| *other != node);
        let other = others().next().context("nobody else is there to write")?;
        let seen = machine.log().len();
        network::filter(node, &Filter::Asking)?;
        let recorder = Arc::clone(&self.shared.recorder);
        let last = || recorder.last_done().map(|record| record.end);
        let heard = last();
        self.hold();
        // What it has not heard of must be there to be forgotten.
        eventually(self.patience, || {
            ensure!(last() != heard, "nothing is written");
            Ok(())
        })?;
        let compacted = self.member(other)?.1.compact()?;
        network::unfilter(node)?;
        eventually(self.patience, || {
            let said = machine.log().split_off(seen);
            let mut lines = said.lines();
            ensure!(
                lines
                    .any(|line| line.contains("listing the records anew")
                        && line.contains("compact")),
                "n{node} did not miss what was compacted up to {compacted}"
            );
            Ok(())
        })?;
        let detail = format!("up to {compacted} while n{node} was cut off");
        Ok(Begun { detail, ..begun })
    }
}
