//! Generated gRPC code of merlin's APIs, and its conversions to and from the model.
//!
//! Protobuf types stop here: the edges of the program parse them into [`merlin_model`] types and
//! everything behind the edges works with those.
//!
//! * [`service`] and [`server`]: the old API's requests and records.
//! * [`listing`]: the catalog as the API shows it.
//! * [`command`], [`access`] and [`snapshot`]: the replicated log and its snapshots, without loss.
//! * [`metadata`] and [`status`]: what travels beside messages, and errors.
//! * [`json`]: messages for scripts to read.

// Generated code answers to its generator's lints, not to ours.
#[allow(
    unreachable_pub,
    unused_qualifications,
    missing_debug_implementations,
    clippy::all,
    clippy::pedantic
)]
mod generated {
    pub mod types {
        tonic::include_proto!("types");
    }
    pub mod merlin {
        pub mod v1 {
            tonic::include_proto!("merlin.v1");
        }
        pub mod log {
            pub mod v1 {
                tonic::include_proto!("merlin.log.v1");
            }
        }
        pub mod peer {
            pub mod v1 {
                tonic::include_proto!("merlin.peer.v1");
            }
        }
    }
}

pub mod access;
pub mod command;
mod fields;
pub mod json;
pub mod listing;
pub mod metadata;
pub mod server;
pub mod service;
pub mod snapshot;
pub mod status;

#[cfg(test)]
mod tests;

pub use command::DecodeError;
pub use generated::merlin::{log::v1 as log, peer::v1 as peer, v1};
pub use generated::types;

/// Descriptors of every API file, for gRPC reflection and for JSON.
pub const FILE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
