//! Tries to break merlin from outside and says honestly whether it did.
//!
//! It drives the built daemon over its API and hurts it as hosts do. What it observed is judged by
//! [`history`], which is pure; a failure of the harness itself is an error, never a verdict.

pub mod history;
pub mod kill;
pub mod power;
