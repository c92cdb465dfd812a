//! One bridge, one cable to each machine, and ways to hurt the traffic.
//!
//! A rule that drops packets counts them, so that a fault which hit nothing is noticed.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::lab::Namespace;

use super::etcd::{CLIENTS, PEERS};
use crate::ops::Node;

const TABLE: &str = "nemesis";

#[must_use]
pub fn address(node: Node) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, node)
}

/// Of this program, on the bridge.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);

#[must_use]
pub fn namespace(node: Node) -> Namespace {
    Namespace::named(format!("n{node}"))
}

/// For nodes 1 to `nodes`.
pub(super) fn build(nodes: Node) -> Result<()> {
    let mut batch = "link set lo up\nlink add bridge0 type bridge mcast_snooping 0\n".to_owned();
    writeln!(batch, "address add {HOST}/24 dev bridge0")?;
    writeln!(batch, "link set bridge0 up")?;
    for node in 1..=nodes {
        writeln!(batch, "netns add n{node}")?;
        writeln!(
            batch,
            "link add eth0 netns n{node} type veth peer name n{node}"
        )?;
        writeln!(batch, "link set n{node} master bridge0 up")?;
    }
    piped("ip", &["-batch", "-"], &batch)?;
    for node in 1..=nodes {
        let mut batch = format!("address add {}/24 dev eth0\n", address(node));
        batch.push_str("link set lo up\nlink set eth0 up\n");
        piped("ip", &["-n", &format!("n{node}"), "-batch", "-"], &batch)?;
    }
    Ok(())
}

/// What happens to packets from others to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All packets from these nodes are dropped.
    From(Vec<Node>),
    /// So many of a hundred packets from any node are dropped. Clients are spared.
    Lossy(u8),
    /// All packets of these nodes' members of the etcd to the one here, and no others.
    FromMembers(Vec<Node>),
    /// All answers of any member of the etcd to who asks here.
    Answers,
    /// Who asks any member of the etcd from here is refused.
    Asking,
}

/// Puts the filter in place of any other.
pub fn filter(node: Node, filter: &Filter) -> Result<()> {
    let from = |nodes: &[Node]| {
        let from: Vec<_> = nodes
            .iter()
            .map(|node| address(*node).to_string())
            .collect();
        format!("ip saddr {{ {} }}", from.join(", "))
    };
    let (hook, conditions, verdict) = match filter {
        Filter::From(nodes) => ("input", vec![from(nodes)], "drop"),
        Filter::Lossy(percent) => {
            let some =
                format!("ip saddr != {HOST} meta iifname eth0 numgen random mod 100 < {percent}");
            ("input", vec![some], "drop")
        }
        // Whichever of the two has connected.
        Filter::FromMembers(nodes) => {
            let ports = ["sport", "dport"];
            let conditions = ports.map(|port| format!("{} tcp {port} {PEERS}", from(nodes)));
            ("input", conditions.to_vec(), "drop")
        }
        Filter::Answers => ("input", vec![format!("tcp sport {CLIENTS}")], "drop"),
        Filter::Asking => {
            let asking = format!("tcp dport {CLIENTS}");
            ("output", vec![asking], "reject with tcp reset")
        }
    };
    let mut rules = format!(
        "table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n chain here {{\n  type \
         filter hook {hook} priority 0;\n"
    );
    for condition in conditions {
        writeln!(rules, "  {condition} counter {verdict}")?;
    }
    rules.push_str(" }\n}\n");
    nft(node, &rules)
}

/// Takes the filter away, and says how many packets it dropped.
pub fn unfilter(node: Node) -> Result<u64> {
    let dropped = dropped(node)?;
    nft(node, &format!("delete table ip {TABLE}\n"))?;
    Ok(dropped)
}

pub fn dropped(node: Node) -> Result<u64> {
    let listed = namespace(node).run("nft", ["list", "table", "ip", TABLE])?;
    let words: Vec<_> = listed.split_whitespace().collect();
    let counters = words.windows(2).filter(|pair| pair[0] == "packets");
    let counts: Vec<u64> = counters
        .map(|pair| pair[1].parse())
        .collect::<Result<_, _>>()?;
    ensure!(!counts.is_empty(), "nft shows no counter: {listed}");
    Ok(counts.iter().sum())
}

/// Lets what a machine sends through so slowly.
pub fn throttle(node: Node, kilobits: u32) -> Result<()> {
    let rate = format!("{kilobits}kbit");
    let args = "qdisc replace dev eth0 root tbf burst 2kb latency 400ms rate";
    let mut tc = Command::new("tc");
    tc.args(args.split(' ')).arg(rate);
    namespace(node).output(&mut tc).map(drop)
}

/// Takes the throttle away, and says how many packets had to wait or were dropped.
pub fn unthrottle(node: Node) -> Result<u64> {
    let shown = namespace(node).run("tc", ["-s", "qdisc", "show", "dev", "eth0"])?;
    let mut words = shown.split_whitespace();
    words.find(|word| *word == "overlimits");
    let delayed = words.next().context("tc shows no counter")?.parse()?;
    let removed = namespace(node).run("tc", ["qdisc", "del", "dev", "eth0", "root"])?;
    drop(removed);
    Ok(delayed)
}

fn nft(node: Node, rules: &str) -> Result<()> {
    namespace(node).enter(|| piped("nft", &["-f", "-"], rules))
}

fn piped(program: &str, args: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let sent = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {}: {}\nIts input was:\n{input}",
        args.join(" "),
        complaint.trim_end()
    );
    sent.with_context(|| format!("writing to {program}"))
}

/// Runs a program that must succeed.
pub(crate) fn checked(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {program}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        complaint.trim_end()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
