//! `merlin cluster join`: gets this host ready to be a node of an existing cluster.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use merlin_raft::identity::Token;
use merlin_raft::{Join, Joined};

use super::failure::Failure;
use crate::cli::{RunArgs, Settings};
use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct JoinArgs {
    /// What `merlin cluster token create` printed on a member
    token: Token,
    /// Where this node will keep its state
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
    /// Give up the catalog and membership that are in the data directory; they are moved aside
    #[arg(long)]
    discard_local_state: bool,
}

impl JoinArgs {
    pub(super) async fn perform(&self) -> Result<ExitCode, Failure> {
        let settings = Settings {
            data_dir: self.data_dir.clone(),
            node_name: self.node_name.clone(),
            peer_addr: self.peer_addr,
            advertise_addr: self.advertise_addr,
            ..Settings::default()
        };
        let config = Config::load(&RunArgs {
            config: None,
            settings,
        })?;
        let joined = join(&config, self.token.clone(), self.discard_local_state).await?;
        io::stdout().lock().write_all(joined.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Makes the data directory a member's and says what has become of it.
pub(crate) async fn join(
    config: &Config,
    token: Token,
    discard_local_state: bool,
) -> anyhow::Result<String> {
    let joined = merlin_raft::join(Join {
        data_dir: config.data_dir.clone(),
        token,
        name: config.node_name.clone(),
        advertise: config.advertise_addr,
        discard_local_state,
    });
    Ok(match joined.await? {
        Joined::Already(name) => format!("already a member: node {}\n", name.node),
        Joined::Now {
            name,
            role,
            discarded,
            ..
        } => {
            let mut text = format!("joined as node {}, to be a {role}\n", name.node);
            if let Some(aside) = discarded {
                let _ = writeln!(text, "what was there is in {}", aside.display());
            }
            text += "start the daemon: the cluster takes the node in once it answers at ";
            text + &format!("{}\n", config.advertise_addr)
        }
    })
}
