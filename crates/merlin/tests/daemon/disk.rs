//! Disks that are full, read-only, too small or gone: a clear word, exit 1, and nothing lost.

use std::path::Path;
use std::process::Command;

use tonic::{Code, Status};

use crate::support::mounts::Mounts;
use crate::support::process::PROGRAM;
use crate::support::requests::{ids, numbered_server, service};
use crate::support::{AMPLE, Daemon, Refusal, Setup, eventually};

/// A file system of its own for the data directory.
fn small_disk(setup: &Setup, size: &str) -> Mounts {
    std::fs::create_dir(setup.data_dir()).unwrap();
    let mounts = Mounts::new();
    let options = format!("size={size}");
    mounts.mount(&["-t", "tmpfs", "-o", &options, "none"], &setup.data_dir());
    mounts
}

fn refusal_in(setup: &Setup, mounts: &Mounts) -> Refusal {
    Refusal::of(mounts.enter(PROGRAM).args(setup.args()))
}

/// Takes the rest of the space.
fn fill(mounts: &Mounts, dir: &Path) {
    // dd ends with an error, which is the point.
    let mut dd = mounts.enter("dd");
    dd.arg("if=/dev/zero")
        .arg(format!("of={}", dir.join("filler").display()));
    let _ = dd.args(["bs=4k"]).output().unwrap();
}

/// Writes until that fails, and gives back how many servers were acknowledged, and the failure.
async fn write_until_refused(daemon: &Daemon) -> (usize, Status) {
    let mut merlin = daemon.merlin().await;
    for number in 1..=u16::MAX {
        if let Err(status) = merlin.create_server(numbered_server("web", number)).await {
            return (usize::from(number) - 1, status);
        }
    }
    panic!("the disk never filled up");
}

#[test]
fn a_disk_without_room_is_named_at_the_start() {
    for size in ["4k", "64k", "1m"] {
        let setup = Setup::new();
        let mounts = small_disk(&setup, size);
        fill(&mounts, &setup.data_dir());
        let refusal = refusal_in(&setup, &mounts);
        let data_dir = setup.data_dir().display().to_string();
        refusal.expect(1, &["full", "again", &data_dir]);
        // With room it starts: what the attempt left is not in the way.
        mounts.mount(&["-o", "remount,size=16m"], &setup.data_dir());
        let unwritable = refusal_in_background(&setup, &mounts);
        assert!(unwritable, "{size}");
    }
}

fn refusal_in_background(setup: &Setup, mounts: &Mounts) -> bool {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let daemon = setup.start_in(mounts).await;
        daemon
            .merlin()
            .await
            .create_service(service("web", 80))
            .await
            .is_ok()
    })
}

/// The disk fills up under a running daemon. What it cannot keep it does not acknowledge, and what
/// it has acknowledged is there once there is room.
#[tokio::test]
async fn a_disk_that_fills_up_ends_the_daemon_and_loses_nothing() {
    let setup = Setup::new();
    let mounts = small_disk(&setup, "8m");
    let mut daemon = setup.start_in(&mounts).await;
    daemon
        .merlin()
        .await
        .create_service(service("web", 80))
        .await
        .unwrap();
    fill(&mounts, &setup.data_dir());
    let (acknowledged, refusal) = write_until_refused(&daemon).await;
    // Whether the last one happened is not known, and that is what is said.
    let honest = [Code::Unavailable, Code::Unknown];
    assert!(honest.contains(&refusal.code()), "{refusal}");
    let status = daemon.process.wait(AMPLE);
    assert_eq!(status.code(), Some(1));
    let log = daemon.process.log();
    assert!(
        log.contains("full") && log.contains("free some space"),
        "{log}"
    );
    drop(daemon);

    refusal_in(&setup, &mounts).expect(1, &["full"]);
    std::fs::remove_file(mounts.see(&setup.data_dir().join("filler"))).unwrap();
    let daemon = setup.start_in(&mounts).await;
    let list = daemon.merlin().await.list(()).await.unwrap().into_inner();
    let kept = ids(&list)[0].1;
    assert!(
        kept == acknowledged || kept == acknowledged + 1,
        "{kept} of {acknowledged}"
    );
}

#[tokio::test]
async fn a_disk_that_turns_read_only_is_named_and_loses_nothing() {
    let setup = Setup::new();
    let mounts = small_disk(&setup, "16m");
    let daemon = setup.start_in(&mounts).await;
    daemon
        .merlin()
        .await
        .create_service(service("web", 80))
        .await
        .unwrap();
    drop(daemon);
    mounts.mount(&["-o", "remount,ro"], &setup.data_dir());
    let refusal = refusal_in(&setup, &mounts);
    refusal.expect(
        1,
        &[
            "read-only",
            "remount",
            &setup.data_dir().display().to_string(),
        ],
    );
    mounts.mount(&["-o", "remount,rw"], &setup.data_dir());
    let daemon = setup.start_in(&mounts).await;
    let list = daemon.merlin().await.list(()).await.unwrap().into_inner();
    assert_eq!(list.items.len(), 1);
}

/// Someone removes the directory of a running daemon. Its files live on without a name, and what
/// is written to them is lost with the daemon: so it acknowledges nothing more.
#[tokio::test]
async fn a_directory_that_is_removed_ends_the_daemon_before_it_acknowledges_more() {
    let setup = Setup::new();
    let mut daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    std::fs::remove_dir_all(setup.data_dir()).unwrap();
    let refusal = merlin
        .create_service(service("mail", 25))
        .await
        .unwrap_err();
    let honest = [Code::Unavailable, Code::Unknown];
    assert!(honest.contains(&refusal.code()), "{refusal}");
    let status = daemon.process.wait(AMPLE);
    assert_eq!(status.code(), Some(1));
    let log = daemon.process.log();
    assert!(log.contains("removed") && log.contains("snapshot"), "{log}");
}

#[tokio::test]
async fn a_directory_of_somebody_else_is_named() {
    let setup = Setup::new();
    // Root may everything, so this user is not root.
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    command.arg(PROGRAM).args(setup.args());
    std::fs::create_dir(setup.data_dir()).unwrap();
    let mut open = std::fs::metadata(setup.home()).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut open, 0o755);
    std::fs::set_permissions(setup.home(), open).unwrap();
    let refusal = Refusal::of(&mut command);
    refusal.expect(
        1,
        &[
            "permission",
            "user",
            &setup.data_dir().display().to_string(),
        ],
    );
    eventually(async || {
        if setup.data_dir().exists() {
            Ok(())
        } else {
            Err(())
        }
    })
    .await;
}
