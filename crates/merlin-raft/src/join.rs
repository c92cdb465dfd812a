//! Makes an empty data directory that of a new node of an existing cluster.
//!
//! ```text
//! nothing lost?  ─▶ key kept in identity/joining.pem ─▶ the cluster lets the key in
//!   ─▶ the directory becomes the new node's, wholly: [`crate::settle`]
//! ```
//! A join that is interrupted anywhere can be run again with the same token: until the end the key
//! stays, and by it the cluster recognises the node.
//!
//! Taking part in the cluster is then [`crate::RaftStore::open`]'s; the leader adds the node once
//! it answers at its address.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::storage::RaftLogStorage;
use openraft::{EntryPayload, RaftLogReader};

use crate::cluster::{ClusterChange, ClusterCommand};
use crate::datadir::{DataDir, DataDirError, Introducer};
use crate::identity::{
    Applicant, EnrollError, Enrolled, IdentityDir, IdentityStoreError, Member, NodeKey, PeerName,
    Role, Token, enroll,
};
use crate::level::Level;
use crate::log::LogStore;
use crate::proposal::Request;
use crate::proposer::now;
use crate::settle::{self, Admission};
use crate::standing::Standing;
use crate::store::RaftStore;
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
    let member = if discard { None } else { place.member().await? };
    let member = member.filter(|member| member.cluster == token.cluster);
    // What a removed node holds is a copy of what the cluster it comes back to has.
    let returns = member.is_some() && place.dir.is_marked_removed();
    match member {
        Some(member) if !returns => return Ok(Joined::Already(member)),
        _ if discard || returns => {}
        _ if place.untouched().await? => {}
        _ => return Err(JoinError::InUse { dir: place.path }),
    }
    let key = place.joining_key().await?;
    let applicant = Applicant {
        key,
        name,
        advertise,
        level,
    };
    let enrolled = enroll(&token, &applicant).await?;
    place.settle(enrolled, discard || returns).await
}

/// What a node with an open store is told about joining.
#[derive(Debug)]
pub enum Application {
    /// It is a member of the token's cluster.
    Already(PeerName),
    Admitted(Box<Admitted>),
}

/// A cluster has let a node in whose store is open still, as that of another cluster's node.
#[derive(Debug)]
pub struct Admitted {
    data_dir: PathBuf,
    enrolled: Enrolled,
    keep: bool,
}

impl RaftStore {
    /// Asks the cluster of a token to let this node in, which has nothing to lose. Nothing of it
    /// changes before [`Admitted::settle`].
    pub async fn apply_for(&self, join: Join) -> Result<Application, JoinError> {
        let Join {
            data_dir,
            token,
            name,
            advertise,
            discard_local_state: discard,
            level,
        } = join;
        let inner = &self.inner;
        let same = inner.me.cluster == token.cluster;
        let returns = match self.standing() {
            Standing::Member if same && !discard => {
                return Ok(Application::Already(PeerName {
                    cluster: token.cluster,
                    node: inner.me.node,
                }));
            }
            Standing::Removed => same,
            Standing::Member => false,
            // Nothing is left of what there was.
            Standing::Left => true,
        };
        let allowed = discard || returns;
        if !allowed && !is_untouched(&inner.dir, &mut inner.log.clone()).await? {
            return Err(JoinError::InUse { dir: data_dir });
        }
        let dir = Arc::clone(&inner.dir);
        let key = blocking(move || Ok(IdentityDir::open(dir.identity())?.joining_key()?)).await?;
        let applicant = Applicant {
            key,
            name,
            advertise,
            level,
        };
        let enrolled = enroll(&token, &applicant).await?;
        Ok(Application::Admitted(Box::new(Admitted {
            data_dir,
            enrolled,
            keep: allowed,
        })))
    }
}

impl Admitted {
    pub fn name(&self) -> PeerName {
        self.enrolled.identity.name()
    }

    pub fn role(&self) -> Role {
        self.enrolled.role
    }

    /// Makes the data directory the new node's, once the store is shut down.
    pub async fn settle(self) -> Result<Joined, JoinError> {
        let place = Place::open(self.data_dir).await?;
        // Something may have been written since the store was looked at.
        let keep = self.keep || !place.untouched().await?;
        place.settle(self.enrolled, keep).await
    }
}

/// The data directory that is to be a member's, locked.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    dir: Arc<DataDir>,
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
        let dir = self.dir.log();
        if !dir.exists() {
            return Ok(!holds_files(&self.dir.snapshots()));
        }
        let opened = blocking({
            let path = dir.clone();
            move || Ok(LogStore::open(&path))
        });
        let mut log = match opened.await? {
            Ok(log) => log,
            Err(error) => return Err(unreadable(dir, error)),
        };
        let untouched = is_untouched(&self.dir, &mut log).await;
        blocking(move || {
            log.close();
            Ok(())
        })
        .await?;
        untouched
    }

    async fn joining_key(&self) -> Result<NodeKey, JoinError> {
        let identity = self.identity.clone();
        blocking(move || Ok(identity.joining_key()?)).await
    }

    /// Gives the directory to the new node. What was there before is kept, if it was worth it.
    async fn settle(self, enrolled: Enrolled, keep: bool) -> Result<Joined, JoinError> {
        blocking(move || {
            let name = enrolled.identity.name();
            let introducers = enrolled.members.iter().map(|member| Introducer {
                id: member.id,
                addr: member.addr.clone(),
            });
            self.identity.save_admitted(&enrolled.identity)?;
            let admission = Admission {
                cluster_id: name.cluster.to_string(),
                node_id: name.node,
                incarnation: enrolled.incarnation,
                introducers: introducers.collect(),
                aside: format!("discarded-{}", now().0),
                keep,
            };
            settle::decide(&self.path, &admission)?;
            let discarded = settle::finish(&self.dir, &self.path)?;
            Ok(Joined::Now {
                name,
                role: enrolled.role,
                members: enrolled.members,
                discarded,
            })
        })
        .await
    }
}

/// Whether a log holds no more than that of a node that has done nothing yet.
async fn is_untouched(dir: &DataDir, log: &mut LogStore) -> Result<bool, JoinError> {
    if holds_files(&dir.snapshots()) {
        return Ok(false);
    }
    let read = async {
        let purged = log.get_log_state().await?.last_purged_log_id.is_some();
        let entries = log.try_get_log_entries(..).await?;
        Ok(!purged && entries.iter().all(begins_a_cluster_of_one))
    };
    read.await
        .map_err(|error: crate::typ::StorageError| unreadable(dir.log(), error))
}

fn unreadable(
    dir: PathBuf,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> JoinError {
    let source = source.into();
    JoinError::Unreadable { dir, source }
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
pub(crate) mod tests;
