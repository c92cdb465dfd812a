//! The `ip` commands and sysctls that make the lab's network so.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::address::{BACK, CONTROL, FRONT, Family, Network, VIPS, VIRTUAL};
use super::namespace::write_sysctl;
use super::{Host, Lab, Namespace};

/// The namespace that holds the bridges: the cables and switches.
pub(super) const WIRE: &str = "wire";

/// The routing table that real servers answer masqueraded clients by.
const MASQUERADED: &str = "100";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Balancer,
    Server,
}

impl Role {
    fn networks(self) -> &'static [Network] {
        match self {
            Self::Client => &[FRONT],
            Self::Balancer => &[FRONT, BACK, CONTROL],
            Self::Server => &[FRONT, BACK],
        }
    }

    fn sysctls(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Client => &[],
            Self::Balancer => &[
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
                // A packet may leave by the interface it came from; that is no news to its sender.
                ("net/ipv4/conf/all/send_redirects", "0"),
                ("net/ipv4/conf/front/send_redirects", "0"),
            ],
            // As for any real server of direct routing: not a word about the VIPs on `lo`; and of
            // a tunnel: packets from everywhere come out of it.
            Self::Server => &[
                ("net/ipv4/conf/all/arp_ignore", "1"),
                ("net/ipv4/conf/all/arp_announce", "2"),
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/tunl0/rp_filter", "0"),
            ],
        }
    }
}

fn roles(lab: &Lab) -> impl Iterator<Item = (Role, &Host)> {
    let balancers = lab.balancers.iter().map(|host| (Role::Balancer, host));
    let servers = lab.servers.iter().map(|host| (Role::Server, host));
    balancers
        .chain(servers)
        .chain([(Role::Client, &lab.client)])
}

/// Creates namespaces and cables, then brings up every host.
pub(super) fn build(lab: &Lab) -> Result<()> {
    ip_batch(None, &cables(lab)?)?;
    ip_batch(Some(&lab.wire), &switches(lab)?)?;
    for (role, host) in roles(lab) {
        host.namespace.enter(|| set_sysctls(role))?;
        ip_batch(Some(&host.namespace), &interfaces(role, host)?)?;
        if role == Role::Server {
            for family in BACK.families {
                masqueraded_rule(host, *family)?;
            }
        }
    }
    match lab.balancers.first() {
        Some(first) => route_through(lab, first),
        None => Ok(()),
    }
}

/// Deleting the namespaces deletes what is in them.
pub(super) fn tear_down(lab: &Lab) -> Result<()> {
    let mut batch = format!("netns delete {WIRE}\n");
    for (_, host) in roles(lab) {
        writeln!(batch, "netns delete {}", host.name())?;
    }
    ip_batch(None, &batch)
}

fn cables(lab: &Lab) -> Result<String> {
    let mut batch = format!("netns add {WIRE}\n");
    for Network { name, .. } in [FRONT, BACK, CONTROL] {
        // Snooping would hold back neighbour discovery until it has seen a querier.
        writeln!(
            batch,
            "link add {name} netns {WIRE} type bridge mcast_snooping 0"
        )?;
    }
    for (role, host) in roles(lab) {
        let namespace = host.name();
        writeln!(batch, "netns add {namespace}")?;
        for network in role.networks() {
            let (name, port) = (network.name, port(*network, host));
            writeln!(
                batch,
                "link add {name} netns {namespace} type veth peer name {port} netns {WIRE}"
            )?;
        }
    }
    Ok(batch)
}

/// The bridge's end of a host's cable.
fn port(network: Network, host: &Host) -> String {
    format!("{}-{}", host.name(), network.name)
}

fn switches(lab: &Lab) -> Result<String> {
    let mut batch = String::new();
    for Network { name, .. } in [FRONT, BACK, CONTROL] {
        writeln!(batch, "link set {name} up")?;
    }
    for (role, host) in roles(lab) {
        for network in role.networks() {
            let (name, port) = (network.name, port(*network, host));
            writeln!(batch, "link set {port} master {name} up")?;
        }
    }
    Ok(batch)
}

/// Run while the interfaces are still down.
fn set_sysctls(role: Role) -> Result<()> {
    // Nobody else can have our addresses, and until duplicate detection has run its second, even
    // neighbour discovery stays silent.
    write_sysctl("net/ipv6/conf/all/accept_dad", "0")?;
    for Network { name, .. } in role.networks() {
        write_sysctl(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
    }
    role.sysctls()
        .iter()
        .try_for_each(|(name, value)| write_sysctl(name, value))
}

fn interfaces(role: Role, host: &Host) -> Result<String> {
    // IPVS refuses every destination where `lo` was never up.
    let mut batch = "link set lo up\n".to_owned();
    for network in role.networks() {
        let name = network.name;
        for &family in network.families {
            let address = network.address(family, host.number);
            let length = family.network_length();
            writeln!(batch, "address add {address}/{length} dev {name}")?;
        }
        writeln!(batch, "link set {name} up")?;
    }
    if role != Role::Client {
        for &family in VIRTUAL.families {
            for number in 1..=VIPS {
                let address = VIRTUAL.address(family, number);
                let length = family.host_length();
                writeln!(batch, "address add {address}/{length} dev lo")?;
            }
        }
    }
    if role == Role::Server {
        writeln!(batch, "link set tunl0 up")?;
        writeln!(batch, "link set ip6tnl0 up")?;
        for &family in BACK.families {
            let prefix = BACK.prefix(family);
            writeln!(batch, "route add {prefix} dev back table {MASQUERADED}")?;
        }
    }
    Ok(batch)
}

/// Answers from a back address take a table of their own, so that they find a balancer.
fn masqueraded_rule(server: &Host, family: Family) -> Result<()> {
    // The one command that does not see the family in the address, and a batch has but one.
    let family_option = match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    };
    let from = BACK.prefix(family);
    let rule = [
        family_option,
        "rule",
        "add",
        "from",
        &from,
        "lookup",
        MASQUERADED,
    ];
    server.namespace.run("ip", rule).map(drop)
}

pub(super) fn route_through(lab: &Lab, balancer: &Host) -> Result<()> {
    let mut at_client = String::new();
    let mut at_servers = String::new();
    for &family in VIRTUAL.families {
        let vips = VIRTUAL.prefix(family);
        let (front, back) = (balancer.front(family), balancer.back(family));
        writeln!(at_client, "route replace {vips} via {front}")?;
        writeln!(
            at_servers,
            "route replace default via {back} table {MASQUERADED}"
        )?;
    }
    ip_batch(Some(&lab.client.namespace), &at_client)?;
    lab.servers
        .iter()
        .try_for_each(|server| ip_batch(Some(&server.namespace), &at_servers))
}

/// By flow, so that a connection's packets keep their balancer.
pub(super) fn spread(lab: &Lab) -> Result<()> {
    let policies = [
        "net/ipv4/fib_multipath_hash_policy",
        "net/ipv6/fib_multipath_hash_policy",
    ];
    for policy in policies {
        lab.client.namespace.sysctl(policy, "1")?;
    }
    let mut batch = String::new();
    for &family in VIRTUAL.families {
        write!(batch, "route replace {}", VIRTUAL.prefix(family))?;
        for balancer in &lab.balancers {
            write!(batch, " nexthop via {}", balancer.front(family))?;
        }
        writeln!(batch)?;
    }
    ip_batch(Some(&lab.client.namespace), &batch)
}

pub(super) fn plug(wire: &Namespace, balancer: &Host, connected: bool) -> Result<()> {
    let state = if connected { "up" } else { "down" };
    ip_batch(
        Some(wire),
        &format!("link set {} {state}\n", port(CONTROL, balancer)),
    )
}

/// One `ip` for many commands: starting a program costs a guest five milliseconds.
fn ip_batch(namespace: Option<&Namespace>, batch: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    if let Some(namespace) = namespace {
        ip.args(["-n", namespace.name()]);
    }
    let mut ip = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip")?;
    let mut stdin = ip.stdin.take().context("ip has no standard input")?;
    let sent = stdin.write_all(batch.as_bytes());
    drop(stdin);
    let output = ip.wait_with_output()?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!(
            "ip -batch: {}\nThe commands were:\n{batch}",
            complaint.trim_end()
        );
    }
    sent.context("sending commands to ip")
}
