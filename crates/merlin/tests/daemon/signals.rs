//! What the daemon's supervisor can tell it.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use merlin_proto::v1::WatchRequest;
use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::support::process::merlin;
use crate::support::requests::service;
use crate::support::{Setup, eventually};

/// What the contract allows.
const STOP: Duration = Duration::from_secs(5);

/// Stops a daemon in the middle of everything.
async fn stops_in_time(signal: Signal) {
    let setup = Setup::new();
    let mut daemon = setup.start().await;
    let mut watching = daemon
        .node()
        .await
        .watch(WatchRequest::default())
        .await
        .unwrap();
    let watching = watching.get_mut();
    watching.message().await.unwrap();
    let mut silent = TcpStream::connect(daemon.api()).await.unwrap();
    let mut silent_http = TcpStream::connect(daemon.http()).await.unwrap();
    let idle = daemon.merlin().await;
    daemon.process.signal(signal);
    let ended = async {
        // A watch that is over says so; nobody is left hanging.
        assert!(
            watching
                .message()
                .await
                .is_ok_and(|message| message.is_none())
        );
        let _ = silent.read(&mut [0; 64]).await;
        let _ = silent_http.read(&mut [0; 64]).await;
    };
    tokio::time::timeout(STOP, ended)
        .await
        .expect("clients were left hanging");
    let status = daemon.process.wait(STOP);
    assert_eq!(status.code(), Some(0), "{}", daemon.process.log());
    assert!(!setup.socket().exists());
    drop(idle);
}

#[tokio::test]
async fn sigterm_ends_it_in_time_whoever_is_connected() {
    stops_in_time(Signal::SIGTERM).await;
}

#[tokio::test]
async fn sigint_ends_it_in_time_whoever_is_connected() {
    stops_in_time(Signal::SIGINT).await;
}

#[tokio::test]
async fn what_was_written_before_a_stop_is_there_after_it() {
    let setup = Setup::new();
    let mut daemon = setup.start().await;
    daemon
        .merlin()
        .await
        .create_service(service("web", 80))
        .await
        .unwrap();
    daemon.process.signal(Signal::SIGTERM);
    daemon.process.wait(STOP);
    let daemon = setup.start().await;
    let list = daemon.merlin().await.list(()).await.unwrap().into_inner();
    assert_eq!(list.items.len(), 1);
}

#[tokio::test]
async fn sighup_reads_the_log_level_again_and_survives_a_broken_file() {
    let setup = Setup::with(&["--reconcile=false"]);
    let file = setup.home().join("merlin.toml");
    std::fs::write(&file, "debug = false\n").unwrap();
    let mut command = merlin();
    command.args(setup.args()).arg("--config").arg(&file);
    let daemon = setup.launch(&mut command).await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("quiet", 1)).await.unwrap();

    std::fs::write(&file, "debug = true\n").unwrap();
    daemon.process.signal(Signal::SIGHUP);
    daemon
        .logged(&["configuration read again", "debug=true"])
        .await;
    assert!(!daemon.process.log().contains("sync requested"));
    merlin.create_service(service("loud", 2)).await.unwrap();
    daemon.logged(&["DEBUG", "sync requested"]).await;

    std::fs::write(&file, "debug = maybe\n").unwrap();
    daemon.process.signal(Signal::SIGHUP);
    daemon
        .logged(&["WARN", "configuration kept", "merlin.toml"])
        .await;

    std::fs::write(&file, "").unwrap();
    daemon.process.signal(Signal::SIGHUP);
    daemon
        .logged(&["configuration read again", "debug=false"])
        .await;
    let before = daemon.process.log().matches("sync requested").count();
    merlin
        .create_service(service("quiet again", 3))
        .await
        .unwrap();
    // A line would be written before the metrics could count the write.
    eventually(async || {
        let metrics = daemon.page("/metrics").await;
        let counted = metrics.contains("merlin_catalog_services 3");
        if counted { Ok(()) } else { Err(metrics) }
    })
    .await;
    let after = daemon.process.log().matches("sync requested").count();
    assert_eq!(before, after);
}

/// What systemd is told, on a socket of our own.
#[tokio::test]
async fn a_supervisor_is_told_when_it_is_ready_and_when_it_stops() {
    let setup = Setup::new();
    let path = setup.home().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let heard = || {
        let mut bytes = [0; 1024];
        let length = socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    };
    let tells = async |words: &str| {
        eventually(async || match heard() {
            Some(told) if told.contains(words) => Ok(()),
            other => Err(other),
        })
        .await;
    };
    let mut command = merlin();
    command.args(setup.args()).env("NOTIFY_SOCKET", &path);
    let mut daemon = setup.launch(&mut command).await;
    tells("READY=1").await;
    assert_eq!(heard(), None);
    daemon.process.signal(Signal::SIGTERM);
    tells("STOPPING=1").await;
    assert_eq!(daemon.process.wait(STOP).code(), Some(0));
}

/// Ready means that the kernel is known to match, which a node cannot know that has no catalog.
#[tokio::test]
async fn a_supervisor_is_not_told_ready_before_the_first_reconcile() {
    let founder = Setup::founder();
    let mut first = founder.start().await;
    let member = Setup::member_of(&founder);
    first.process.crash();
    let path = member.home().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut command = merlin();
    command.args(member.args()).env("NOTIFY_SOCKET", &path);
    let second = member.launch_unready(&mut command).await;
    // Pages are served, and the daemon has had its time.
    second.logged(&["serving"]).await;
    assert!(socket.recv(&mut [0; 64]).is_err());
    let _first = founder.start().await;
    eventually(async || socket.recv(&mut [0; 64])).await;
}
