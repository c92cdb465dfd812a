//! The built daemon from outside: what its users, clients and supervisors see. Every test starts
//! the program with a directory and ports of its own, and talks to it over its sockets.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, helpers too")]
#![allow(clippy::print_stderr, reason = "a failed test shows the daemon's log")]

mod catalog;
mod clients;
mod conditions;
mod damage;
mod discovery;
mod disk;
mod health;
mod options;
mod pages;
mod races;
mod refusals;
mod signals;
mod socket;
mod strangers;
mod support;
mod watch;
