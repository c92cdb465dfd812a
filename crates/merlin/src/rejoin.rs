//! Joining a cluster from the daemon: at its start, with a token that it was given, and while it
//! runs.
//!
//! In the second case the cluster lets the node in first, with everything as it was; then the
//! daemon lets go of all it has, gives its data directory to the new node, and begins anew in the
//! same process. The kernel keeps its rules as over any restart.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, anyhow};
use merlin_raft::identity::Token;
use merlin_raft::{Admitted, Join, JoinError, Level};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::cluster;
use crate::config::{Config, TokenSource};

/// What a cluster has to be told about this node, and where to say that it was let in.
#[derive(Debug)]
pub(crate) struct Applicant {
    data_dir: PathBuf,
    name: String,
    advertise: SocketAddr,
    level: Level,
    admitted: Mutex<Option<oneshot::Sender<Admitted>>>,
}

impl Applicant {
    pub(crate) fn new(config: &Config) -> (Self, oneshot::Receiver<Admitted>) {
        let (admitted, is_admitted) = oneshot::channel();
        let applicant = Self {
            data_dir: config.data_dir.clone(),
            name: config.node_name.clone(),
            advertise: config.advertise_addr,
            level: config.command_level,
            admitted: Mutex::new(Some(admitted)),
        };
        (applicant, is_admitted)
    }

    /// What is free where the data directory is, in percent.
    pub(crate) fn disk_free(&self) -> Option<u32> {
        let disk = nix::sys::statvfs::statvfs(&self.data_dir).ok()?;
        let percent = disk.blocks_available() * 100 / disk.blocks().max(1);
        u32::try_from(percent).ok()
    }

    /// Whether the daemon is about to begin anew.
    pub(crate) fn is_leaving(&self) -> bool {
        let admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        admitted.is_none()
    }

    pub(crate) fn with(&self, token: Token, discard_local_state: bool) -> Join {
        Join {
            data_dir: self.data_dir.clone(),
            token,
            name: self.name.clone(),
            advertise: self.advertise,
            discard_local_state,
            level: self.level,
        }
    }

    /// Has the daemon begin anew as the node that was let in.
    pub(crate) fn is_admitted(&self, admitted: Admitted) {
        let mut sender = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        // A second one at the same time is the same node, by the same key.
        if let Some(sender) = sender.take() {
            // Nobody listens only when the daemon stops anyway.
            let _ = sender.send(admitted);
        }
    }
}

/// Joins with the token that the daemon was given, unless this node is a member already.
///
/// A node that is not let in ends: it was to be a node of that cluster, not one of its own.
pub(crate) async fn with_given_token(config: &Config) -> anyhow::Result<()> {
    let (flag, token) = match &config.join_token {
        None => return Ok(()),
        Some(TokenSource::Text(text)) => ("--join-token", parse(text)),
        Some(TokenSource::File(path)) => ("--join-token-file", read(path)),
    };
    let token = match token {
        Ok(token) => token,
        // Tokens expire and are cleaned away; a node that has joined does not need its any more.
        Err(error) if config.data_dir.join("node.json").exists() => {
            let error = format!("{error:#}");
            warn!(
                error,
                flag, "not joining: this node is a member of a cluster already"
            );
            return Ok(());
        }
        Err(error) => return Err(error.context(flag)),
    };
    match cluster::enter(config, token, false).await {
        Ok(joined) => {
            let outcome = cluster::joined(&joined, config);
            info!(outcome = outcome.lines().next(), "joining");
            Ok(())
        }
        Err(error @ JoinError::InUse { .. }) => {
            let error = anyhow!(error);
            warn!(
                error = format!("{error:#}"),
                flag, "not joining: this node is in use"
            );
            Ok(())
        }
        Err(error) => Err(anyhow!(error).context(flag)),
    }
}

fn read(path: &Path) -> anyhow::Result<Token> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> anyhow::Result<Token> {
    Ok(text.trim().parse()?)
}
