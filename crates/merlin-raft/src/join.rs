//! Makes an empty data directory that of a new node of an existing cluster.
//!
//! ```text
//! nothing lost?  ─▶ key kept in identity/joining.pem ─▶ the cluster lets the key in
//!   ─▶ what was there is moved aside ─▶ node.json ─▶ identity/node.pem ─▶ joining.pem removed
//! ```
//! A join that is interrupted anywhere can be run again with the same token: until the end the key
//! stays, and by it the cluster recognises the node. In between the directory is nobody's, or a
//! node's that has no certificate and so cannot be heard by the cluster.
//!
//! Taking part in the cluster is then [`crate::RaftStore::open`]'s; the leader adds the node once
//! it answers at its address.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use openraft::storage::RaftLogStorage;
use openraft::{EntryPayload, RaftLogReader};

use crate::cluster::{ClusterChange, ClusterCommand};
use crate::datadir::{DataDir, DataDirError, Introducer, NodeFile};
use crate::identity::{
    Applicant, EnrollError, Enrolled, IdentityDir, IdentityStoreError, Member, NodeKey, PeerName,
    Role, Token, enroll,
};
use crate::level::Level;
use crate::log::LogStore;
use crate::proposal::Request;
use crate::proposer::now;
use crate::typ::Entry;

/// What is to become of a data directory.
#[derive(Clone, Debug)]
pub struct Join {
    pub data_dir: PathBuf,
    pub token: Token,
    /// What operators call the node.
    pub name: String,
    /// Where the other nodes reach it.
    pub advertise: SocketAddr,
    /// Whether a catalog or a membership that is there already may be given up. It is moved aside.
    pub discard_local_state: bool,
    /// The commands that the node can apply.
    pub level: Level,
}

/// The directory is that of a node of the token's cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It was before.
    Already(PeerName),
    Now {
        name: PeerName,
        /// What the node becomes once it has caught up.
        role: Role,
        /// Who was in the cluster before.
        members: Vec<Member>,
        /// Where the state is that was discarded.
        discarded: Option<PathBuf>,
    },
}

/// Why the directory is not a member's. What was in it still is.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Identity(#[from] IdentityStoreError),
    #[error("what {} holds cannot be read; --discard-local-state moves it aside unread", dir.display())]
    Unreadable {
        dir: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "{} holds the state of a node that has been used: joining another cluster would give up \
         its catalog and membership. --discard-local-state moves them aside and joins",
        dir.display()
    )]
    InUse { dir: PathBuf },
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    #[error("the join was cut off")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Joins the cluster of a token. The node's store must not be open.
pub async fn join(join: Join) -> Result<Joined, JoinError> {
    let Join {
        data_dir,
        token,
        name,
        advertise,
        discard_local_state: discard,
        level,
    } = join;
    let place = Place::open(data_dir).await?;
    if !discard {
        if let Some(member) = place.member().await?
            && member.cluster == token.cluster
        {
            return Ok(Joined::Already(member));
        }
        if !place.untouched().await? {
            return Err(JoinError::InUse { dir: place.path });
        }
    }
    let applicant = Applicant {
        key: place.joining_key().await?,
        name,
        advertise,
        level,
    };
    let enrolled = enroll(&token, &applicant).await?;
    let (name, role, members) = (
        enrolled.identity.name(),
        enrolled.role,
        enrolled.members.clone(),
    );
    let discarded = place.settle(enrolled, discard).await?;
    Ok(Joined::Now {
        name,
        role,
        members,
        discarded,
    })
}

/// The data directory that is to be a member's, locked.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    dir: std::sync::Arc<DataDir>,
    identity: IdentityDir,
}

impl Place {
    async fn open(path: PathBuf) -> Result<Self, JoinError> {
        blocking(move || {
            let dir = DataDir::open(&path)?;
            Ok(Self {
                identity: IdentityDir::open(dir.identity())?,
                dir: dir.into(),
                path,
            })
        })
        .await
    }

    /// Which node the directory is complete for.
    async fn member(&self) -> Result<Option<PeerName>, JoinError> {
        let place = self.clone();
        blocking(move || {
            let node = match place.dir.node() {
                // A join cut off half-way; what there is in the log decides.
                Err(DataDirError::Nameless { .. }) => None,
                node => node?.map(|node| node.name()),
            };
            let certificate = place.identity.load()?.map(|identity| identity.name());
            Ok(node.filter(|node| Some(*node) == certificate))
        })
        .await
    }

    /// Whether nothing is lost with the state that is there: a node that made itself a cluster of
    /// one and has done nothing since.
    async fn untouched(&self) -> Result<bool, JoinError> {
        if holds_files(&self.dir.snapshots()) {
            return Ok(false);
        }
        let dir = self.dir.log();
        if !dir.exists() {
            return Ok(true);
        }
        let opened = blocking({
            let path = dir.clone();
            move || Ok(LogStore::open(&path))
        });
        let unreadable = |source: Box<dyn std::error::Error + Send + Sync>| JoinError::Unreadable {
            dir,
            source,
        };
        let mut log = match opened.await? {
            Ok(log) => log,
            Err(error) => return Err(unreadable(error.into())),
        };
        let read = async {
            let purged = log.get_log_state().await?.last_purged_log_id.is_some();
            let entries = log.try_get_log_entries(..).await?;
            Ok(!purged && entries.iter().all(begins_a_cluster_of_one))
        };
        let untouched = read.await;
        blocking(move || {
            log.close();
            Ok(())
        })
        .await?;
        untouched.map_err(|error: crate::typ::StorageError| unreadable(error.into()))
    }

    async fn joining_key(&self) -> Result<NodeKey, JoinError> {
        let identity = self.identity.clone();
        blocking(move || Ok(identity.joining_key()?)).await
    }

    /// Gives the directory to the new node. Returns where the state is that was there before, if
    /// it was worth keeping.
    async fn settle(self, enrolled: Enrolled, keep: bool) -> Result<Option<PathBuf>, JoinError> {
        blocking(move || {
            let aside = self.dir.set_aside(&format!("discarded-{}", now().0))?;
            let name = enrolled.identity.name();
            let introducers = enrolled.members.iter().map(|member| Introducer {
                id: member.id,
                addr: member.addr.clone(),
            });
            self.dir.set_introducers(&introducers.collect::<Vec<_>>())?;
            self.dir.set_node(&NodeFile {
                cluster: name.cluster,
                node: name.node,
                incarnation: enrolled.incarnation,
            })?;
            self.identity.save(&enrolled.identity)?;
            self.identity.forget_joining_key()?;
            match aside {
                Some(aside) if !keep => {
                    self.dir.remove_aside(&aside)?;
                    Ok(None)
                }
                aside => Ok(aside),
            }
        })
        .await
    }
}

/// Whether an entry only says what every new cluster of one node says.
fn begins_a_cluster_of_one(entry: &Entry) -> bool {
    match &entry.payload {
        EntryPayload::Blank => true,
        EntryPayload::Membership(membership) => membership.nodes().count() <= 1,
        EntryPayload::Normal(proposal) => matches!(
            proposal.decode(),
            Ok(Request::Cluster(ClusterCommand {
                change: ClusterChange::Found(_) | ClusterChange::Raise(_),
                ..
            }))
        ),
    }
}

fn holds_files(dir: &Path) -> bool {
    // A directory that cannot be listed is not known to be empty.
    match std::fs::read_dir(dir) {
        Ok(mut files) => files.next().is_some(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

async fn blocking<T, F>(work: F) -> Result<T, JoinError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, JoinError> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await?
}

#[cfg(test)]
mod tests;
