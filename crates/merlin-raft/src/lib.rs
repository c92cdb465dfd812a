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

mod announce;
mod aside;
mod audit;
mod backup;
mod cluster;
mod codec;
mod config;
mod consensus;
mod contain;
mod datadir;
mod handover;
pub mod identity;
mod join;
mod keeper;
mod knock;
mod level;
pub mod log;
mod members;
mod mutants;
mod network;
mod open;
mod peers;
mod proposal;
mod proposer;
mod reads;
mod rebirth;
mod recover;
mod registry;
mod renewal;
mod restore;
mod rotate;
mod rotation;
mod settle;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod snapshot;
mod standing;
mod state;
mod status;
mod store;
#[cfg(test)]
mod testing;
mod typ;

pub use backup::{Backup, BackupError, BackupMember, Contents, Keys, SaveError, Saving};
pub use config::{Config, InvalidTimers, Timers};
pub use contain::panic_is_expected;
pub use datadir::DataDirError;
pub use join::{Admitted, Application, Join, JoinError, Joined, join};
pub use level::{Level, LevelStatus};
pub use log::OpenError as LogOpenError;
pub use members::{Change, ChangeError, Changed};
pub use open::OpenError;
pub use recover::{RecoverError, Recovered, Remains, Summary};
pub use registry::{CreateClientError, IssuedClient, NewClient, NewToken};
pub use renewal::RenewError;
pub use restore::{Reborn, Restore, RestoreError, restore};
pub use rotate::{RotateError, Rotated};
pub use snapshot::FormatError;
pub use standing::Standing;
pub use status::{Member, Role, Status, Waiting};
pub use store::{AskError, LeaveError, RaftStore, StoreFailed};
pub use typ::NodeId;
