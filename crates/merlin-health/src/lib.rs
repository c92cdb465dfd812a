//! Health checks of real servers, as one node sees them.
//!
//! ```text
//!  watch<Arc<Catalog>> ──▶ driver task ──▶ watch<HealthView>   (latest value wins)
//!                          owns Checker
//!                            │      ▲
//!                     Probe  ▼      │  Outcome
//!                          one task per probe in flight, at most driver::MAX_IN_FLIGHT
//! ```
//!
//! * [`checker`] decides what to probe when, and what the outcomes mean. It is pure: no socket, no
//!   task, no clock; time comes in as a parameter.
//! * [`probe`] performs one HTTP probe.
//! * [`run`] is the driver: it waits, feeds the checker and performs what it says.
//!
//! Health is a node's own observation: it is never replicated, and what it means for weights is
//! the reconciler's affair.

pub mod checker;
pub mod driver;
pub mod metrics;
pub mod probe;

pub use checker::{Checker, Outcome, Probe, ProbeId, ProbeSpec, Transition};
pub use driver::run;
pub use metrics::Metrics;
pub use probe::ProbeError;
