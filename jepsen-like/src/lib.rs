//! Tries to break merlin from outside and says honestly whether it did.
//!
//! It drives the built daemon over its API and hurts it as hosts do, but for the fast lane. What it
//! observed is judged by pure code; a failure of the harness itself is an error, never a verdict.
//!
//! * [`run`]: a cluster in network namespaces ([`lab`]), clients that record what they are told
//!   ([`workload`], [`ops`]), faults ([`nemesis`]), and the judgement ([`checker`]).
//! * [`fast`]: the same clients and the same judgement on the store alone, in this process and in
//!   no time.
//! * [`kill`] and [`power`]: one daemon, killed or without power, again and again, judged by
//!   [`history`].

pub mod checker;
pub mod client;
pub mod fast;
pub mod history;
pub mod kill;
pub mod lab;
pub mod model;
pub mod nemesis;
pub mod ops;
pub mod power;
pub mod recorder;
pub mod report;
pub mod run;
pub mod timeline;
pub mod workload;

/// What a choice is called on the command line.
pub(crate) fn name_of(choice: impl clap::ValueEnum) -> String {
    let value = choice.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}
