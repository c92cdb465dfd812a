//! Makes the kernel's IPVS table match the catalog.
//!
//! * [`desired`](mod@desired): catalog and health in, wanted table out. Pure.
//! * [`plan`](mod@plan): wanted and actual table in, ordered operations out. Pure.

pub mod desired;
pub mod plan;
