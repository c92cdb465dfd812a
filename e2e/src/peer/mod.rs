//! The two ends of test traffic.
//!
//! A [server](Server) answers every question with its name, over TCP, UDP and HTTP on one port, so
//! that a client knows which real server a load balancer picked. The [client] counts the
//! answers; a [load] keeps asking until it is told to stop.
//!
//! Clients are plain blocking functions: a test calls them on a thread that has entered the
//! client's namespace. A server is a process of its own (`e2e-peer server`), so that it can be
//! killed like a real one.

pub mod client;
pub mod load;
mod server;

pub use client::{Answers, Protocol, survey};
pub use load::{Load, LoadPlan, LoadReport};
pub use server::Server;
