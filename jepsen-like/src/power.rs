//! Power cuts: a guest whose disk loses everything that was not synced loses no acknowledged write.
//!
//! The daemon runs in the guest with its data directory on a disk of its own, and a writer beside
//! it tells the host of every write before it asks and after the answer. What the host has heard
//! counts; then the guest is gone, and another one boots on the disk.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::guest::{Guest, Running};
use merlin_proto::metadata::read_reply;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::history::{History, Outcome, Serial, Write};
use crate::kill::{connect, held, server, service};

/// What has its power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Daemon,
    /// A store that acknowledges what it has not synced. Unless it is caught, the disk does not
    /// forget, or the judge does not look.
    Careless,
}

/// Where the daemon in the guest listens.
const API: &str = "127.0.0.1:4282";

const FORMAT: &str = "modprobe ext4 && mkfs.ext4 -q /dev/ubda";

/// Mounts the disk, starts the daemon on it and hands over to this program.
const SERVE: &str = r#"modprobe ext4 && mount -t ext4 /dev/ubda /mnt || exit 9
    "$MERLIN" --data-dir /mnt/data --run-dir /run/merlin --dataplane memory \
        --peer-addr 127.0.0.1:4284 --node-name jepsen 2>/run/log &
    "$JEPSEN" in-guest "$FIRST" || { cat /run/log >&2; exit 9; }"#;

/// Mounts the disk and hands over to this program as the careless store.
const SERVE_CARELESSLY: &str = r#"modprobe ext4 && mount -t ext4 /dev/ubda /mnt || exit 9
    "$JEPSEN" in-guest "$FIRST" --careless"#;

/// Where the careless store keeps the serials it has acknowledged, one to a line.
const CARELESS: &str = "/mnt/acknowledged";

/// Cuts the power `cuts` times over one disk; an error names the violation.
pub fn run(jepsen: &Path, subject: Subject, cuts: u32, seed: u64) -> Result<History> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("disk");
    File::create(&image)?.set_len(256 << 20)?;
    let formatted = Guest::new("sh").args(["-c", FORMAT]).disk(&image).run()?;
    ensure!(formatted.code == 0, "mkfs.ext4 failed: e2fsprogs is needed");

    let mut dice = StdRng::seed_from_u64(seed);
    let mut history = History::default();
    let mut next: Serial = 1;
    // The last boot only looks.
    for cut in 0..=cuts {
        let mut running = boot(jepsen, subject, &image, next)?;
        let stdout = running.stdout().context("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        look(&mut lines, &mut history).with_context(|| format!("after {cut} power cuts"))?;
        if cut < cuts {
            for _ in 0..dice.random_range(4..400) {
                let line = lines.next().context("the writer stopped")??;
                next = next.max(hear(&line, &mut history)? + 1);
            }
        }
        running.cut_power();
        // What was on its way to us when the power failed was said all the same.
        for line in lines.map_while(Result::ok) {
            if let Ok(serial) = hear(&line, &mut history) {
                next = next.max(serial + 1);
            }
        }
    }
    ensure!(
        history.acknowledged > 0,
        "nothing was written: the harness failed, not the store"
    );
    Ok(history)
}

fn boot(jepsen: &Path, subject: Subject, image: &Path, first: Serial) -> Result<Running> {
    let serve = match subject {
        Subject::Daemon => SERVE,
        Subject::Careless => SERVE_CARELESSLY,
    };
    let guest = Guest::new("sh")
        .args(["-c", serve])
        .env("MERLIN", e2e::programs::locate("merlin")?)
        .env("JEPSEN", jepsen)
        .env("FIRST", first.to_string())
        .disk(image)
        .timeout(Duration::from_secs(120))
        .capture();
    Ok(guest.start()?)
}

/// Reads the line that lists what the daemon holds, and has it judged.
fn look(
    lines: &mut impl Iterator<Item = std::io::Result<String>>,
    history: &mut History,
) -> Result<()> {
    let line = lines
        .next()
        .context("the daemon in the guest did not come up")??;
    let mut words = line.split_whitespace();
    ensure!(words.next() == Some("holds"), "not a listing: {line:?}");
    let revision = words
        .next()
        .context("a listing without a revision")?
        .parse()?;
    let held: BTreeSet<Serial> = words.map(str::parse).collect::<Result<_, _>>()?;
    let violations = history.judge(&held, revision);
    let words: Vec<_> = violations.iter().map(ToString::to_string).collect();
    ensure!(
        words.is_empty(),
        "the store broke its promise:\n{}",
        words.join("\n")
    );
    Ok(())
}

/// Takes down what the writer says: `asks SERIAL`, `has SERIAL REVISION`.
fn hear(line: &str, history: &mut History) -> Result<Serial> {
    let words: Vec<_> = line.split_whitespace().collect();
    let (serial, outcome) = match words[..] {
        ["asks", serial] => (serial, Outcome::Unknown),
        ["has", serial, revision] => {
            let revision = revision.parse()?;
            (serial, Outcome::Acknowledged { revision })
        }
        _ => anyhow::bail!("not a writer's line: {line:?}"),
    };
    let serial = serial.parse()?;
    history.record(serial, Write::Add, outcome);
    Ok(serial)
}

/// The part that runs in the guest: says what is there, then writes until the power fails.
pub async fn in_guest(first: Serial) -> Result<()> {
    let mut client = connect(API.parse()?).await?;
    let mut out = std::io::stdout();
    if first == 1 {
        client
            .create_service(service())
            .await
            .context("declaring the service")?;
    }
    let listed = client.list(()).await.context("listing")?.into_inner();
    show(&mut out, listed.revision, held(&listed))?;
    for serial in first.. {
        writeln!(out, "asks {serial}")?;
        out.flush()?;
        let answer = client
            .create_server(server(serial))
            .await
            .context("writing")?;
        let reply = read_reply(answer.metadata()).context("an answer without a revision")?;
        writeln!(out, "has {serial} {}", reply.revision)?;
        out.flush()?;
    }
    Ok(())
}

fn show(
    out: &mut impl std::io::Write,
    revision: u64,
    held: impl IntoIterator<Item = Serial>,
) -> Result<()> {
    write!(out, "holds {revision}")?;
    for serial in held {
        write!(out, " {serial}")?;
    }
    writeln!(out)?;
    Ok(out.flush()?)
}

/// The same with the careless store.
pub fn in_guest_carelessly(first: Serial) -> Result<()> {
    let mut out = std::io::stdout();
    let kept = std::fs::read_to_string(CARELESS).unwrap_or_default();
    // What a cut tore in two was not kept.
    let held: Vec<Serial> = kept.lines().filter_map(|line| line.parse().ok()).collect();
    show(&mut out, held.len() as u64, held)?;
    let mut file = File::options().create(true).append(true).open(CARELESS)?;
    for serial in first.. {
        writeln!(out, "asks {serial}")?;
        writeln!(file, "{serial}")?;
        writeln!(out, "has {serial} {serial}")?;
        out.flush()?;
    }
    Ok(())
}
