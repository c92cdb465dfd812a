//! Makes the kernel's IPVS table match the catalog.
//!
//! The decisions are pure, the loop around them is thin:
//!
//! * [`desired`](mod@desired): catalog and health in, wanted table out.
//! * [`plan`](mod@plan): wanted and actual table in, ordered operations out.
//! * `agenda`: which services to look at next, and when to come back to what failed.
//! * [`failure`] and [`status`]: what the kernel refused, and what others get to know.
//! * [`Reconciler`]: reads, plans, applies, waits.
//!
//! Passes are level-triggered: a change, a verdict, a refusal or a period's end is only a reason to
//! read the table again. A pass over some services costs what they hold, however much is loaded.

mod agenda;
pub mod desired;
pub mod failure;
mod mutants;
pub mod plan;
mod reconciler;
mod report;
pub mod status;

pub use agenda::Backoff;
pub use plan::Foreign;
pub use reconciler::{Config, Reconciler};
pub use status::Status;
