//! The unix socket for administrators of the host.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use merlin_proto::types::merlin_client::MerlinClient;
use nix::unistd::Group;

use crate::support::requests::service;
use crate::support::{Daemon, Setup};

async fn revision_by_socket(daemon: &Daemon) -> u64 {
    let mut merlin = MerlinClient::new(daemon.channel_by_socket().await);
    merlin.list(()).await.unwrap().into_inner().revision
}

#[tokio::test]
async fn the_socket_serves_the_api_to_root_and_the_group_merlin_alone() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = MerlinClient::new(daemon.channel_by_socket().await);
    merlin.create_service(service("web", 80)).await.unwrap();
    assert_eq!(revision_by_socket(&daemon).await, 1);

    let metadata = std::fs::symlink_metadata(setup.socket()).unwrap();
    assert!(metadata.file_type().is_socket());
    let mode = metadata.mode() & 0o777;
    match Group::from_name("merlin").unwrap() {
        Some(group) => assert_eq!((mode, metadata.gid()), (0o660, group.gid.as_raw())),
        None => assert_eq!(mode, 0o600),
    }
    let run_dir = std::fs::read_dir(setup.home().join("run")).unwrap();
    assert_eq!(run_dir.count(), 1, "something was left beside the socket");
}

#[tokio::test]
async fn the_socket_of_a_killed_daemon_is_replaced() {
    let setup = Setup::new();
    let mut daemon = setup.start().await;
    daemon.process.crash();
    assert!(setup.socket().exists());
    let daemon = setup.start().await;
    revision_by_socket(&daemon).await;
}

#[tokio::test]
async fn a_run_dir_that_cannot_be_used_is_named() {
    let setup = Setup::new();
    std::fs::write(setup.home().join("run"), "in the way").unwrap();
    setup.refusal().expect(1, &["--run-dir", "merlin.sock"]);
}

#[tokio::test]
async fn the_socket_of_a_running_daemon_is_not_taken_from_it() {
    let first = Setup::new();
    let daemon = first.start().await;
    let second = Setup::new();
    std::os::unix::fs::symlink(first.home().join("run"), second.home().join("run")).unwrap();
    second.refusal().expect(1, &["--run-dir", "another merlin"]);
    revision_by_socket(&daemon).await;
}
