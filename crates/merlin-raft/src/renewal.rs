//! Keeps the node's certificate good, and one of the authority that the cluster has agreed on.
//!
//! Every member holds the authority's key, so a node renews its own certificate and needs nobody
//! for it: not even after a sleep so long that the others refuse the old one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use merlin_model::Timestamp;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::cluster::ClusterState;
use crate::identity::{
    Beside, CaError, IdentityDir, IdentityError, IdentityStoreError, Life, PeerTls, TlsError,
};
use crate::proposer::now;
use crate::rotation::Stage;

/// Between two looks at the clock. A certificate is renewed a month before it ends.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// After a failure that may pass, such as a full disk.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Why a certificate is not renewed. The one before stays in use.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    #[error("this node does not know the cluster's present authority yet")]
    NoAuthority,
    #[error("there is no certificate in the data directory")]
    Missing,
    #[error("the cluster's authority cannot be used")]
    Authority(#[from] CaError),
    #[error("no new certificate could be made")]
    Certificate(#[from] IdentityError),
    #[error(transparent)]
    Store(#[from] IdentityStoreError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Renews the certificate that the node's connections are made with.
#[derive(Clone, Debug)]
pub(crate) struct Renewal {
    pub(crate) tls: PeerTls,
    pub(crate) dir: IdentityDir,
    pub(crate) cluster: watch::Receiver<Arc<ClusterState>>,
    /// Where what this node trusts is kept for.
    pub(crate) life: Life,
    /// The step of the authority's rotation that this node has followed, on its disk too.
    pub(crate) step: Arc<AtomicU64>,
}

impl Renewal {
    pub(crate) fn expires(&self) -> Timestamp {
        self.tls.identity().expires()
    }

    /// Signs a new certificate for the same key, now. Connections that exist stay as they are.
    pub(crate) fn renew(&self) -> Result<Timestamp, RenewError> {
        let ca = {
            let cluster = self.cluster.borrow();
            let founding = cluster.founding.as_ref().ok_or(RenewError::NoAuthority)?;
            // A node that has just started may see the cluster as it was.
            if cluster.rotation.step < self.step.load(Ordering::Relaxed) {
                return Err(RenewError::NoAuthority);
            }
            founding.authority()?
        };
        let renewed = self.tls.identity().renewed(&ca, now())?;
        let expires = renewed.expires();
        self.dir.save(&renewed)?;
        self.tls.replace(renewed)?;
        tracing::info!(expires = expires.0, "renewed this node's certificate");
        Ok(expires)
    }

    /// Goes on with the certificate that is on the disk.
    pub(crate) fn reload(&self) -> Result<Timestamp, RenewError> {
        let stored = self.dir.load()?.ok_or(RenewError::Missing)?;
        let expires = stored.expires();
        self.tls.replace(stored)?;
        Ok(expires)
    }

    /// Follows the cluster to the authority that it has agreed on.
    ///
    /// On the disk, as in use, this node trusts both before it shows a certificate of the new one,
    /// and shows that before it trusts the former one no more. The step is noted last.
    fn follow(&self) -> Result<(), RenewError> {
        let cluster = Arc::clone(&self.cluster.borrow());
        let Some(founding) = &cluster.founding else {
            return Ok(());
        };
        let (rotation, followed) = (&cluster.rotation, self.step.load(Ordering::Relaxed));
        // A node that starts sees the cluster's past first.
        if rotation.step <= followed {
            return Ok(());
        }
        let ca = founding.authority()?;
        let own = self.tls.identity();
        let before = self.tls.beside();
        let is_former = own.ca_fingerprint() != ca.fingerprint();
        let identity = match is_former {
            true => Arc::new(own.renewed(&ca, now())?),
            false => Arc::clone(&own),
        };
        let former = match rotation.stage {
            Stage::Reissuing(_) if is_former => Some(Arc::clone(&own)),
            Stage::Reissuing(_) => before.former.clone(),
            Stage::Settled | Stage::Trusting(_) => None,
        };
        let other = rotation.also_trusted();
        let other = other.map(|der| CertificateDer::from(der.to_vec()));
        let after = Beside {
            trusted: other.into_iter().collect(),
            former,
        };
        let mut both = after.clone();
        both.trusted.extend(before.trusted);
        both.trusted
            .extend([own.ca().clone(), ca.certificate().clone()]);
        self.dir.save_beside(self.life, followed, &both)?;
        if is_former {
            self.dir.save(&identity)?;
        }
        self.dir.save_beside(self.life, rotation.step, &after)?;
        self.tls.change(identity, after)?;
        self.step.store(rotation.step, Ordering::Relaxed);
        tracing::info!(
            step = rotation.step,
            authority = %ca.fingerprint(),
            "following the cluster to another certificate authority"
        );
        Ok(())
    }

    /// Whatever there is to do now, and when to look again.
    pub(crate) fn look(&self) -> Duration {
        let followed = self.follow();
        self.renew_if_due();
        let Err(error) = followed else {
            return LOOK_EVERY;
        };
        let error: &dyn std::error::Error = &error;
        tracing::warn!(
            error,
            "this node cannot follow the cluster to its authority yet"
        );
        TRY_AGAIN
    }

    /// Renews when it is time to. A node that does not know the authority yet tries again when it
    /// has learned more about the cluster.
    fn renew_if_due(&self) {
        if now() >= self.tls.identity().renewal_due()
            && let Err(error) = self.renew()
        {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "this node's certificate could not be renewed");
        }
    }

    /// Ends when the store does.
    pub(crate) async fn run(mut self) {
        loop {
            let pause = self.look();
            tokio::select! {
                // Both cancel safe: each only says that it is time to look.
                changed = self.cluster.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::identity::NodeIdentity;
    use crate::testing::TIMERS;
    use crate::{Config, RaftStore};

    const DAY: u64 = 24 * 3600 * 1000;

    fn config(data_dir: &Path) -> Config {
        Config {
            data_dir: data_dir.to_owned(),
            node_name: "n1".into(),
            advertise: "127.0.0.1:4284".into(),
            advertise_guessed: false,
            peer_addr: ([127, 0, 0, 1], 0).into(),
            timers: TIMERS,
            level: crate::Level::LATEST,
            snapshot_every: None,
        }
    }

    async fn open(data_dir: &Path) -> RaftStore {
        RaftStore::open(config(data_dir)).await.unwrap()
    }

    fn days_left(store: &RaftStore) -> u64 {
        store
            .certificate_expires()
            .unwrap()
            .0
            .saturating_sub(now().0)
            / DAY
    }

    #[tokio::test]
    async fn a_node_that_slept_past_its_certificate_renews_it_before_it_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        assert_eq!(days_left(&store), 89);
        let ca = store.registry().authority().unwrap();
        let name = store.inner.renewal.get().unwrap().tls.name();
        store.shutdown().await;
        drop(store);

        let identity_dir = IdentityDir::open(dir.path().join("identity")).unwrap();
        let long_ago = Timestamp(now().0 - 100 * DAY);
        let old = NodeIdentity::found(&ca, name, long_ago).unwrap();
        identity_dir.save(&old).unwrap();

        let store = open(dir.path()).await;
        assert_eq!(days_left(&store), 89);
        let kept = identity_dir.load().unwrap().unwrap();
        assert_eq!(Some(kept.expires()), store.certificate_expires());

        // And when an operator wants it.
        store.renew_certificate().unwrap();
        assert_eq!(days_left(&store), 89);
        store.shutdown().await;
    }

    #[tokio::test]
    async fn the_certificate_of_another_node_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        let ca = store.registry().authority().unwrap();
        let mut name = store.inner.renewal.get().unwrap().tls.name();
        store.shutdown().await;
        drop(store);

        name.node = 9;
        let other = NodeIdentity::found(&ca, name, now()).unwrap();
        let identity_dir = IdentityDir::open(dir.path().join("identity")).unwrap();
        identity_dir.save(&other).unwrap();
        let error = RaftStore::open(config(dir.path())).await.unwrap_err();
        assert!(
            matches!(error, crate::OpenError::OtherIdentity { .. }),
            "{error}"
        );
    }
}
