//! The built daemon from outside: what its users, clients and supervisors see.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, helpers too")]

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use futures::StreamExt;
use merlin_proto::v1::node_client::NodeClient;
use merlin_proto::v1::{LiveRequest, WatchRequest};
use nix::sys::signal::Signal;
use support::{Home, SOON, eventually, server, service, workspace};
use tonic::{Code, Request};

/// Runs a Python client against a daemon, with classes generated from a protocol file. It is
/// Debian's Python, which has Debian's gRPC.
fn run_python(home: &Home, proto: &str, client: &str) -> String {
    let out = home.path("python");
    std::fs::create_dir_all(&out).unwrap();
    let proto = workspace().join(proto);
    let generated = Command::new("protoc")
        .arg("--proto_path")
        .arg(proto.parent().unwrap())
        .arg("--python_out")
        .arg(&out)
        .arg(&proto)
        .status()
        .expect("protoc: apt-get install protobuf-compiler");
    assert!(generated.success());
    let output = Command::new("/usr/bin/python3")
        .arg(workspace().join(client))
        .arg(home.api.to_string())
        .env("PYTHONPATH", &out)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python3: apt-get install python3-grpcio python3-protobuf");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{client} failed:\n{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs an example of the workspace, which is built beside this test.
fn run_rust(home: &Home, example: &str) -> String {
    let here = std::env::current_exe().unwrap();
    let program = here
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples")
        .join(example);
    let output = Command::new(&program)
        .arg(format!("http://{}", home.api))
        .output()
        .unwrap_or_else(|e| {
            panic!(
                "{}: {e}; cargo build --workspace --examples",
                program.display()
            )
        });
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_client_of_an_earlier_version_finds_everything_as_it_was() {
    let home = Home::new();
    let _daemon = home.start(&[]);
    let said = run_python(&home, "e2e/clients/earlier.proto", "e2e/clients/earlier.py");
    assert!(
        said.ends_with("deletion: cascades, and can be repeated\n"),
        "{said}"
    );
}

#[test]
fn the_readmes_clients_are_these_and_work() {
    let readme = std::fs::read_to_string(workspace().join("README.md")).unwrap();
    for client in [
        "crates/merlin-proto/examples/declare.rs",
        "e2e/clients/declare.py",
    ] {
        let text = std::fs::read_to_string(workspace().join(client)).unwrap();
        assert!(
            readme.contains(&text),
            "README.md does not show {client} as it is"
        );
    }
    let home = Home::new();
    let _daemon = home.start(&[]);
    let said = run_python(&home, "proto/types.proto", "e2e/clients/declare.py");
    assert_eq!(said, "python has 1 real server(s)\n");
    let said = run_rust(&home, "declare");
    assert!(said.contains("rust has 1 real server(s)\n"), "{said}");
}

#[test]
fn a_second_daemon_on_the_same_directory_is_refused_and_harms_nobody() {
    let home = Home::new();
    let mut first = home.start(&[]);
    let second = home.with_addresses_of(&Home::new()).output().unwrap();
    let words = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{words}");
    assert!(words.contains("another"), "{words}");
    assert!(first.is_running());
    assert!(home.get("/health").starts_with("HTTP/1.1 200"));
}

#[test]
fn what_is_wrong_with_the_host_is_said_in_words() {
    let home = Home::new();
    let _taken = std::net::TcpListener::bind(home.api).unwrap();
    let refused = home.run(&[]);
    let words = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(words.contains("--api-addr"), "{words}");
    assert!(
        !home.data().exists(),
        "nothing is made before everything is checked"
    );

    let home = Home::new();
    std::fs::write(home.data(), "a file").unwrap();
    let refused = home.run(&[]);
    let words = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{words}");
    assert!(words.contains("data"), "{words}");

    let usage = home.run(&["--reconcile-sync-period", "soon"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn damaged_files_are_named_and_kept() {
    let home = Home::new();
    drop(home.start(&[]));
    let node = home.data().join("node.json");
    std::fs::write(&node, "{ not json").unwrap();
    let refused = home.run(&[]);
    let words = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{words}");
    assert!(words.contains("node.json"), "{words}");
    assert_eq!(std::fs::read_to_string(&node).unwrap(), "{ not json");
}

#[tokio::test]
async fn garbage_and_idlers_do_not_disturb_anyone_else() {
    let home = Home::new();
    let mut daemon = home.start(&[]);
    let before = daemon.resident();
    let mut idle = Vec::new();
    for at in [home.api, home.http] {
        for garbage in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
            b"GET / HTTP/1.1\r\nHost: x\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            &[0xa5; 100_000],
        ] {
            let mut stream = TcpStream::connect(at).unwrap();
            // The daemon may hang up before it is all sent.
            let _ = stream.write_all(garbage);
            idle.push(stream);
        }
        idle.extend((0..400).map(|_| TcpStream::connect(at).unwrap()));
    }
    let mut client = home.client().await;
    client.create_service(service("web", 80)).await.unwrap();
    let huge = service(&"x".repeat(1 << 20), 81);
    let refused = client.create_service(huge).await.unwrap_err();
    let too_large = [Code::OutOfRange, Code::ResourceExhausted];
    assert!(too_large.contains(&refused.code()), "{refused}");
    assert_eq!(client.list(()).await.unwrap().into_inner().items.len(), 1);
    assert!(home.get("/health").starts_with("HTTP/1.1 200"));
    assert!(daemon.is_running());
    let grown = daemon.resident().saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB for strangers");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[tokio::test]
async fn a_stop_is_quick_and_clean_whoever_is_connected() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let home = Home::new();
        let mut daemon = home.start(&[]);
        let _idle = TcpStream::connect(home.api).unwrap();
        let mut node = NodeClient::connect(format!("http://{}", home.api))
            .await
            .unwrap();
        let _watch = node.watch(WatchRequest::default()).await.unwrap();
        daemon.signal(signal);
        let (status, took) = daemon.ended();
        assert_eq!(status.code(), Some(0), "{}", daemon.log());
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(!home.socket().exists());
    }
}

#[tokio::test]
async fn a_watch_tells_every_change_once_and_resumes_where_it_was() {
    let home = Home::new();
    let daemon = home.start(&[]);
    let mut client = home.client().await;
    let mut node = NodeClient::connect(format!("http://{}", home.api))
        .await
        .unwrap();
    let from = |revision, incarnation: &str| WatchRequest {
        from_revision: revision,
        incarnation: incarnation.into(),
    };
    let mut watch = node.watch(from(Some(0), "")).await.unwrap().into_inner();
    let greeting = watch.next().await.unwrap().unwrap();
    assert!(greeting.events.is_empty());
    let incarnation = greeting.incarnation;

    client.create_service(service("web", 80)).await.unwrap();
    for port in 1..=50 {
        client
            .create_server(server("web", "10.1.0.1", port))
            .await
            .unwrap();
    }
    client.delete_service("web".to_owned()).await.unwrap();
    for expected in 1..=52 {
        let group = watch.next().await.unwrap().unwrap();
        assert_eq!(group.revision, expected);
        // The last one takes its real servers along.
        assert_eq!(group.events.len(), if expected == 52 { 51 } else { 1 });
    }
    drop(watch);

    let resumed = node
        .watch(from(Some(30), &incarnation))
        .await
        .unwrap()
        .into_inner();
    let revisions = resumed
        .skip(1)
        .take(22)
        .map(|group| group.unwrap().revision);
    assert_eq!(
        revisions.collect::<Vec<_>>().await,
        (31..=52).collect::<Vec<_>>()
    );

    let foreign = node.watch(from(Some(30), "another/1")).await.unwrap_err();
    assert_eq!(foreign.code(), Code::OutOfRange);

    drop(daemon);
    let _daemon = home.start(&[]);
    let mut node = NodeClient::connect(format!("http://{}", home.api))
        .await
        .unwrap();
    let catalog = home.client().await.list(()).await.unwrap().into_inner();
    assert_eq!(catalog.revision, 52);
    // Whether or not the log still tells of them: no gap, or a clear refusal.
    let mut watch = node
        .watch(from(Some(0), &incarnation))
        .await
        .unwrap()
        .into_inner();
    match watch.next().await.unwrap() {
        Err(status) => assert_eq!(status.code(), Code::OutOfRange),
        Ok(_) => assert_eq!(watch.next().await.unwrap().unwrap().revision, 1),
    }
}

#[tokio::test]
async fn conditions_decide_and_retries_change_nothing() {
    let home = Home::new();
    let mut daemon = home.start(&[]);
    let mut client = home.client().await;
    let with = |name: &'static str, value: &'static str, message| {
        let mut request = Request::new(message);
        request.metadata_mut().insert(name, value.parse().unwrap());
        request
    };
    let once = |message| with("merlin-request-id", "once", message);
    let created = client
        .create_service(once(service("web", 80)))
        .await
        .unwrap();
    assert_eq!(created.metadata().get("merlin-revision").unwrap(), "1");
    assert_eq!(created.metadata().get("merlin-changed").unwrap(), "true");

    // Also after a crash: the first answer, and no second service.
    daemon.signal(Signal::SIGKILL);
    daemon.ended();
    drop(daemon);
    let _daemon = home.start(&[]);
    let mut client = home.client().await;
    let again = client
        .create_service(once(service("web", 80)))
        .await
        .unwrap();
    assert_eq!(again.metadata().get("merlin-revision").unwrap(), "1");

    let stale = with("merlin-expected-revision", "9", service("web", 81));
    assert_eq!(
        client.update_service(stale).await.unwrap_err().code(),
        Code::Aborted
    );
    let fresh = with("merlin-expected-revision", "1", service("web", 81));
    client.update_service(fresh).await.unwrap();
    let nonsense = with("merlin-expected-revision", "x", service("web", 81));
    let refused = client.update_service(nonsense).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.message().contains("merlin-expected-revision"),
        "{refused}"
    );

    let mut stale = Request::new(());
    stale
        .metadata_mut()
        .insert("merlin-consistency", "stale".parse().unwrap());
    assert_eq!(client.list(stale).await.unwrap().into_inner().revision, 2);
    let gone = client.delete_service("nobody".to_owned()).await.unwrap();
    assert_eq!(gone.metadata().get("merlin-changed").unwrap(), "false");
}

#[test]
fn pages_tell_the_truth_and_metrics_parse() {
    let home = Home::new();
    let _daemon = home.start(&[]);
    for page in ["/alive", "/ready", "/health"] {
        assert!(home.get(page).starts_with("HTTP/1.1 200"), "{page}");
    }
    assert!(home.get("/nothing").starts_with("HTTP/1.1 404"));
    let metrics = home.get("/metrics");
    let (_, body) = metrics.split_once("\r\n\r\n").unwrap();
    let samples: Vec<_> = body
        .lines()
        .filter(|line| line.starts_with("merlin_"))
        .collect();
    assert!(samples.len() > 10, "{body}");
    for sample in samples {
        let (_, value) = sample.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{sample}");
    }
    assert!(body.trim_end().ends_with("# EOF"), "{body}");
}

#[tokio::test]
async fn without_reconciling_each_change_is_one_line_in_the_log() {
    let home = Home::new();
    let daemon = home.start(&["--reconcile=false", "--debug"]);
    let mut client = home.client().await;
    client.create_service(service("web", 80)).await.unwrap();
    eventually("the change is announced", || {
        daemon.log().contains("sync requested")
    });
}

#[tokio::test]
async fn a_sick_server_loses_its_weight_and_gets_it_back() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    let healthy = Arc::new(AtomicBool::new(true));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let state = Arc::clone(&healthy);
    let page = axum::routing::get(async move || match state.load(Ordering::Relaxed) {
        true => axum::http::StatusCode::OK,
        false => axum::http::StatusCode::SERVICE_UNAVAILABLE,
    });
    let router = axum::Router::new().route("/health", page);
    tokio::spawn(async move { axum::serve(listener, router).await });

    let home = Home::new();
    let _daemon = home.start(&[]);
    let mut client = home.client().await;
    let mut node = NodeClient::connect(format!("http://{}", home.api))
        .await
        .unwrap();
    client.create_service(service("web", 80)).await.unwrap();
    let millis = |millis: i32| prost_types::Duration {
        seconds: 0,
        nanos: millis * 1_000_000,
    };
    let mut checked = server("web", "127.0.0.1", 8080);
    checked.health_check = Some(merlin_proto::types::real_server::HealthCheck {
        endpoint: Some(format!("http://:{port}/health")),
        period: Some(millis(50)),
        timeout: Some(millis(500)),
        up_threshold: 2,
        down_threshold: 2,
    });
    client.create_server(checked).await.unwrap();
    for (well, weight) in [(true, 7), (false, 0), (true, 7)] {
        healthy.store(well, Ordering::Relaxed);
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let live = node
                .live(LiveRequest {
                    local: true,
                    ..Default::default()
                })
                .await;
            let table = live.unwrap().into_inner().nodes.remove(0);
            let found = table
                .services
                .first()
                .and_then(|service| service.servers.first());
            if found.is_some_and(|server| server.weight == weight) {
                break;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "weight is not {weight}: {found:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[test]
fn the_socket_is_its_owners_alone_and_survives_a_crash() {
    let home = Home::new();
    let mut daemon = home.start(&[]);
    let mode = std::fs::metadata(home.socket())
        .unwrap()
        .permissions()
        .mode()
        & 0o777;
    assert!(mode == 0o600 || mode == 0o660, "{mode:o}");
    let ask = || {
        Command::new(env!("CARGO_BIN_EXE_merlin"))
            .args(["cluster", "--run-dir"])
            .arg(home.path("run"))
            .arg("status")
            .output()
            .unwrap()
    };
    assert!(ask().status.success());
    daemon.signal(Signal::SIGKILL);
    daemon.ended();
    assert_eq!(
        ask().status.code(),
        Some(3),
        "nobody listens on what a crash left"
    );
    drop(daemon);
    let _daemon = home.start(&[]);
    assert!(ask().status.success());
}

#[test]
fn the_version_is_printed_as_it_always_was() {
    let output = Command::new(env!("CARGO_BIN_EXE_merlin"))
        .arg("--version")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(said.contains("version"), "{said}");
}
