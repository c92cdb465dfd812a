//! The main job, shown on a real IPVS kernel: three nodes, traffic, a dead server, a dead leader.
//!
//! On the host this boots a guest and runs itself in it. Every step waits for what it announces and
//! fails the demonstration when it does not happen.

#![expect(clippy::print_stdout, reason = "a demonstration talks")]
#![expect(clippy::print_stderr, reason = "what went wrong is no part of it")]

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::guest::{self, Guest};
use e2e::lab::{Family, Host, Lab, Process, Shape, vip};
use e2e::merlin::Merlin;
use e2e::peer::{Answers, Load, LoadPlan, Protocol, survey};
use e2e::poll::eventually;
use e2e::programs;

const PORT: u16 = 80;
const SHAPE: Shape = Shape {
    balancers: 3,
    servers: 3,
};
const TIMEOUT: Duration = Duration::from_secs(180);
/// For anything announced here to happen, on a slow machine.
const SOON: Duration = Duration::from_secs(30);
/// For a reader to follow.
const PAUSE: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(1);
/// Tells the guest that somebody looks at a terminal: it cannot know.
const COLOUR: &str = "DEMO_COLOUR";
const CHECK: &str = "--health-endpoint http://:80/health --health-period 1s --health-timeout 500ms \
     --health-up 2 --health-down 2";

fn main() -> ExitCode {
    if !guest::inside() {
        return match boot() {
            Ok(code) => code,
            Err(error) => {
                eprintln!("demo: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let lab = match Lab::new(SHAPE) {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("demo: building the network: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    match show(&lab) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: this did not happen: {error:#}\n{}", lab.logs());
            ExitCode::FAILURE
        }
    }
}

fn boot() -> Result<ExitCode> {
    for program in ["merlin", "meradm", "e2e-peer"] {
        programs::locate(program)?;
    }
    println!("Booting a Linux kernel with IPVS as a process of this machine ...");
    let this = std::env::current_exe().context("finding this program")?;
    let mut guest = Guest::new(this).memory("1G").timeout(TIMEOUT);
    if std::io::stdout().is_terminal() {
        guest = guest.env(COLOUR, "1");
    }
    Ok(ExitCode::from(guest.run()?.code))
}

fn show(lab: &Lab) -> Result<()> {
    let service = SocketAddr::new(vip(Family::V4, 1), PORT);
    let mut servers = Vec::new();
    for host in &lab.servers {
        servers.push(serve(lab, host)?);
    }

    step("Three load balancers, lb1 to lb3, in front of three real servers, rs1 to rs3");
    say("lb1 makes itself a cluster of one; the others join it by token.");
    let mut lb1 = Merlin::start_new(lab, &lab.balancers[0], "")?;
    let others = lb1.join_by(&lab.balancers[1..])?;
    lb1.await_voters(3)?;
    command("merlin cluster status");
    print!("{}", indented(&lb1.cluster("status")?));

    step("A virtual service is declared once, on any node");
    let lb2 = &others[0];
    tell(lb2, &format!("service add web tcp {service} -s wrr"))?;
    for host in &lab.servers {
        let server = address(host);
        tell(
            lb2,
            &format!("server add web {server} -w 1 -f masq {CHECK}"),
        )?;
    }
    command("meradm list");
    print!("{}", indented(&lb2.meradm("list")?));

    step("Every node's kernel has it, as soon as the real servers are found healthy");
    for host in &lab.balancers {
        await_weights(lab, host, [1, 1, 1])?;
        command(&format!(
            "ipvsadm --save --numeric      (on {})",
            host.name()
        ));
        print!("{}", indented(&host.ipvsadm("-Sn")?));
    }

    step("A client's connections are shared out by the kernel");
    for host in &lab.balancers {
        lab.route_through(host)?;
        let answers = ask(lab, service, 30)?;
        tally(&format!("30 connections through {}", host.name()), &answers);
        ensure!(answers.failures.is_empty(), "{answers}");
        for server in &lab.servers {
            ensure!(answers.from(server.name()) == 10, "{answers}");
        }
    }

    step("A real server dies: its weight drops to 0 and traffic moves");
    lab.route_through(&lab.balancers[1])?;
    say("rs1 is killed.");
    servers[0].kill()?;
    for host in &lab.balancers {
        await_weights(lab, host, [0, 1, 1])?;
    }
    command("meradm list --live");
    print!("{}", indented(&lb2.meradm("list --live")?));
    let answers = ask(lab, service, 30)?;
    tally("30 connections through lb2", &answers);
    ensure!(
        answers.failures.is_empty() && answers.from("rs1") == 0,
        "{answers}"
    );

    step("It comes back, and takes its share again");
    servers[0] = serve(lab, &lab.servers[0])?;
    for host in &lab.balancers {
        await_weights(lab, host, [1, 1, 1])?;
    }
    let answers = ask(lab, service, 30)?;
    tally("30 connections through lb2", &answers);
    ensure!(
        answers.failures.is_empty() && answers.from("rs1") == 10,
        "{answers}"
    );

    step("The leader is killed under load, through its own kernel");
    let leader = leader(&lb1)?;
    ensure!(
        leader == "lb1",
        "{leader} leads, but nothing has happened to lb1"
    );
    lab.route_through(&lab.balancers[0])?;
    let load = start_load(lab, service)?;
    carry(&load, 50)?;
    say("merlin on lb1 is killed with -9. Its kernel balances on without it.");
    lb1.kill()?;
    carry(&load, 50)?;
    say("A write on lb3 is accepted as soon as there is another leader:");
    let edit = format!("server edit web {} -w 5", address(&lab.servers[2]));
    command(&format!("meradm {edit}"));
    eventually(SOON, || others[1].meradm(&edit))?;
    for host in &lab.balancers[1..] {
        await_weights(lab, host, [1, 1, 5])?;
    }
    command("meradm status");
    print!("{}", indented(&others[1].meradm("status")?));
    carry(&load, 50)?;

    step("merlin on lb1 starts again, and catches up without disturbing anyone");
    lb1.start()?;
    await_weights(lab, &lab.balancers[0], [1, 1, 5])?;
    carry(&load, 50)?;
    let report = load.stop();
    say(&format!(
        "{} new connections and 4 lasting ones through lb1 all the while: {} failed.",
        report.opened(),
        report.fresh.failures.len() + report.broken.len()
    ));
    ensure!(report.flawless(), "{report}");

    step("Done: every step above was checked");
    Ok(())
}

// === steps ===

fn serve(lab: &Lab, host: &Host) -> Result<Process> {
    let mut command = Command::new(programs::locate("e2e-peer")?);
    command.args(["server", "--name", host.name(), "--port", &PORT.to_string()]);
    command
        .arg("--sick-file")
        .arg(lab.directory().join(format!("{}.sick", host.name())));
    lab.spawn(host, "server", &mut command)
}

fn address(host: &Host) -> SocketAddr {
    SocketAddr::new(host.back(Family::V4), PORT)
}

fn tell(node: &Merlin<'_>, words: &str) -> Result<()> {
    command(&format!("meradm {words}"));
    node.meradm(words).map(drop)
}

fn ask(lab: &Lab, service: SocketAddr, questions: usize) -> Result<Answers> {
    let ask = || Ok(survey(Protocol::Tcp, service, questions, ANSWER));
    lab.client.namespace.enter(ask)
}

fn start_load(lab: &Lab, service: SocketAddr) -> Result<Load> {
    let plan = LoadPlan {
        target: service,
        lasting: 4,
        pause: Duration::from_millis(5),
        timeout: ANSWER,
    };
    lab.client.namespace.enter(|| Ok(Load::start(plan)?))
}

/// Lets a load open some more connections.
fn carry(load: &Load, more: usize) -> Result<()> {
    let goal = load.opened() + more;
    eventually(SOON, || {
        ensure!(
            load.opened() >= goal,
            "{} of {goal} connections",
            load.opened()
        );
        Ok(())
    })
}

/// Waits until a kernel has these weights for rs1 to rs3.
fn await_weights(lab: &Lab, host: &Host, weights: [u32; 3]) -> Result<()> {
    eventually(SOON, || {
        let rules = host.rules()?;
        for (server, weight) in lab.servers.iter().zip(weights) {
            let end = format!("-r {} -m -w {weight}", address(server));
            let found = rules.iter().any(|rule| rule.ends_with(&end));
            ensure!(found, "{} holds {rules:?}, not {end}", host.name());
        }
        Ok(())
    })
}

fn leader(node: &Merlin<'_>) -> Result<String> {
    let status = node.fleet_status()?;
    let leads = |node: &&serde_json::Value| node["store"]["role"] == "leader";
    let leader = status.iter().find(leads).context("nobody leads")?;
    Ok(leader["name"].as_str().unwrap_or_default().to_owned())
}

// === talking ===

fn coloured(code: &str, text: &str) -> String {
    match std::env::var_os(COLOUR) {
        Some(_) => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        None => text.to_owned(),
    }
}

fn step(title: &str) {
    sleep(PAUSE);
    println!("\n{}\n", coloured("1", &format!("== {title}")));
}

fn say(text: &str) {
    println!("{text}");
}

fn command(line: &str) {
    println!("{}", coloured("36", &format!("$ {line}")));
}

fn indented(text: &str) -> String {
    let indent = |line: &str| format!("    {line}").trim_end().to_owned() + "\n";
    text.lines().map(indent).collect()
}

fn tally(what: &str, answers: &Answers) {
    let counts = answers.servers();
    let counts: Vec<_> = counts
        .iter()
        .map(|server| format!("{server} {}", answers.from(server)))
        .collect();
    println!(
        "{what}: {}, {} failed",
        counts.join(", "),
        answers.failures.len()
    );
}
