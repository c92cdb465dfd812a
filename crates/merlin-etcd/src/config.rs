//! Where etcd is and how to talk to it.

use std::fmt;
use std::path::PathBuf;

use crate::guard::MaxRemoval;
use crate::keep::Keep;
use crate::layout::Layout;
use crate::status::Backend;

#[derive(Clone, Debug)]
pub struct Config {
    /// `None`: the one that holds records, etcd 3 if neither does.
    pub backend: Option<Backend>,
    /// URLs of etcd members, at least one; a scheme may be left out.
    pub endpoints: Vec<String>,
    pub layout: Layout,
    pub tls: Tls,
    pub user: Option<User>,
    /// Where the last catalog is kept, for as long as etcd does not answer.
    pub keep: Option<Keep>,
    pub max_removal: MaxRemoval,
}

/// Files in PEM. They are read on every connection, so that renewed ones are taken up.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Certificates of the authorities that etcd's certificate may be signed by.
    pub ca: Option<PathBuf>,
    /// This client's certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone)]
pub struct User {
    pub name: String,
    pub password: String,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the password.
        f.debug_tuple("User").field(&self.name).finish()
    }
}
