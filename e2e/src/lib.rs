//! A real IPVS kernel for tests, on any Debian machine and without privileges.
//!
//! Layers, each usable without the ones above it:
//!
//! * [`guest`] boots a user-mode Linux (a Linux kernel that is an ordinary process) whose root is
//!   this machine's file system, runs one command in it and hands back its output and exit code.
//! * [`lab`], used *inside* a guest, builds a network of namespaces: load balancers, real servers
//!   and a client, joined by bridges, with processes in them that end when the test ends.
//! * [`etcd`] keeps the catalog of the balancers of a lab, for daemons that have it there.
//! * [`merlin`] runs the daemon and its admin tool on the balancers of a lab.
//! * [`peer`] is what sends and answers the traffic: servers that say who they are, and clients
//!   that count who answered.
//!
//! `tests/kernel` puts them together; `cargo run -p e2e -- COMMAND` is a guest by hand.

pub mod bench;
pub mod etcd;
pub mod guest;
pub mod lab;
pub mod merlin;
pub mod peer;
pub mod poll;
pub mod programs;
