//! Daemons that are killed, stand still, or are restarted in order.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::Rng;

use super::{Begun, Kind, Nemesis};
use crate::checker::Law;
use crate::ops::Node;

impl Nemesis {
    pub(super) fn hurt_processes(&mut self, kind: Kind) -> Result<Begun> {
        match kind {
            Kind::KillAll => {
                let begun = self.begin(kind, "all at once", []);
                self.kill_all()?;
                thread::sleep(Duration::from_millis(self.dice.random_range(0..1000)));
                self.start_all()?;
                Ok(begun)
            }
            Kind::KillLeader => self.kill_leaders(kind),
            Kind::Pause => {
                let victim = self.take_victim()?;
                let begun = self.begin(kind, format!("n{victim}"), [victim]);
                self.machine(victim).pause()?;
                self.hold();
                self.machine(victim).resume()?;
                Ok(begun)
            }
            Kind::RollingRestart => self.restart_in_turn(kind),
            _ => {
                let victim = self.take_any();
                let begun = self.begin(kind, format!("n{victim}"), []);
                self.machine(victim).kill()?;
                self.hold();
                self.machine(victim).start()?;
                Ok(begun)
            }
        }
    }

    /// As nearly at once as signals can be sent.
    fn kill_all(&self) -> Result<()> {
        thread::scope(|scope| {
            let kills: Vec<_> = self
                .shared
                .lab
                .machines
                .iter()
                .map(|machine| scope.spawn(|| machine.kill()))
                .collect();
            for kill in kills {
                kill.join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))?;
            }
            Ok(())
        })
    }

    pub(super) fn start_all(&self) -> Result<()> {
        self.shared
            .lab
            .machines
            .iter()
            .try_for_each(|machine| machine.start())
    }

    fn kill_leaders(&mut self, kind: Kind) -> Result<Begun> {
        let begun = self.begin(kind, String::new(), []);
        let mut killed = Vec::new();
        while killed.len() < 3 && !self.stopped() {
            let leader = self.leader()?;
            self.machine(leader).kill()?;
            let deadline = Instant::now() + Duration::from_secs(30);
            while self.leader()? == leader {
                ensure!(Instant::now() < deadline, "n{leader} is dead and leads on");
                thread::sleep(Duration::from_millis(20));
            }
            self.machine(leader).start()?;
            killed.push(leader);
            let pause = Duration::from_millis(self.dice.random_range(0..1500));
            thread::sleep(pause);
        }
        let detail = format!("{killed:?}");
        Ok(Begun { detail, ..begun })
    }

    fn restart_in_turn(&mut self, kind: Kind) -> Result<Begun> {
        let begun = self.begin(kind, "one after the other", []);
        for node in self.nodes() {
            self.restart(node)?;
        }
        Ok(begun)
    }

    /// Ends a daemon in order and starts it again, and waits until it knows the catalog.
    pub(super) fn restart(&self, node: Node) -> Result<()> {
        let machine = self.machine(node);
        if let Err(error) = machine.stop() {
            let what = format!("n{node} on SIGTERM: {error:#}");
            self.shared.recorder.violation(Law::DaemonsStayUp, what);
            machine.kill()?;
        }
        machine.start()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.catalog_of(node).is_err() && Instant::now() < deadline && !self.stopped() {
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}
