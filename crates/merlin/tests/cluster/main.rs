//! Nodes that come and go, as operators do it: the built daemon and its commands, on loopback
//! addresses, with the in-memory data plane.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, helpers too")]

mod joining;
mod leaving;
mod moving;
#[path = "../disaster/node.rs"]
#[allow(dead_code, reason = "every test uses some of it")]
mod node;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "every test uses some of it")]
mod support;
