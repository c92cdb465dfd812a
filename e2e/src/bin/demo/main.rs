//! The main job, shown on a real IPVS kernel: three nodes, traffic, a dead server, a dead leader.
//!
//! On the host this boots a guest and runs itself in it. Every scene waits for what it announces and
//! fails the demonstration when it does not happen; the figures it ends with are measured.

#![expect(clippy::print_stdout, reason = "a demonstration talks")]
#![expect(clippy::print_stderr, reason = "what went wrong is no part of it")]

mod stage;
mod traffic;

use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::guest::{self, Guest};
use e2e::lab::{Family, Host, Lab, Process, Shape, vip};
use e2e::merlin::Merlin;
use e2e::poll::eventually;
use e2e::programs;

use stage::{Summary, matrix, printed, say, scene, seconds, typed};
use traffic::{Counters, Traffic, carry};

const PORT: u16 = 80;
const SHAPE: Shape = Shape {
    balancers: 3,
    servers: 3,
};
const TIMEOUT: Duration = Duration::from_secs(180);
/// For anything announced here to happen, on a slow machine.
const SOON: Duration = Duration::from_secs(30);
const CHECK: &str = "--health-endpoint http://:80/health --health-period 1s --health-timeout 1s \
     --health-up 2 --health-down 2";

const NETWORK: &str = "
                 client                     opens connections to 10.9.0.1:80
                   |
        +----------+----------+             each by way of one of three load balancers:
       lb1        lb2        lb3            merlin and a kernel's IPVS
        |          |          |
        +----------+----------+
       rs1        rs2        rs3            real servers, which answer with their names,
                                            straight to the client (direct routing)
";

fn main() -> ExitCode {
    let shown = if guest::inside() { perform() } else { boot() };
    shown.unwrap_or_else(|error| {
        eprintln!("\ndemo: this did not happen: {error:#}");
        ExitCode::FAILURE
    })
}

fn boot() -> Result<ExitCode> {
    for program in ["merlin", "meradm", "e2e-peer"] {
        programs::locate(program)?;
    }
    say("Booting a Linux kernel with IPVS as a process of this machine ...");
    let this = std::env::current_exe().context("finding this program")?;
    let guest = Guest::new(this).memory("1G").timeout(TIMEOUT);
    let exit = stage::announce_terminal(guest).run()?;
    Ok(ExitCode::from(exit.code))
}

fn perform() -> Result<ExitCode> {
    let lab = Lab::new(SHAPE).context("building the network")?;
    let shown = Show::prepare(&lab).and_then(Show::run);
    if shown.is_err() {
        eprintln!("{}", lab.logs());
    }
    shown.map(|()| ExitCode::SUCCESS)
}

/// Everything on stage.
struct Show<'lab> {
    lab: &'lab Lab,
    started: Instant,
    nodes: Vec<Merlin<'lab>>,
    servers: Vec<Process>,
    /// Where clients connect to.
    service: SocketAddr,
    summary: Summary,
}

impl<'lab> Show<'lab> {
    fn prepare(lab: &'lab Lab) -> Result<Self> {
        let mut servers = Vec::new();
        for host in &lab.servers {
            servers.push(serve(lab, host)?);
        }
        lab.route_through_all()?;
        Ok(Self {
            lab,
            started: Instant::now(),
            nodes: Vec::new(),
            servers,
            service: SocketAddr::new(vip(Family::V4, 1), PORT),
            summary: Summary::default(),
        })
    }

    fn run(mut self) -> Result<()> {
        scene("The network, made of namespaces in one guest");
        say(NETWORK.trim_matches('\n'));
        self.grow_a_cluster()?;
        self.declare_a_service()?;
        self.balance()?;
        self.lose_a_server()?;
        self.lose_the_leader()?;
        scene("Done: every step above was checked");
        self.summary
            .note("all of it took", seconds(self.started.elapsed()));
        print!("{}", self.summary);
        Ok(())
    }

    fn grow_a_cluster(&mut self) -> Result<()> {
        let started = Instant::now();
        scene("The first node needs nothing: it makes itself a cluster of one");
        let [first, others @ ..] = &self.lab.balancers[..] else {
            anyhow::bail!("there are no balancers")
        };
        typed(first.name(), "merlin run &");
        self.nodes.push(Merlin::start_new(self.lab, first, "")?);

        scene("Two commands bring in each of the others");
        for host in others {
            let create = format!("token create --name {}", host.name());
            typed(first.name(), &format!("merlin cluster {create}"));
            let line = self.nodes[0].cluster(&create)?;
            printed(&line);
            let join = words_of_join(&line)?;
            let mut node = Merlin::new(self.lab, host, "")?;
            typed(host.name(), &format!("merlin cluster {}", shortened(join)));
            printed(&node.cluster(join)?);
            typed(host.name(), "merlin run &");
            node.start()?;
            self.nodes.push(node);
        }
        self.nodes[0].await_voters(self.lab.balancers.len())?;
        let took = started.elapsed();
        typed(first.name(), "merlin cluster status");
        printed(&self.nodes[0].cluster("status")?);
        self.summary
            .note("from nothing to three nodes with a vote", seconds(took));
        Ok(())
    }

    fn declare_a_service(&mut self) -> Result<()> {
        scene("A virtual service is declared once, on any node");
        let node = &self.nodes[1];
        tell(
            node,
            &format!("service add web tcp {} -s wrr", self.service),
        )?;
        for host in &self.lab.servers {
            let server = address(host);
            tell(
                node,
                &format!("server add web {server} -w 1 -f route {CHECK}"),
            )?;
        }
        let declared = Instant::now();
        typed(node.host().name(), "meradm list");
        printed(&node.meradm("list")?);

        scene("Every kernel has it, with weights once the servers are found healthy");
        self.await_weights(&self.lab.balancers, [1, 1, 1])?;
        let took = declared.elapsed();
        for host in &self.lab.balancers {
            typed(host.name(), "ipvsadm --save --numeric");
            printed(&host.ipvsadm("--save --numeric")?);
        }
        self.summary
            .note("declared -> healthy in three kernels", seconds(took));
        Ok(())
    }

    fn balance(&self) -> Result<()> {
        scene("A client's connections are shared out by the three kernels");
        let before = self.counters()?;
        let answers = Traffic::to(self.service).ask(self.lab, 90)?;
        ensure!(answers.failures.is_empty(), "{answers}");
        let shares = self.await_counters(&before, 90)?;
        self.show(&shares);
        for (host, share) in self.lab.balancers.iter().zip(&shares) {
            let (least, most) = (share.iter().min(), share.iter().max());
            let even = least
                .zip(most)
                .is_some_and(|(least, most)| most - least <= 1);
            ensure!(even, "{} shares out unevenly: {share:?}", host.name());
        }
        for (index, host) in self.lab.servers.iter().enumerate() {
            let given: u64 = shares.iter().map(|share| share[index]).sum();
            let answered = u64::try_from(answers.from(host.name()))?;
            ensure!(given == answered, "{answers}, but kernels say {shares:?}");
        }
        say("90 connections, 0 failed. Each kernel takes its servers in turn.");
        Ok(())
    }

    fn lose_a_server(&mut self) -> Result<()> {
        scene("A real server dies under load: its weight drops to 0 and traffic moves");
        let traffic = Traffic::to(self.service);
        let load = traffic.start(self.lab)?;
        carry(&load, 50)?;
        typed("rs1", "kill -9 %1");
        let (killed, earlier) = (Instant::now(), load.opened());
        self.servers[0].kill()?;
        self.await_weights(&self.lab.balancers, [0, 1, 1])?;
        let noticed = killed.elapsed();
        let report = load.stop();
        let refused = format!(
            "{} of {} new connections failed until then",
            report.fresh.failures.len(),
            report.opened() - earlier
        );
        say(&format!(
            "After {} all three kernels have weight 0 for rs1; {refused}.",
            seconds(noticed)
        ));
        let load = traffic.start(self.lab)?;
        carry(&load, 100)?;
        let report = load.stop();
        ensure!(
            report.flawless() && report.fresh.from("rs1") == 0,
            "{report}"
        );
        say(&format!(
            "Since then: {} connections, 0 failed.",
            report.opened()
        ));
        let node = &self.nodes[1];
        typed(node.host().name(), "meradm list --live");
        printed(&node.meradm("list --live")?);
        self.summary.note(
            "real server dead -> out of three kernels",
            format!("{}; {refused}, 0 after", seconds(noticed)),
        );

        scene("It comes back, and takes its share again");
        typed("rs1", "server &");
        self.servers[0] = serve(self.lab, &self.lab.servers[0])?;
        self.await_weights(&self.lab.balancers, [1, 1, 1])?;
        let answers = traffic.ask(self.lab, 90)?;
        ensure!(
            answers.failures.is_empty() && answers.from("rs1") > 20,
            "{answers}"
        );
        say(&format!(
            "90 connections, 0 failed: {} of them answered by rs1.",
            answers.from("rs1")
        ));
        Ok(())
    }

    fn lose_the_leader(&mut self) -> Result<()> {
        let leader = self.leader()?;
        let name = self.nodes[leader].host().name();
        scene(&format!(
            "The leader, {name}, is killed under load through all three kernels"
        ));
        let weights = self.nodes[leader].host().watch_weights()?;
        let load = Traffic::to(self.service).lasting(12).start(self.lab)?;
        carry(&load, 50)?;
        typed(name, "kill -9 $(pidof merlin)");
        let killed = Instant::now();
        self.nodes[leader].kill()?;

        let survivors: Vec<_> = self
            .nodes
            .iter()
            .filter(|n| n.host().name() != name)
            .collect();
        let node = survivors[0];
        say("A write is accepted as soon as there is another leader:");
        let edit = format!("server edit web {} -w 5", address(&self.lab.servers[2]));
        typed(node.host().name(), &format!("meradm {edit}"));
        eventually(SOON, || node.meradm(&edit))?;
        let accepted = killed.elapsed();
        let hosts: Vec<_> = survivors.iter().map(|node| node.host()).collect();
        self.await_weights(hosts, [1, 1, 5])?;
        let successor = self.leader()?;
        say(&format!(
            "{} after the kill, {} leads.",
            seconds(accepted),
            self.nodes[successor].host().name()
        ));
        typed(node.host().name(), "meradm status");
        printed(&node.meradm("status")?);

        say(&format!(
            "Meanwhile {name}'s kernel, without its merlin, balances on. Connections from now on:"
        ));
        let before = self.counters()?;
        let shares = self.await_each(&before, 30)?;
        self.show(&shares);
        let orphaned: u64 = shares[leader].iter().sum();

        scene(&format!(
            "merlin on {name} starts again, and catches up without disturbing anyone"
        ));
        typed(name, "merlin run &");
        self.nodes[leader].start()?;
        self.await_weights([self.nodes[leader].host()], [1, 1, 5])?;
        carry(&load, 50)?;
        let report = load.stop();
        let weights = weights.stop()?;
        ensure!(report.flawless(), "{report}");
        let changes: Vec<_> = weights.histories().collect();
        let steady = [Some(1)];
        ensure!(
            changes == [&steady[..], &steady, &[Some(1), Some(5)]],
            "{name}'s weights changed otherwise than asked for: {weights}"
        );
        let traffic = format!(
            "{} new connections and 12 lasting ones, 0 failed",
            report.opened()
        );
        say(&format!("{traffic}."));
        say(&format!(
            "{name}'s table was read {} times: its only change was the weight asked for.",
            weights.looks()
        ));
        self.summary
            .note("leader dead -> next write accepted", seconds(accepted));
        self.summary.note("traffic all the while", traffic);
        self.summary.note(
            "of that through the kernel without merlin",
            format!("{orphaned} or more, 0 failed"),
        );
        self.summary.note(
            "weights changed by the restart",
            "none but the one asked for",
        );
        Ok(())
    }

    // === looking ===

    /// Waits until kernels have these weights for rs1 to rs3.
    fn await_weights<'a>(
        &self,
        hosts: impl IntoIterator<Item = &'a Host>,
        weights: [u32; 3],
    ) -> Result<()> {
        hosts.into_iter().try_for_each(|host| {
            eventually(SOON, || {
                let rules = host.rules()?;
                for (server, weight) in self.lab.servers.iter().zip(weights) {
                    let end = format!("-r {} -g -w {weight}", address(server));
                    let found = rules.iter().any(|rule| rule.ends_with(&end));
                    ensure!(found, "{} holds {rules:?}, not {end}", host.name());
                }
                Ok(())
            })
        })
    }

    /// Which node leads, as the nodes themselves see it.
    fn leader(&self) -> Result<usize> {
        eventually(SOON, || {
            let leads = |node: &&Merlin<'_>| {
                node.is_running() && node.status().is_ok_and(|s| s["store"]["role"] == "leader")
            };
            self.nodes
                .iter()
                .position(|node| leads(&node))
                .context("nobody leads")
        })
    }

    fn counters(&self) -> Result<Counters> {
        Counters::read(self.lab, PORT)
    }

    /// Waits until kernels have counted so many connections, exactly, since `before`.
    fn await_counters(&self, before: &Counters, connections: u64) -> Result<Vec<Vec<u64>>> {
        eventually(SOON, || {
            let shares = self.counters()?.since(before);
            let counted: u64 = shares.iter().flatten().sum();
            ensure!(
                counted == connections,
                "{counted} of {connections}: {shares:?}"
            );
            Ok(shares)
        })
    }

    /// Waits until every kernel has counted so many connections, at least, since `before`.
    fn await_each(&self, before: &Counters, connections: u64) -> Result<Vec<Vec<u64>>> {
        eventually(SOON, || {
            let shares = self.counters()?.since(before);
            let enough = shares
                .iter()
                .all(|share| share.iter().sum::<u64>() >= connections);
            ensure!(enough, "not {connections} through each: {shares:?}");
            Ok(shares)
        })
    }

    fn show(&self, shares: &[Vec<u64>]) {
        let servers: Vec<_> = self.lab.servers.iter().map(Host::name).collect();
        let rows: Vec<_> = self
            .lab
            .balancers
            .iter()
            .zip(shares)
            .map(|(host, share)| (format!("through {}", host.name()), share.clone()))
            .collect();
        matrix(&servers, &rows);
    }
}

fn serve(lab: &Lab, host: &Host) -> Result<Process> {
    let mut command = Command::new(programs::locate("e2e-peer")?);
    command.args(["server", "--name", host.name(), "--port", &PORT.to_string()]);
    lab.spawn(host, "server", &mut command)
}

/// Where balancers reach a real server. Its front address: direct routing.
fn address(host: &Host) -> SocketAddr {
    SocketAddr::new(host.front(Family::V4), PORT)
}

fn tell(node: &Merlin<'_>, words: &str) -> Result<()> {
    typed(node.host().name(), &format!("meradm {words}"));
    node.meradm(words).map(drop)
}

/// `join mjt1....` of the line that makes a token: all that follows `merlin cluster`.
fn words_of_join(line: &str) -> Result<&str> {
    let join = line
        .lines()
        .find_map(|line| line.trim().strip_prefix("merlin cluster "));
    join.with_context(|| format!("no command to join with in {line:?}"))
}

/// A token fills lines, and was shown before.
fn shortened(join: &str) -> String {
    match join.char_indices().nth(24) {
        Some((end, _)) => format!("{}...", &join[..end]),
        None => join.to_owned(),
    }
}
