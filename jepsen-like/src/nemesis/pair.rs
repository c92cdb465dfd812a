//! Two faults at a time: one of the links, and one of nodes, disks or members.
//!
//! They have nothing in common that they could take from each other: one only filters packets
//! between nodes, the other one never does. So each is proved and healed as if it were alone. The
//! links are whole again before anything gives up that needs a majority.

use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::{Ended, Kind, Nemesis};
use crate::recorder::Fault;

/// For how long links are hurt beside something else, on average and at most: what is done to
/// members is insisted on for 30 s, and gets most of them.
const HOLD: Duration = Duration::from_secs(6);

/// What may happen to the links meanwhile, of what was chosen.
pub(super) fn companion(kind: Kind, chosen: &[Kind], dice: &mut StdRng) -> Option<Kind> {
    if is_of_links(kind) || leaves_nobody(kind) {
        return None;
    }
    let fit: Vec<_> = chosen
        .iter()
        .copied()
        .filter(|other| is_of_links(*other) && is_proved_beside(*other))
        .collect();
    fit.choose(dice).copied()
}

fn is_of_links(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::PartitionLeader
            | Kind::PartitionMinority
            | Kind::PartitionRing
            | Kind::PartitionOneWay
            | Kind::PartitionFlapping
            | Kind::PacketLoss
            | Kind::SlowLinks
    )
}

/// No packet is sent that could be lost.
fn leaves_nobody(kind: Kind) -> bool {
    matches!(kind, Kind::KillAll | Kind::PowerCutAll | Kind::EtcdKillAll)
}

/// Who is dead or stands still sends too little to be slowed down.
fn is_proved_beside(kind: Kind) -> bool {
    kind != Kind::SlowLinks
}

/// What is taken down of faults that were there together.
pub(super) fn faults(ended: &[Ended]) -> Vec<Fault> {
    let fault = |(at, one): (usize, &Ended)| {
        let mut others = ended.iter().enumerate().filter(|(other, _)| *other != at);
        Fault {
            name: one.begun.kind.name(),
            detail: one.begun.detail.clone(),
            from: one.begun.from,
            to: one.to,
            recovered: None,
            beside: others.next().map(|(_, other)| other.begun.kind.name()),
        }
    };
    let happened = ended
        .iter()
        .enumerate()
        .filter(|(_, one)| one.begun.happened);
    happened.map(fault).collect()
}

impl Nemesis {
    /// Both are over and healed when this returns, also when one of them failed.
    pub(super) fn happen_together(&mut self, kind: Kind, links: Kind) -> Result<Vec<Ended>> {
        let mut other = Self {
            shared: self.shared.clone(),
            runtime: self.runtime.clone(),
            dice: StdRng::seed_from_u64(self.dice.random()),
            hold: self.hold.min(HOLD),
            patience: self.patience,
        };
        let (one, other) = thread::scope(|scope| {
            let other = scope.spawn(move || other.happen(links));
            let one = self.happen(kind);
            (one, other.join())
        });
        let other = other.unwrap_or_else(|_| Err(anyhow!("a thread panicked")));
        let (one, other) = (one?, other?);
        ensure!(
            one.begun.from < other.to && other.begun.from < one.to,
            "{} and {} were not there at the same time",
            one.words(),
            other.words()
        );
        Ok(vec![one, other])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Store;

    #[test]
    fn two_faults_never_touch_the_same_thing() {
        let mut dice = StdRng::seed_from_u64(1);
        let all = Kind::all(Store::Raft);
        for kind in all.iter().copied() {
            for _ in 0..50 {
                let Some(other) = companion(kind, &all, &mut dice) else {
                    assert!(is_of_links(kind) || leaves_nobody(kind), "{kind:?}");
                    continue;
                };
                assert!(
                    is_of_links(other) && !is_of_links(kind),
                    "{kind:?} + {other:?}"
                );
            }
        }
        assert_eq!(
            companion(Kind::Kill, &[Kind::Kill, Kind::Pause], &mut dice),
            None
        );
    }
}
