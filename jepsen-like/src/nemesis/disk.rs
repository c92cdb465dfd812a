//! Disks that are full, slow, broken, or lose what was not synced.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::Rng;

use super::{Begun, Kind, Nemesis};
use crate::lab::machine::Machine;
use crate::ops::Node;

impl Nemesis {
    pub(super) fn hurt_disks(&mut self, kind: Kind) -> Result<Begun> {
        match kind {
            Kind::DiskStall => self.stall(kind),
            Kind::DiskReadOnly | Kind::DiskSyncFails => self.break_disk(kind),
            Kind::PowerCut => {
                let victim = self.take_any();
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
        let victim = self.take_victim()?;
        let begun = self.begin(kind, format!("n{victim}"), [victim]);
        self.machine(victim).disk.fill()?;
        self.hold();
        self.machine(victim).disk.unfill()?;
        Ok(begun)
    }

    fn stall(&mut self, kind: Kind) -> Result<Begun> {
        let victim = self.take_victim()?;
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
        let victim = self.take_victim()?;
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
        kill_all(&machine)?;
        machine.disk.repair()?;
        start_all(&machine)?;
        Ok(begun)
    }

    fn cut_power(&mut self, kind: Kind, victims: &[Node]) -> Result<Begun> {
        let begun = self.begin(kind, format!("{victims:?}"), victims);
        for victim in victims {
            let machine = self.machine(*victim);
            machine.pause()?;
            if let Some(member) = &machine.member {
                member.pause()?;
            }
        }
        // What is being synced at this moment may yet arrive, and nothing after it.
        thread::sleep(Duration::from_millis(50));
        for victim in victims {
            self.machine(*victim).disk.cut()?;
        }
        for victim in victims {
            let machine = self.machine(*victim);
            kill_all(machine)?;
            machine.disk.lose_unsynced()?;
        }
        thread::sleep(Duration::from_millis(self.dice.random_range(0..1500)));
        for victim in victims {
            start_all(self.machine(*victim))?;
        }
        Ok(begun)
    }
}

/// Whatever has files open on the machine's disk.
fn kill_all(machine: &Machine) -> Result<()> {
    machine.kill()?;
    match &machine.member {
        Some(member) => member.kill(),
        None => Ok(()),
    }
}

fn start_all(machine: &Machine) -> Result<()> {
    if let Some(member) = &machine.member {
        member.start()?;
    }
    machine.start()
}
