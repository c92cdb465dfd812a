//! `merlin cluster join`: gets this host ready to be a node of an existing cluster.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Args;
use merlin_raft::identity::Token;
use merlin_raft::{Join, Joined};

use super::failure::Failure;
use super::place::PlaceArgs;
use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct JoinArgs {
    /// What `merlin cluster token create` printed on a member
    token: Token,
    #[command(flatten)]
    place: PlaceArgs,
    /// Give up the catalog and membership that are in the data directory; they are moved aside
    #[arg(long)]
    discard_local_state: bool,
}

impl JoinArgs {
    pub(super) async fn perform(&self) -> Result<ExitCode, Failure> {
        let config = self.place.config()?;
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
        level: config.command_level,
    });
    Ok(match joined.await? {
        Joined::Already(name) => format!(
            "already a member: node {}\n\
             if the cluster was restored or recovered since, this node does not belong to it any \
             more: stop merlin, and join with --discard-local-state\n",
            name.node
        ),
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
