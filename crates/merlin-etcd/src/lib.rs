//! The catalog in an existing etcd.
//!
//! * [`layout`] and [`records`]: the earlier system's keys and values.
//! * [`replica`]: what a node knows of the records, and the catalog they amount to.
//! * [`decide`]: from a command to one guarded transaction.

pub mod decide;
pub mod layout;
pub mod records;
pub mod replica;
