//! The guest: it runs a command faithfully, and never outlives its harness.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::guest::{Guest, GuestError};
use e2e::poll::eventually;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

fn shell(script: &str) -> Guest {
    Guest::new("sh").args(["-c", script])
}

/// Reads lines until one says that the command has come this far.
fn wait_for_line(output: impl Read, wanted: &str) -> Result<()> {
    for line in BufReader::new(output).lines() {
        if line? == wanted {
            return Ok(());
        }
    }
    anyhow::bail!("the output ended without `{wanted}`")
}

#[test]
fn output_comes_through_byte_for_byte_with_the_exit_code() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("bytes");
    let mut bytes = vec![0; 300_000];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    fs::write(&file, &bytes)?;

    let script = r#"cat "$FILE"; echo "a problem" >&2; echo changed >"$FILE"; exit 7"#;
    let mut running = shell(script).env("FILE", &file).capture().start()?;
    let mut stdout = running.stdout().context("no standard output")?;
    let mut stderr = running.stderr().context("no standard error")?;
    let mut seen = Vec::new();
    stdout.read_to_end(&mut seen)?;
    let mut complaint = String::new();
    stderr.read_to_string(&mut complaint)?;

    assert_eq!(running.wait()?.code, 7);
    assert!(
        seen == bytes,
        "{} of {} bytes, or others",
        seen.len(),
        bytes.len()
    );
    assert_eq!(complaint, "a problem\n");
    assert!(
        fs::read(&file)? == bytes,
        "the guest changed a file of the host"
    );
    Ok(())
}

#[test]
fn a_command_that_takes_too_long_ends_with_124() -> Result<()> {
    let exit = shell("sleep 60")
        .timeout(Duration::from_millis(200))
        .run()?;
    assert_eq!(exit.code, 124);
    Ok(())
}

#[test]
fn a_guest_that_dies_is_reported_with_its_last_console_lines() {
    match shell("echo c >/proc/sysrq-trigger; sleep 60").run() {
        Err(GuestError::Died { console, .. }) => {
            assert!(console.contains("sysrq triggered crash"), "{console}");
        }
        other => panic!("it should have died: {other:?}"),
    }
}

#[test]
fn a_guest_that_hangs_is_killed_with_its_whole_process_group() -> Result<()> {
    let mut running = shell("echo up; sleep 60")
        .timeout(Duration::from_secs(5))
        .host_grace(Duration::ZERO)
        .capture()
        .start()?;
    wait_for_line(running.stdout().context("no standard output")?, "up")?;
    let group = Pid::from_raw(running.pid().cast_signed());
    killpg(group, Signal::SIGSTOP)?;
    match running.wait() {
        Err(GuestError::Hung { .. }) => {}
        other => panic!("it should have hung: {other:?}"),
    }
    // Killed they are; buried by init, when it comes round to it.
    eventually(Duration::from_secs(5), || {
        ensure!(
            killpg(group, None) == Err(Errno::ESRCH),
            "something of the guest is left"
        );
        Ok(())
    })
}

#[test]
fn a_killed_harness_leaves_nothing_behind() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let directory = tempfile::tempdir()?;
        let mut harness = Command::new(env!("CARGO_BIN_EXE_guest"))
            .args(["--", "sh", "-c", "echo up; sleep 60"])
            .env("TMPDIR", directory.path())
            .stdout(Stdio::piped())
            .spawn()?;
        wait_for_line(harness.stdout.take().context("no standard output")?, "up")?;
        ensure!(
            processes_naming(directory.path())? > 0,
            "where is the guest?"
        );
        kill(Pid::from_raw(harness.id().cast_signed()), signal)?;
        harness.wait()?;
        eventually(Duration::from_secs(5), || {
            let (processes, files) = (
                processes_naming(directory.path())?,
                fs::read_dir(directory.path())?.count(),
            );
            ensure!(
                processes + files == 0,
                "{processes} processes and {files} files are left"
            );
            Ok(())
        })
        .with_context(|| format!("after {signal}"))?;
    }
    Ok(())
}

/// How many processes have this path on their command line, as every one of a guest has.
fn processes_naming(path: &Path) -> Result<usize> {
    let path = path
        .to_str()
        .context("a temporary directory of odd bytes")?;
    let processes = fs::read_dir("/proc")?.flatten().filter(|entry| {
        let command_line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command_line).contains(path)
    });
    Ok(processes.count())
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_only_that() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("disk");
    File::create(&image)?.set_len(16 << 20)?;

    let before = "modprobe ext4 && mkfs.ext4 -q /dev/ubda && mount /dev/ubda /mnt &&
        echo kept >/mnt/kept && sync && echo lost >/mnt/lost && echo written && sleep 60";
    let mut running = shell(before).disk(&image).capture().start()?;
    wait_for_line(running.stdout().context("no standard output")?, "written")?;
    running.cut_power();

    let after = "modprobe ext4 && mount /dev/ubda /mnt && cat /mnt/kept && [ ! -e /mnt/lost ]";
    let mut running = shell(after).disk(&image).capture().start()?;
    let mut seen = String::new();
    running
        .stdout()
        .context("no standard output")?
        .read_to_string(&mut seen)?;
    assert_eq!(running.wait()?.code, 0);
    assert_eq!(seen, "kept\n");
    Ok(())
}
