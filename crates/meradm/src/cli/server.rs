//! `meradm server ...`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::Condition;
use super::values::ip_port;
use crate::duration;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Add a real server to a virtual service
    Add(Add),
    /// Change a real server; what is not given stays
    Edit(Edit),
    /// Delete a real server
    Del(Del),
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    #[command(flatten)]
    pub(crate) key: Key,
    /// Share of new connections, 0 to 65535
    #[arg(short, long, value_name = "N")]
    pub(crate) weight: u32,
    /// How packets reach the server
    #[arg(
        short,
        long = "forward-method",
        visible_alias = "forward",
        ignore_case = true
    )]
    #[arg(value_name = "METHOD")]
    pub(crate) forward: Forward,
    #[command(flatten)]
    pub(crate) condition: Condition,
    #[command(flatten)]
    pub(crate) options: Options,
}

#[derive(Debug, Args)]
pub(crate) struct Edit {
    #[command(flatten)]
    pub(crate) key: Key,
    /// Share of new connections, 0 to 65535
    #[arg(short, long, value_name = "N")]
    pub(crate) weight: Option<u32>,
    /// How packets reach the server
    #[arg(
        short,
        long = "forward-method",
        visible_alias = "forward",
        ignore_case = true
    )]
    #[arg(value_name = "METHOD")]
    pub(crate) forward: Option<Forward>,
    #[command(flatten)]
    pub(crate) condition: Condition,
    #[command(flatten)]
    pub(crate) options: Options,
}

#[derive(Debug, Args)]
pub(crate) struct Del {
    #[command(flatten)]
    pub(crate) key: Key,
    #[command(flatten)]
    pub(crate) condition: Condition,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Key {
    /// Name of the virtual service
    pub(crate) id: String,
    #[arg(value_name = "IP:PORT", value_parser = ip_port)]
    #[arg(help = "Address and port of the real server, such as 10.1.0.1:80 or [fd00::1]:80")]
    pub(crate) at: SocketAddr,
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Options {
    /// Connections at which the server is taken out; 0: no limit
    #[arg(short = 'x', long, value_name = "N")]
    pub(crate) u_threshold: Option<u32>,
    /// Connections below which it is put back
    #[arg(short = 'y', long, value_name = "N")]
    pub(crate) l_threshold: Option<u32>,
    #[command(flatten)]
    pub(crate) tunnel: Tunnel,
    #[command(flatten)]
    pub(crate) health: Health,
}

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Tunnel options")]
pub(crate) struct Tunnel {
    /// Encapsulation, with -f tunnel [default: ipip]
    #[arg(long, value_name = "TYPE", ignore_case = true)]
    pub(crate) tun_type: Option<TunnelType>,
    /// Destination port of GUE
    #[arg(long, value_name = "PORT", requires = "tun_type")]
    pub(crate) tun_port: Option<u16>,
    /// Send no checksum (the default)
    #[arg(long, group = "checksum", requires = "tun_type")]
    pub(crate) tun_nocsum: bool,
    /// Send a checksum
    #[arg(long, group = "checksum", requires = "tun_type")]
    pub(crate) tun_csum: bool,
    /// Use remote checksum offload
    #[arg(long, group = "checksum", requires = "tun_type")]
    pub(crate) tun_remcsum: bool,
}

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Health check options")]
pub(crate) struct Health {
    /// What to ask the server for: http://:PORT/PATH; '' switches the check off
    #[arg(long, value_name = "URL")]
    pub(crate) health_endpoint: Option<String>,
    /// Time between checks, such as 5s or 1m30s
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub(crate) health_period: Option<Duration>,
    /// Time to wait for an answer
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub(crate) health_timeout: Option<Duration>,
    /// Successes in a row that bring the server up
    #[arg(long, value_name = "N")]
    pub(crate) health_up: Option<u32>,
    /// Failures in a row that bring it down
    #[arg(long, value_name = "N")]
    pub(crate) health_down: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Forward {
    /// Direct routing
    Route,
    /// Encapsulation
    Tunnel,
    /// Network address translation
    Masq,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TunnelType {
    Ipip,
    Gue,
    Gre,
}
