//! Partitions, loss and slow links. Clients keep reaching every node.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::seq::SliceRandom;

use super::{Begun, Kind, Nemesis};
use crate::lab::network::{self, Filter};
use crate::ops::Node;

/// Which nodes each node does not hear.
type Cuts = BTreeMap<Node, Vec<Node>>;

impl Nemesis {
    pub(super) fn hurt_links(&mut self, kind: Kind) -> Result<Begun> {
        match kind {
            Kind::PartitionFlapping => self.flap(kind),
            Kind::PacketLoss => self.lose_packets(kind),
            Kind::SlowLinks => self.slow_links(kind),
            Kind::EtcdPartition => self.part_members(kind),
            Kind::EtcdUnreachable => self.hide_members(kind),
            _ => self.partition(kind),
        }
    }

    fn partition(&mut self, kind: Kind) -> Result<Begun> {
        let (cuts, detail) = self.cuts(kind)?;
        let begun = self.begin(kind, detail, []);
        let dropped = self.hold_filters(&filters(&cuts, Filter::From))?;
        let detail = format!("{}, {dropped} packets dropped", begun.detail);
        self.proved(begun, detail, dropped)
    }

    fn cuts(&mut self, kind: Kind) -> Result<(Cuts, String)> {
        let mut nodes = self.nodes();
        let count = nodes.len();
        Ok(match kind {
            Kind::PartitionLeader => {
                let leader = self.leader()?;
                (apart(&nodes, &[leader]), format!("n{leader} is alone"))
            }
            Kind::PartitionRing => {
                nodes.shuffle(&mut self.dice);
                // Each node hears itself and its neighbours: a bare majority.
                let reach = count.div_ceil(2).saturating_sub(1).div_ceil(2);
                let far = |at: usize, other: usize| {
                    let distance = at.abs_diff(other);
                    distance.min(count - distance) > reach
                };
                let cuts = (0..count).map(|at| {
                    let others = (0..count).filter(|other| far(at, *other));
                    (nodes[at], others.map(|other| nodes[other]).collect())
                });
                let cuts: Cuts = cuts.collect();
                let detail = match cuts.values().all(Vec::is_empty) {
                    // A ring of three is whole: leave one link out. Followers have little to tell
                    // each other, so it is one of the leader's.
                    true => {
                        let a = self.leader()?;
                        let other = nodes.iter().find(|node| **node != a);
                        let b = *other.context("a ring of one")?;
                        let cuts = BTreeMap::from([(a, vec![b]), (b, vec![a])]);
                        return Ok((cuts, format!("n{a} and n{b} do not hear each other")));
                    }
                    false => format!("in the order {nodes:?}"),
                };
                (cuts, detail)
            }
            Kind::PartitionOneWay => {
                let victim = self.victim()?;
                nodes.retain(|node| *node != victim);
                if self.dice.random() {
                    let cuts = Cuts::from([(victim, nodes)]);
                    (cuts, format!("n{victim} hears nobody"))
                } else {
                    let cuts = nodes.iter().map(|node| (*node, vec![victim])).collect();
                    (cuts, format!("nobody hears n{victim}"))
                }
            }
            _ => {
                nodes.shuffle(&mut self.dice);
                let few: Vec<Node> = nodes[..(count - 1) / 2].to_vec();
                (apart(&nodes, &few), format!("{few:?} are apart"))
            }
        })
    }

    fn flap(&mut self, kind: Kind) -> Result<Begun> {
        let victim = self.victim()?;
        let filters = filters(&apart(&self.nodes(), &[victim]), Filter::From);
        let begun = self.begin(kind, String::new(), []);
        let mut dropped = 0;
        let mut times = 0;
        // An election takes about a second.
        while times < 6 && !self.stopped() {
            install(&filters)?;
            thread::sleep(Duration::from_millis(self.dice.random_range(200..900)));
            dropped += remove(&filters)?;
            thread::sleep(Duration::from_millis(self.dice.random_range(50..600)));
            times += 1;
        }
        let detail = format!("n{victim} alone {times} times, {dropped} packets dropped");
        self.proved(begun, detail, dropped)
    }

    fn lose_packets(&mut self, kind: Kind) -> Result<Begun> {
        let percent = self.dice.random_range(5..30);
        let begun = self.begin(kind, String::new(), []);
        let nodes = self.nodes().into_iter();
        let filters: Vec<_> = nodes.map(|node| (node, Filter::Lossy(percent))).collect();
        let dropped = self.hold_filters(&filters)?;
        let detail = format!("{percent} % of all packets, {dropped} of them");
        self.proved(begun, detail, dropped)
    }

    fn part_members(&mut self, kind: Kind) -> Result<Begun> {
        let victim = self.victim()?;
        let cuts = apart(&self.nodes(), &[victim]);
        let begun = self.begin(kind, String::new(), []);
        let dropped = self.hold_filters(&filters(&cuts, Filter::FromMembers))?;
        let detail = format!("the member of n{victim} is alone, {dropped} packets dropped");
        self.proved(begun, detail, dropped)
    }

    fn hide_members(&mut self, kind: Kind) -> Result<Begun> {
        let mut victims = self.nodes();
        if self.dice.random_ratio(2, 3) {
            victims = vec![self.any()];
        }
        let (filter, how) = match self.dice.random() {
            true => (Filter::Answers, "no answer"),
            false => (Filter::Asking, "is refused"),
        };
        let begun = self.begin(kind, String::new(), []);
        let filters: Vec<_> = victims.iter().map(|node| (*node, filter.clone())).collect();
        let dropped = self.hold_filters(&filters)?;
        let detail = format!("{victims:?}: {how}, {dropped} packets");
        self.proved(begun, detail, dropped)
    }

    fn slow_links(&mut self, kind: Kind) -> Result<Begun> {
        let victim = self.victim()?;
        let rate = self.dice.random_range(16..128);
        let begun = self.begin(kind, String::new(), []);
        network::throttle(victim, rate)?;
        self.hold();
        let delayed = network::unthrottle(victim)?;
        let detail = format!("n{victim} sends {rate} kbit/s, {delayed} packets waited");
        self.proved(begun, detail, delayed)
    }

    /// Lets filters last, and says how many packets met them.
    fn hold_filters(&mut self, filters: &[(Node, Filter)]) -> Result<u64> {
        install(filters)?;
        self.hold();
        remove(filters)
    }

    /// What met no packet has not happened. Beside another fault that may be: who is dead sends
    /// none. Otherwise it is the fault of this program.
    fn proved(&self, begun: Begun, detail: String, packets: u64) -> Result<Begun> {
        ensure!(
            packets > 0 || self.is_companion,
            "no packet met it: {detail}"
        );
        let happened = packets > 0;
        Ok(Begun {
            detail,
            happened,
            ..begun
        })
    }
}

/// Both ways between these and all others.
fn apart(nodes: &[Node], few: &[Node]) -> Cuts {
    let other_side = |node: &Node| {
        let here = few.contains(node);
        let others = nodes.iter().filter(|other| few.contains(other) != here);
        (*node, others.copied().collect())
    };
    nodes.iter().map(other_side).collect()
}

fn filters(cuts: &Cuts, filter: fn(Vec<Node>) -> Filter) -> Vec<(Node, Filter)> {
    let hurt = cuts.iter().filter(|(_, from)| !from.is_empty());
    hurt.map(|(node, from)| (*node, filter(from.clone())))
        .collect()
}

fn install(filters: &[(Node, Filter)]) -> Result<()> {
    filters
        .iter()
        .try_for_each(|(node, filter)| network::filter(*node, filter))
}

fn remove(filters: &[(Node, Filter)]) -> Result<u64> {
    filters
        .iter()
        .map(|(node, _)| network::unfilter(*node))
        .sum()
}
