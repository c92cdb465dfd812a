//! Two faults at a time: one of the links and one of nodes, disks or members, or two of single
//! nodes.
//!
//! They have nothing in common that they could take from each other: of the first two, one only
//! filters packets and the other one never does; and two of single nodes are never of the same one.
//! So each is proved and healed as if it were alone. The second one is over before anything gives up
//! that needs a majority.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::{Ended, Kind, Nemesis};
use crate::recorder::Fault;

/// How long a fault beside another one lasts, on average and at most: what is done to members is
/// insisted on for 30 s, and gets most of them.
const HOLD: Duration = Duration::from_secs(6);

/// What may happen meanwhile, of what was chosen.
pub(super) fn companion(
    kind: Kind,
    chosen: &[Kind],
    nodes: usize,
    dice: &mut StdRng,
) -> Option<Kind> {
    if is_of_links(kind) || stands_alone(kind) {
        return None;
    }
    let goes_with = |other: &Kind| {
        is_of_links(*other) && is_proved_beside(*other)
            || is_of_one_node(kind) && is_of_one_node(*other) && nodes > 1
    };
    let fit: Vec<_> = chosen.iter().copied().filter(goes_with).collect();
    fit.choose(dice).copied()
}

fn is_of_one_node(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Kill
            | Kind::Pause
            | Kind::ClockJump
            | Kind::DiskFull
            | Kind::DiskStall
            | Kind::DiskReadOnly
            | Kind::DiskSyncFails
            | Kind::PowerCut
            | Kind::SnapshotTorn
            | Kind::LogFlipped
            | Kind::EtcdKill
            | Kind::EtcdPause
    )
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
            | Kind::EtcdPartition
            | Kind::EtcdUnreachable
    )
}

/// Either no packet is sent that could be lost, or it filters packets too.
fn stands_alone(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::KillAll | Kind::PowerCutAll | Kind::EtcdKillAll | Kind::EtcdCompact
    )
}

/// Who is dead or stands still sends too little to be slowed down.
fn is_proved_beside(kind: Kind) -> bool {
    kind != Kind::SlowLinks
}

/// What is taken down of faults that were to be there together.
pub(super) fn faults(ended: &[Ended]) -> Vec<Fault> {
    let fault = |(at, one): (usize, &Ended)| {
        let mut others = ended.iter().enumerate().filter(|(other, ended)| {
            *other != at && one.begun.from < ended.to && ended.begun.from < one.to
        });
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
    pub(super) fn happen_together(&mut self, kind: Kind, beside: Kind) -> Result<Vec<Ended>> {
        let mut other = Self {
            shared: self.shared.clone(),
            runtime: self.runtime.clone(),
            dice: StdRng::seed_from_u64(self.dice.random()),
            hold: self.hold.min(HOLD),
            patience: self.patience,
            taken: Arc::clone(&self.taken),
            is_companion: true,
        };
        let (one, other) = thread::scope(|scope| {
            let other = scope.spawn(move || other.happen(beside));
            let one = self.happen(kind);
            (one, other.join())
        });
        let other = other.unwrap_or_else(|_| Err(anyhow!("a thread panicked")));
        Ok(vec![one?, other?])
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
                let Some(other) = companion(kind, &all, 3, &mut dice) else {
                    assert!(is_of_links(kind) || stands_alone(kind), "{kind:?}");
                    continue;
                };
                assert!(!is_of_links(kind), "{kind:?} + {other:?}");
                assert!(
                    is_of_links(other) || is_of_one_node(kind) && is_of_one_node(other),
                    "{kind:?} + {other:?}"
                );
            }
        }
        let chosen = [Kind::Demotion, Kind::Kill];
        let mut beside = |kind, nodes| companion(kind, &chosen, nodes, &mut dice);
        assert_eq!(beside(Kind::Kill, 3), Some(Kind::Kill));
        assert_eq!(beside(Kind::Kill, 1), None, "there is no other node");
        assert_eq!(beside(Kind::Demotion, 3), None);
    }
}
