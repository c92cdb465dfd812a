//! The vocabulary of merlin and the rules that change its catalog.
//!
//! This crate is pure: no IO, no clock, no randomness and no iteration order that could differ
//! between two nodes. Whatever it is given it answers the same on every node, which is what lets
//! [`Catalog::apply`] be the state machine of a replicated log.
//!
//! * [`service`] and [`server`]: what an operator declares. Illegal combinations do not exist:
//!   constructors parse, and everything behind them can rely on it.
//! * [`command`] and [`catalog`]: how declarations change, and what is refused.
//! * [`health`]: what a node has observed about its real servers.
//! * [`table`]: what a kernel's IPVS table holds, in the kernel's own terms, foreign entries too.
//! * [`mod@difference`]: the steps from one catalog to another.
//! * [`events`]: the catalog's recent history, for watches.
//! * [`access`] and [`audit`]: who may change what, and who did.
//! * [`store`]: the answers a catalog store can give.

pub mod access;
pub mod audit;
pub mod catalog;
pub mod command;
pub mod difference;
pub mod events;
pub mod health;
pub mod server;
pub mod service;
pub mod store;
pub mod table;
mod words;

pub use access::Role;
pub use audit::{Actor, AuditRecord, AuditTrail};
pub use catalog::{Catalog, Change, RealServer, Revision, VirtualService};
pub use command::{Command, Mutation, Rejection, Reply, RequestId, Timestamp};
pub use difference::{Difference, difference};
pub use events::{EventGroup, EventRing};
pub use health::{HealthView, ServerHealth, Verdict};
pub use server::{
    Checksum, Forwarding, HealthCheck, HealthCheckSpec, HttpEndpoint, RealServerConfig,
    RealServerKey, Thresholds, Tunnel, Weight,
};
pub use service::{
    Family, Invalid, Netmask, Persistence, PersistenceEngine, Protocol, Scheduler, SchedulerFlag,
    SchedulerFlags, ServiceConfig, ServiceId, ServiceKey,
};
