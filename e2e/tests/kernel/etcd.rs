//! Several balancers have their catalog in an etcd, which suffers. The client's connections are
//! spread over all of their kernels, and none of them fails.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::etcd::Etcd;
use e2e::lab::{Family, Lab, Shape, vip};
use e2e::merlin::Merlin;
use e2e::peer::Load;
use e2e::poll::eventually;

use crate::health::CHECK;
use crate::runner::Case;
use crate::steps::{PORT, await_rules, carry, service, service_rule, start_load};

const THREE: Shape = Shape {
    balancers: 3,
    servers: 2,
};

/// For an election of etcd's, and for a node to notice that its member is gone.
const RECOVERY: Duration = Duration::from_secs(30);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "etcd::members_that_die_and_freeze_are_not_noticed_by_the_traffic",
            shape: THREE,
            run: members_that_die_and_freeze,
        },
        Case {
            name: "etcd::a_node_that_is_cut_off_from_etcd_balances_on_and_catches_up",
            shape: THREE,
            run: a_node_that_is_cut_off,
        },
        Case {
            name: "etcd::an_etcd_that_is_gone_or_lost_its_data_takes_nothing_from_the_kernels",
            shape: THREE,
            run: an_etcd_that_is_gone_or_lost_its_data,
        },
        Case {
            name: "etcd::leaving_etcd_for_the_embedded_store_changes_no_kernel",
            shape: THREE,
            run: leaving_etcd,
        },
    ]
}

/// Three balancers with one etcd, and traffic through all of them.
struct Site<'lab> {
    lab: &'lab Lab,
    etcd: Etcd<'lab>,
    nodes: Vec<Merlin<'lab>>,
    load: Load,
    /// What the kernels hold beside the first server of the service.
    others: Vec<String>,
    weight: u32,
}

impl<'lab> Site<'lab> {
    /// `more` is how many services there are beside the one that has traffic.
    fn start(lab: &'lab Lab, more: u8) -> Result<Self> {
        lab.serve(PORT)?;
        lab.route_through_all()?;
        let etcd = Etcd::start(lab, &lab.balancers)?;
        // As the earlier system was started.
        let flags = format!("-store-endpoints {} -store-backend etcd3", etcd.endpoints());
        let start = |host| Merlin::start_new(lab, host, &flags);
        let nodes: Vec<_> = lab.balancers.iter().map(start).collect::<Result<_>>()?;
        let web = service();
        let [one, two] = servers(lab);
        nodes[0].meradm(&format!("service add web tcp {web} -s wrr"))?;
        nodes[1].meradm(&format!("server add web {one} -w 1 -f route {CHECK}"))?;
        nodes[2].meradm(&format!("server add web {two} -w 1 -f route {CHECK}"))?;
        let mut others = vec![service_rule(web, "wrr"), server_rule(two, 1)];
        for number in 1..=more {
            let service = SocketAddr::new(vip(Family::V4, 1), PORT + u16::from(number));
            nodes[0].meradm(&format!("service add s{number} tcp {service} -s rr"))?;
            others.push(service_rule(service, "rr"));
        }
        let site = Self {
            load: {
                let rules = [&others[..], &[server_rule(one, 1)]].concat();
                for host in &lab.balancers {
                    await_rules(host, &rules)?;
                }
                start_load(lab, web)?
            },
            lab,
            etcd,
            nodes,
            others,
            weight: 1,
        };
        Ok(site)
    }

    /// Changes something through one node, and waits until the kernels of some have it.
    fn change(&mut self, through: usize, seen_by: &[usize]) -> Result<()> {
        self.weight += 1;
        let [one, _] = servers(self.lab);
        let edit = format!("--timeout 5s server edit web {one} -w {}", self.weight);
        eventually(RECOVERY, || self.nodes[through].meradm(&edit))?;
        self.await_weight(seen_by)
    }

    fn await_weight(&self, seen_by: &[usize]) -> Result<()> {
        let rules = self.rules(self.weight);
        eventually(RECOVERY, || {
            seen_by
                .iter()
                .try_for_each(|node| await_rules(&self.lab.balancers[*node], &rules))
        })
    }

    /// What the kernels hold when the first server has this weight.
    fn rules(&self, weight: u32) -> Vec<String> {
        let [one, _] = servers(self.lab);
        [&self.others[..], &[server_rule(one, weight)]].concat()
    }

    /// Nobody takes a change, and no kernel has changed after some more traffic.
    fn stands_still(&self) -> Result<()> {
        let [one, _] = servers(self.lab);
        let refused = self.nodes[0].try_meradm(&format!(
            "--timeout 2s server edit web {one} -w {}",
            self.weight
        ))?;
        ensure!(
            refused.code == Some(3),
            "a write without an etcd: {refused:?}"
        );
        carry(&self.load, 100)?;
        for host in &self.lab.balancers {
            await_rules(host, &self.rules(self.weight))?;
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        let report = self.load.stop();
        ensure!(report.flawless(), "the traffic suffered:\n{report}");
        Ok(())
    }
}

/// The addresses of the real servers for direct routing.
fn servers(lab: &Lab) -> [SocketAddr; 2] {
    [0, 1].map(|n| SocketAddr::new(lab.servers[n].front(Family::V4), PORT))
}

fn server_rule(server: SocketAddr, weight: u32) -> String {
    format!("-a -t {} -r {server} -g -w {weight}", service())
}

const ALL: &[usize] = &[0, 1, 2];

fn members_that_die_and_freeze(lab: &Lab) -> Result<()> {
    let mut site = Site::start(lab, 0)?;
    // Its leader last, so that there is an election for each way to lose it.
    for freeze in [false, true] {
        let leader = site.etcd.leader()?;
        for member in [(leader + 1) % 3, leader] {
            let way = if freeze { "freezing" } else { "killing" };
            let what = format!("{way} member {member}, {leader} led");
            if freeze {
                site.etcd.freeze(member)?;
            } else {
                site.etcd.kill(member)?;
            }
            // Through the node beside it, and seen by that node too: both find another member.
            site.change(member, ALL).context(what.clone())?;
            if freeze {
                site.etcd.thaw(member)?;
            } else {
                site.etcd.restart(member)?;
            }
            site.change((member + 1) % 3, ALL).context(what)?;
        }
    }
    // Without a quorum nothing is taken, and health checks go on with what is known.
    site.etcd.kill(0)?;
    site.etcd.kill(1)?;
    site.stands_still()?;
    let (well, sick) = (site.rules(site.weight), site.rules(0));
    for (healthy, rules) in [(false, &sick), (true, &well)] {
        lab.set_healthy(&lab.servers[0], healthy)?;
        for host in &lab.balancers {
            await_rules(host, rules)?;
        }
    }
    site.etcd.start_all()?;
    site.change(1, ALL)?;
    site.end()
}

fn a_node_that_is_cut_off(lab: &Lab) -> Result<()> {
    let mut site = Site::start(lab, 0)?;
    let cut_off = &lab.balancers[2];
    for compacted in [false, true] {
        lab.cut_control(cut_off)?;
        let known = site.rules(site.weight);
        site.change(0, &[0, 1])?;
        if compacted {
            // What the watch of the third node would go on from is not there any more.
            site.etcd.compact(0)?;
            site.change(1, &[0, 1])?;
            site.etcd.compact(0)?;
        }
        carry(&site.load, 50)?;
        await_rules(cut_off, &known)?;
        lab.mend_control(cut_off)?;
        site.await_weight(ALL)
            .with_context(|| format!("compacted meanwhile: {compacted}"))?;
        site.change(2, ALL)?;
    }
    site.end()
}

fn an_etcd_that_is_gone_or_lost_its_data(lab: &Lab) -> Result<()> {
    let mut site = Site::start(lab, 11)?;
    let copy = lab.directory().join("etcd.copy");
    site.etcd.save(0, &copy)?;

    // A node that starts meanwhile has what it knew last.
    site.etcd.kill_all()?;
    site.nodes[0].kill()?;
    site.nodes[0].launch()?;
    eventually(RECOVERY, || site.nodes[0].meradm("list --stale"))?;
    site.stands_still()?;
    site.etcd.start_all()?;
    site.change(0, ALL)?;

    // An etcd that has nothing any more is not obeyed.
    site.etcd.begin_anew(None)?;
    for node in &site.nodes {
        eventually(RECOVERY, || {
            let (_, metrics) = node.http("/metrics")?;
            let held = "merlin_store_held_removal_services 12";
            ensure!(metrics.contains(held), "no {held:?} in {metrics}");
            Ok(())
        })?;
    }
    carry(&site.load, 100)?;
    site.await_weight(ALL)?;

    // Nor is anything lost when the copy is back, of the time before the last change.
    site.etcd.begin_anew(Some(&copy))?;
    site.weight = 1;
    site.await_weight(ALL)?;
    site.change(2, ALL)?;
    site.end()
}

/// As the page about coming from the earlier system says.
fn leaving_etcd(lab: &Lab) -> Result<()> {
    let mut site = Site::start(lab, 3)?;
    let watch = |host: &'_ e2e::lab::Host| host.watch_weights();
    let weights: Vec<_> = lab.balancers.iter().map(watch).collect::<Result<_>>()?;
    let [first, others @ ..] = &lab.balancers[..] else {
        unreachable!("a lab of three")
    };
    site.nodes[0].stop()?;
    let mut mover = Merlin::start_new(lab, first, "--reconcile=false")?;
    let migrate = format!(
        "migrate --from etcd3 --from-endpoints {} --to raft",
        site.etcd.endpoints()
    );
    let difference = mover.merlin(&format!("{migrate} --dry-run"))?;
    ensure!(difference.contains("web"), "the dry run: {difference}");
    ensure!(
        !mover.meradm("list")?.contains("web"),
        "the dry run moved something"
    );
    mover.merlin(&migrate)?;
    carry(&site.load, 20)?;
    mover.stop()?;
    let founder = Merlin::start_new(lab, first, "")?;
    for node in &mut site.nodes[1..] {
        node.stop()?;
    }
    site.nodes = founder.join_by(others)?;
    site.nodes.insert(0, founder);
    site.nodes[0].await_voters(3)?;
    // A node looks at its kernel once it has what the others have.
    carry(&site.load, 100)?;
    for (host, weights) in lab.balancers.iter().zip(weights) {
        let weights = weights.stop()?;
        ensure!(weights.none(), "weights on {}: {weights}", host.name());
        await_rules(host, &site.rules(1))?;
    }
    site.etcd.kill_all()?;
    site.change(2, ALL)?;
    site.end()
}
