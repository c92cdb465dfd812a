//! `meradm service ...`.

use clap::{Args, Subcommand, ValueEnum};
use merlin_model::Netmask;

use super::Condition;
use super::values::{Known, netmask};

const SCHEDULERS: Known = Known(&[
    "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos",
]);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Add a virtual service
    Add(Add),
    /// Change a virtual service; what is not given stays
    Edit(Edit),
    /// Delete a virtual service and its real servers
    Del(Del),
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Name of the service
    pub(crate) id: String,
    /// Kind of traffic
    #[arg(value_name = "KIND", ignore_case = true)]
    pub(crate) kind: Kind,
    #[arg(value_name = "IP:PORT|MARK")]
    #[arg(help = "Address and port, such as 10.0.0.1:80 or [fd00::1]:80; with fwmark: the mark")]
    pub(crate) target: String,
    /// Family of the marked packets [default: ipv4]
    #[arg(long)]
    pub(crate) family: Option<Family>,
    /// Scheduler for new connections
    #[arg(short, long, value_name = "SCHED", value_parser = SCHEDULERS)]
    pub(crate) scheduler: String,
    #[command(flatten)]
    pub(crate) condition: Condition,
    #[command(flatten)]
    pub(crate) options: Options,
}

#[derive(Debug, Args)]
pub(crate) struct Edit {
    /// Name of the service
    pub(crate) id: String,
    /// Scheduler for new connections
    #[arg(short, long, value_name = "SCHED", value_parser = SCHEDULERS)]
    pub(crate) scheduler: Option<String>,
    #[command(flatten)]
    pub(crate) condition: Condition,
    #[command(flatten)]
    pub(crate) options: Options,
}

#[derive(Debug, Args)]
pub(crate) struct Del {
    /// Name of the service
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) condition: Condition,
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Options {
    /// Scheduler flags, joined by commas: flag-1, flag-2, flag-3, or sh-fallback, sh-port,
    /// mh-fallback, mh-port; '' clears them
    #[arg(
        short = 'b',
        long = "scheduler-flags",
        visible_alias = "sched-flags",
        value_name = "FLAGS"
    )]
    pub(crate) flags: Option<String>,
    /// Seconds for which a client stays on its real server; 0 switches persistence off
    #[arg(short, long, value_name = "SECONDS")]
    pub(crate) persistent: Option<u32>,
    /// Clients that are kept together, as a mask or prefix length [default: each on its own]
    #[arg(short = 'M', long, value_parser = netmask)]
    pub(crate) netmask: Option<Netmask>,
    /// Schedule every datagram on its own
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_name = "true|false"
    )]
    pub(crate) ops: Option<bool>,
    /// Persistence engine; '' takes it away
    #[arg(long, value_name = "ENGINE", value_parser = Known(&["sip"]))]
    pub(crate) pe: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Tcp,
    Udp,
    Sctp,
    /// Packets with a firewall mark
    Fwmark,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    Ipv4,
    Ipv6,
}
