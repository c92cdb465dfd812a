//! How the store is doing, as this node sees it.

use std::fmt;
use std::time::Duration;

use imbl::OrdSet;
use tokio::time::Instant;

use crate::guard::Removal;
use crate::replica::Problem;

/// A store that has just gone away is likely to be back soon: another member takes over.
const GRACE: Duration = Duration::from_secs(3);

/// Which of etcd's two stores keeps the records. They do not see each other's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Etcd3,
    Etcd2,
}

impl Backend {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Etcd3 => "etcd3",
            Self::Etcd2 => "etcd2",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Debug)]
pub struct Status {
    /// Not known until the records have been found, where that is to be found out.
    pub backend: Option<Backend>,
    /// Why commands cannot be decided at the moment.
    pub unavailable: Option<String>,
    /// The etcd member in use, or last in use.
    pub endpoint: String,
    /// Which history revisions belong to: those of different ones are not comparable. Empty until
    /// the store was first reached.
    pub history: String,
    /// Records that are passed over, by key.
    pub problems: OrdSet<Problem>,
    /// A removal that is held back until it is accepted.
    pub held: Option<Removal>,
    /// Since when the store is away.
    pub(crate) lost: Option<Instant>,
}

impl Status {
    pub(crate) fn starting(backend: Option<Backend>) -> Self {
        Self {
            backend,
            unavailable: Some("etcd has not answered yet".to_owned()),
            endpoint: String::new(),
            history: String::new(),
            problems: OrdSet::new(),
            held: None,
            lost: Some(Instant::now()),
        }
    }

    pub fn is_connected(&self) -> bool {
        self.unavailable.is_none()
    }

    /// For how long the catalog may have missed changes.
    pub fn lag(&self) -> Duration {
        self.lost.map(|lost| lost.elapsed()).unwrap_or_default()
    }

    /// For how long it is worth waiting for the store, which is not long once it is away for long.
    pub(crate) fn grace(&self) -> Duration {
        GRACE.saturating_sub(self.lag())
    }
}
