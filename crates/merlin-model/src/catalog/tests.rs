//! What the catalog answers: golden scripts for every rule, a naive catalog that must always
//! agree, and the invariants of the module's documentation.

pub(crate) mod generators;
mod laws;
mod naive;
mod requests;
mod restore;
mod script;
