//! Joining another cluster while the daemon runs.
//!
//! The cluster lets the node in first, with everything as it was; then the daemon lets go of all it
//! has, gives its data directory to the new node, and begins anew in the same process. The kernel
//! keeps its rules as over any restart.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use merlin_raft::identity::Token;
use merlin_raft::{Admitted, Join, Level};
use tokio::sync::oneshot;

use crate::config::Config;

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
