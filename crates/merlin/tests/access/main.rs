//! Who may administer a cluster, from where, and what is known of it afterwards.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, helpers too")]

mod clients;
mod files;
mod identity;
mod namespace;
#[path = "../disaster/node.rs"]
#[allow(dead_code, reason = "every test uses some of it")]
mod node;
mod remote;
mod rotation;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "every test uses some of it")]
mod support;
mod trail;
