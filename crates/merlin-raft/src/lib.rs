//! The embedded store: a catalog that the nodes of a cluster agree on.
//!
//! ```text
//! RaftStore --> proposer --> consensus (openraft) --> log (sled), durable before acknowledged
//!                                 |
//!                                 +--> peers (gRPC, mutual TLS) --> other nodes
//!                                 +--> state machine --> watches of catalog and events
//! ```
//!
//! openraft and sled are an implementation detail: none of their types leaves this crate.

mod cluster;
mod codec;
mod config;
mod consensus;
mod datadir;
pub mod identity;
pub mod log;
mod network;
mod peers;
mod proposal;
mod proposer;
mod reads;
mod snapshot;
mod state;
mod status;
mod store;
mod typ;

pub use config::{Config, InvalidTimers, Timers};
pub use datadir::DataDirError;
pub use log::OpenError as LogOpenError;
pub use status::{Member, Role, Status};
pub use store::{OpenError, RaftStore, StoreFailed};
pub use typ::NodeId;
