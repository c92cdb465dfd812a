//! What the daemon is told: flags, earlier spellings, environment and file.

use std::time::Duration;

use crate::support::process::{merlin, run};
use crate::support::requests::service;
use crate::support::{Refusal, Setup};

/// A daemon that is told an address it cannot have says which one it understood.
const NOWHERE: &str = "192.0.2.1";

#[test]
fn the_version_is_printed_as_it_always_was() {
    let said = run(merlin().arg("--version"), "");
    assert_eq!(
        said,
        format!("merlin version {}\n", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(run(merlin().arg("-version"), ""), said);
}

#[test]
fn a_usage_error_is_code_2_and_says_what_is_valid() {
    let setup = Setup::new();
    for (args, words) in [
        (&["--reconcile-sync-period", "soon"][..], "1m30s"),
        (&["--reconcile-sync-period", "0s"], "longer than 0s"),
        (&["--dataplane", "magic"], "ipvs, memory"),
        (
            &[
                "--store-backend",
                "raft",
                "--store-endpoints",
                "http://127.0.0.1:1",
            ],
            "--store-",
        ),
        (&["--api-addr", "4282"], "--api-addr"),
        (&["--port", "70000"], "--port"),
        (&["--foreign", "eat"], "delete, keep"),
        (&["--log-format", "xml"], "text, json"),
        (&["--reconcile=perhaps"], "--reconcile"),
        (&["--election-timeout", "1ms"], "--election-timeout"),
        (&["--node-name", "two words"], "--node-name"),
        (&["--advertise-addr", "0.0.0.0:1"], "--advertise-addr"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["no-such-command"], "no-such-command"),
        (
            &["--config", "/nowhere/merlin.toml"],
            "/nowhere/merlin.toml",
        ),
    ] {
        let refusal = Refusal::of(merlin().arg("--data-dir").arg(setup.data_dir()).args(args));
        refusal.expect(2, &[words]);
    }
    assert!(!setup.data_dir().exists());
}

#[test]
fn a_command_that_reaches_no_daemon_is_code_3() {
    let setup = Setup::new();
    let mut command = merlin();
    command.args(["cluster", "--run-dir"]).arg(setup.home());
    Refusal::of(command.arg("status")).expect(3, &["merlin.sock", "is merlin running"]);
}

#[test]
fn flags_beat_the_environment_and_that_beats_the_file() {
    let setup = Setup::new();
    let file = setup.home().join("merlin.toml");
    std::fs::write(&file, format!("health-addr = '{NOWHERE}:1'\n")).unwrap();
    let command = || {
        let mut command = merlin();
        command.args(setup.args_without_addresses());
        command.arg("--config").arg(&file);
        command.args(["--api-addr", &setup.api.addr().to_string()]);
        command
    };
    Refusal::of(&mut command()).expect(1, &["--health-addr", "192.0.2.1:1"]);
    let mut with_environment = command();
    with_environment.env("MERLIN_HEALTH_ADDR", format!("{NOWHERE}:2"));
    Refusal::of(&mut with_environment).expect(1, &["--health-addr", "192.0.2.1:2"]);
    with_environment.args(["--health-addr", &format!("{NOWHERE}:3")]);
    Refusal::of(&mut with_environment).expect(1, &["--health-addr", "192.0.2.1:3"]);
    assert!(
        !setup.data_dir().exists(),
        "something was made before all was checked"
    );
}

#[test]
fn a_mistake_in_the_file_is_named_with_its_line() {
    let setup = Setup::new();
    let file = setup.home().join("merlin.toml");
    for (text, words) in [
        ("debug = true\ndata-dri = '/x'\n", ["line 2", "data-dri"]),
        ("reconcile-sync-period = 'soon'\n", ["line 1", "1m30s"]),
        ("debug = maybe\n", ["line 1", "merlin.toml"]),
    ] {
        std::fs::write(&file, text).unwrap();
        let mut command = merlin();
        command.args(setup.args()).arg("--config").arg(&file);
        Refusal::of(&mut command).expect(2, &words);
    }
}

/// As scripts start the earlier system, except for its store, which belongs to other tests.
#[tokio::test]
async fn earlier_spellings_start_it_too() {
    let setup = Setup::new();
    let mut command = merlin();
    for arg in setup.args_without_addresses() {
        // Every long flag with one dash.
        command.arg(arg.strip_prefix('-').unwrap_or(&arg));
    }
    command
        .arg(format!("-port={}", setup.api.addr().port()))
        .args(["-health-port", &setup.http.addr().port().to_string()])
        .args([
            "-reconcile-sync-period",
            "1m30s",
            "-reconcile=false",
            "-debug",
        ]);
    let daemon = setup.launch(&mut command).await;
    daemon
        .merlin()
        .await
        .create_service(service("web", 80))
        .await
        .unwrap();
    daemon.logged(&["sync requested"]).await;

    let mut command = merlin();
    command.args(["-store-endpoints", "http://127.0.0.1:1,http://127.0.0.1:2"]);
    let refusal = Refusal::of(command.args(["-store-backend=raft"]));
    refusal.expect(2, &["--store-endpoints"]);
}

#[tokio::test]
async fn settings_can_all_come_from_the_environment() {
    let setup = Setup::new();
    let mut command = merlin();
    let args = setup.args();
    for pair in args.chunks_exact(2) {
        let name = pair[0]
            .trim_start_matches('-')
            .replace('-', "_")
            .to_uppercase();
        command.env(format!("MERLIN_{name}"), &pair[1]);
    }
    command
        .env("MERLIN_RECONCILE", "false")
        .env("MERLIN_LOG_FORMAT", "json");
    let daemon = setup.launch(&mut command).await;
    let line = daemon.logged(&["serving"]).await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["api"], setup.api.addr().to_string());
    assert_eq!(line["node"], "test");
}

/// Many changes, one line each: the earlier system's scripts count them.
#[tokio::test]
async fn without_reconciling_each_change_is_one_line_in_the_log() {
    let setup = Setup::with(&["--reconcile=false", "--debug"]);
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    for number in 1..=5_u16 {
        let id = format!("web{number}");
        merlin.create_service(service(&id, number)).await.unwrap();
        daemon
            .logged(&["sync requested", &format!("revision={number}")])
            .await;
    }
    assert_eq!(daemon.process.log().matches("sync requested").count(), 5);
    let live = daemon.live().await;
    assert!(live.error.contains("--reconcile=false"), "{live:?}");
}

/// The period is what repairs drift; a test of that runs on a kernel. Here: it is taken.
#[tokio::test]
async fn the_sync_period_is_kept() {
    let setup = Setup::with(&["--reconcile-sync-period", "20ms"]);
    let daemon = setup.start().await;
    let began = std::time::Instant::now();
    daemon
        .metric("merlin_reconcile_quiet_checks_total", |count| count >= 3.0)
        .await;
    assert!(began.elapsed() < Duration::from_secs(10));
}
