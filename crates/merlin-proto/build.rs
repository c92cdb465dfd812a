//! Compiles `proto/` without an installed protoc.

use std::path::PathBuf;

use prost::Message;

const FILES: [&str; 7] = [
    "types.proto",
    "merlin/v1/cluster.proto",
    "merlin/v1/node.proto",
    "merlin/log/v1/access.proto",
    "merlin/log/v1/enrollment.proto",
    "merlin/log/v1/log.proto",
    "merlin/peer/v1/peer.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut config = tonic_prost_build::Config::new();
    // So that a message finds its own descriptor.
    config.enable_type_names();
    tonic_prost_build::configure()
        .build_transport(true)
        // Passed on as they came, from the socket to the disk.
        .bytes(".merlin.log.v1.Entry")
        .bytes(".merlin.peer.v1.Envelope")
        .bytes(".merlin.peer.v1.SnapshotChunk")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
