//! The catalog in an existing etcd.
//!
//! * [`layout`] and [`records`]: the earlier system's keys and values.
//! * [`replica`]: what a node knows of the records, and the catalog they amount to.
//! * [`decide`]: from a command to one guarded transaction.
//! * [`guard`]: holds back a catalog that would take away too much at once.
//! * `v3` and `v2`: the drivers of etcd's two APIs.
//! * [`keep`]: the last catalog, on this node's disk.

mod config;
pub mod decide;
mod find;
pub mod guard;
pub mod keep;
pub mod layout;
pub mod publish;
pub mod records;
pub mod replica;
mod status;
mod store;
mod v2;
mod v3;

pub use config::{Config, Tls, User};
pub use guard::{AcceptError, MaxRemoval, Removal};
pub use keep::Keep;
pub use layout::Layout;
pub use publish::Views;
pub use replica::{Problem, Replica};
pub use status::{Backend, Status};
pub use store::EtcdStore;
