//! Disks that are full, slow, broken, or lose what was not synced.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::Rng;

use super::{Begun, Kind, Nemesis};
use crate::ops::Node;

impl Nemesis {
    pub(super) fn hurt_disks(&mut self, kind: Kind) -> Result<Begun> {
        match kind {
            Kind::DiskStall => self.stall(kind),
            Kind::DiskReadOnly | Kind::DiskSyncFails => self.break_disk(kind),
            Kind::PowerCut => {
                let victim = self.any();
                self.cut_power(kind, &[victim])
            }
            Kind::PowerCutAll => {
                let all = self.nodes();
                self.cut_power(kind, &all)
            }
            _ => self.fill_disk(kind),
        }
    }

    fn fill_disk(&mut self, kind: Kind) -> Result<Begun> {
        let victim = self.victim()?;
        let begun = self.begin(kind, format!("n{victim}"), [victim]);
        self.machine(victim).disk.fill()?;
        self.hold();
        self.machine(victim).disk.unfill()?;
        Ok(begun)
    }

    fn stall(&mut self, kind: Kind) -> Result<Begun> {
        let victim = self.victim()?;
        let machine = self.machine(victim).clone();
        let begun = self.begin(kind, format!("n{victim}"), [victim]);
        machine.disk.freeze()?;
        let disk = thread::spawn({
            let machine = machine.clone();
            // Ends when the disk is thawed, and not before.
            move || (machine.disk.can_sync(), Instant::now())
        });
        self.hold();
        let thawed = Instant::now();
        machine.disk.thaw()?;
        let (_, written) = disk.join().unwrap_or((false, thawed));
        ensure!(written >= thawed, "a frozen disk took a write");
        Ok(begun)
    }

    /// Until somebody repairs it, as an operator does when a daemon will not stay up.
    fn break_disk(&mut self, kind: Kind) -> Result<Begun> {
        let victim = self.victim()?;
        let machine = self.machine(victim).clone();
        let begun = self.begin(kind, format!("n{victim}"), [victim]);
        match kind {
            Kind::DiskReadOnly => machine.disk.make_read_only()?,
            _ => {
                machine.disk.fail_writes()?;
                ensure!(!machine.disk.can_sync(), "a broken disk can be synced");
            }
        }
        self.hold();
        machine.kill()?;
        machine.disk.repair()?;
        machine.start()?;
        Ok(begun)
    }

    fn cut_power(&mut self, kind: Kind, victims: &[Node]) -> Result<Begun> {
        let begun = self.begin(kind, format!("{victims:?}"), victims);
        for victim in victims {
            self.machine(*victim).pause()?;
        }
        // What is being synced at this moment may yet arrive, and nothing after it.
        thread::sleep(Duration::from_millis(50));
        for victim in victims {
            self.machine(*victim).disk.cut()?;
        }
        for victim in victims {
            let machine = self.machine(*victim);
            machine.kill()?;
            machine.disk.lose_unsynced()?;
        }
        thread::sleep(Duration::from_millis(self.dice.random_range(0..1500)));
        for victim in victims {
            self.machine(*victim).start()?;
        }
        Ok(begun)
    }
}
