//! `merlin cluster snapshot ...`: copies of the cluster's state, for when all else is lost.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use merlin_proto::v1::{ClusterMember, SaveSnapshotRequest, SnapshotInfo};
use merlin_raft::{Backup, Contents, Restore, Saving};

use super::failure::Failure;
use super::place::PlaceArgs;
use super::{ClusterArgs, tables};

#[derive(Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// Save a copy of the whole state to a file
    ///
    /// Any node will do. The copy holds everything that was acknowledged before, and the cluster's
    /// keys: keep it as you keep keys, and on another host. A snapshot of that name is replaced.
    Save {
        file: PathBuf,
        /// What this node knows, without asking the others: also without a quorum, but it may lag
        #[arg(long)]
        local: bool,
        /// Leave out the key of the certificate authority: a restore makes a new one, and clients on
        /// other hosts have to be made anew then
        #[arg(long)]
        no_ca_in_snapshot: bool,
    },
    /// Show what a snapshot file holds, and whether it is undamaged
    Inspect { file: PathBuf },
    /// Begin the cluster anew from a snapshot file, as its only node
    ///
    /// For when every node is lost. It needs an empty data directory, and the daemon stopped; then
    /// start the daemon, and join other nodes as on the first day. Nodes of before are refused:
    /// their data directories are of no use any more. What the daemon is told about its data
    /// directory and addresses has to be told here too.
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    file: PathBuf,
    #[command(flatten)]
    place: PlaceArgs,
}

impl SnapshotCommand {
    pub(super) async fn perform(&self, args: &ClusterArgs) -> Result<ExitCode, Failure> {
        match self {
            Self::Save {
                file,
                local,
                no_ca_in_snapshot,
            } => {
                let what = SaveSnapshotRequest {
                    local: *local,
                    without_authority: *no_ca_in_snapshot,
                };
                save(args, file, what).await?;
            }
            Self::Inspect { file } => {
                let backup = Backup::read(file).map_err(anyhow::Error::from)?;
                args.print(&info(backup.contents()), tables::snapshot)?;
            }
            Self::Restore(restore) => restore.perform().await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn save(args: &ClusterArgs, file: &Path, what: SaveSnapshotRequest) -> Result<(), Failure> {
    let mut cluster = args.connect().await?;
    // Before the daemon is asked for all of it.
    let mut saving = Saving::begin(file).map_err(anyhow::Error::from)?;
    let request = args.request(what);
    let mut parts = cluster.save_snapshot(request).await?.into_inner();
    while let Some(part) = parts.message().await? {
        saving.write(&part.data).map_err(anyhow::Error::from)?;
    }
    let contents = saving.finish().map_err(anyhow::Error::from)?;
    args.print(&info(&contents), |info| {
        format!("saved revision {} to {}\n", info.revision, file.display())
    })?;
    Ok(())
}

impl RestoreArgs {
    async fn perform(&self) -> Result<(), Failure> {
        let config = self.place.config()?;
        let restored = merlin_raft::restore(Restore {
            file: self.file.clone(),
            data_dir: config.data_dir.clone(),
            name: config.node_name.clone(),
            advertise: config.advertise_addr,
        });
        let reborn = restored
            .await
            .context("nothing was restored")
            .map_err(Failure::from)?;
        let text = format!(
            "restored into {}: node {} of cluster {}, incarnation {}, revision {}\n\
             start the daemon; then make tokens and join the other nodes, with empty data \
             directories\n",
            config.data_dir.display(),
            reborn.name.node,
            reborn.name.cluster,
            reborn.incarnation,
            reborn.revision,
        );
        io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }
}

fn info(contents: &Contents) -> SnapshotInfo {
    let member = |member: &merlin_raft::BackupMember| ClusterMember {
        id: member.id,
        name: member.name.clone(),
        addr: member.addr.clone(),
        role: if member.voter { "voter" } else { "learner" }.to_owned(),
        voter: member.voter,
        ..Default::default()
    };
    SnapshotInfo {
        cluster_id: contents.cluster.to_string(),
        incarnation: contents.incarnation,
        revision: contents.revision.0,
        last_index: contents.last.map_or(0, |at| at.index),
        last_term: contents.last.map_or(0, |at| at.term),
        members: contents.members.iter().map(member).collect(),
        services: contents.services as u64,
        servers: contents.servers as u64,
        format: contents.format,
        bytes: contents.bytes,
        checksum: "ok".to_owned(),
        without_authority: !contents.authority,
    }
}
