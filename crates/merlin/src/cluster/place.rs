//! What commands that work without the daemon have to be told about its node.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::cli::{RunArgs, Settings};
use crate::config::Config;

/// Where a node is to be made, without its daemon.
#[derive(Debug, Args)]
pub(super) struct PlaceArgs {
    /// Where this node keeps its state
    #[arg(long, env = "MERLIN_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Name of this node in listings [default: the host name]
    #[arg(long, env = "MERLIN_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Address other nodes will connect to
    #[arg(long, env = "MERLIN_PEER_ADDR", value_name = "IP:PORT")]
    peer_addr: Option<SocketAddr>,
    /// How other nodes reach this one, when that is not --peer-addr
    #[arg(long, env = "MERLIN_ADVERTISE_ADDR", value_name = "IP:PORT")]
    advertise_addr: Option<SocketAddr>,
    /// Take part as a version that knows commands up to this level would
    #[arg(long, env = "MERLIN_COMMAND_LEVEL", value_name = "N", hide = true)]
    command_level: Option<u32>,
}

impl PlaceArgs {
    pub(super) fn config(&self) -> anyhow::Result<Config> {
        let settings = Settings {
            data_dir: self.data_dir.clone(),
            node_name: self.node_name.clone(),
            peer_addr: self.peer_addr,
            advertise_addr: self.advertise_addr,
            command_level: self.command_level,
            ..Settings::default()
        };
        Config::load(&RunArgs {
            config: None,
            settings,
        })
    }
}
