//! The raft log on a machine that loses power while it is written, and on disks that are full or
//! read-only: what was acknowledged is there afterwards, however large the entries were and
//! wherever the cut fell.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::guest::{Guest, Running};
use e2e::programs;

/// Acknowledgements after which the power fails, one boot each.
const CUTS: [usize; 8] = [1, 7, 31, 64, 3, 150, 97, 260];

/// Mounts the disk, verifies what the boots before have acknowledged, and goes on writing.
const CHECK_AND_WRITE: &str = r#"modprobe ext4 && mount -t ext4 /dev/ubda /mnt &&
    "$LOGCHECK" /mnt/log "$ACKNOWLEDGED" && exec "$LOGWRITER" /mnt/log "$UNTIL""#;

/// Writes until the disk is full, tries to start on it, makes room and starts again; then once
/// more without permission to write.
const FILL: &str = r#"modprobe ext4 && mkfs.ext4 -q -m 0 /dev/ubda && mount -t ext4 /dev/ubda /mnt || exit 9
    room=$(df --output=avail -B1 /mnt | tail -n 1)
    fallocate -l $((room - 4000000)) /mnt/ballast || exit 9
    for attempt in 1 2; do
        "$LOGWRITER" /mnt/log forever >>/run/acknowledged && exit 9
    done
    rm /mnt/ballast
    "$LOGCHECK" /mnt/log "$(tail -n 1 /run/acknowledged)" || exit 9
    mount -o remount,ro /mnt && "$LOGCHECK" /mnt/log none
    exit 0"#;

const FORMAT: &str = "modprobe ext4 && mkfs.ext4 -q /dev/ubda";

/// A guest with this disk that runs a script of the above.
fn guest(image: &Path, script: &str) -> Result<Guest> {
    Ok(Guest::new("sh")
        .args(["-c", script])
        .env("LOGCHECK", programs::example("merlin-raft", "logcheck")?)
        .env("LOGWRITER", programs::example("merlin-raft", "logwriter")?)
        .disk(image)
        .timeout(Duration::from_secs(120))
        .capture())
}

fn boot(image: &Path, acknowledged: &str, until: &str) -> Result<Running> {
    let guest = guest(image, CHECK_AND_WRITE)?
        .env("ACKNOWLEDGED", acknowledged)
        .env("UNTIL", until);
    Ok(guest.start()?)
}

fn complaint(running: &mut Running) -> String {
    let mut text = String::new();
    if let Some(mut stderr) = running.stderr() {
        // Whatever came through is worth showing.
        let _ = stderr.read_to_string(&mut text);
    }
    text + &running.console()
}

#[test]
fn the_log_keeps_what_it_acknowledged_through_power_cuts() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("disk");
    File::create(&image)?.set_len(256 << 20)?;
    let formatted = Guest::new("sh").args(["-c", FORMAT]).disk(&image).run()?;
    ensure!(formatted.code == 0, "mkfs.ext4 failed");

    let mut acknowledged = "none".to_owned();
    for cut in CUTS {
        let mut running = boot(&image, &acknowledged, "forever")?;
        let stdout = running.stdout().context("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let checked = lines.next().transpose()?;
        if !checked.is_some_and(|line| line.starts_with("ok")) {
            drop(lines);
            let complaint = complaint(&mut running);
            anyhow::bail!("after {acknowledged} was acknowledged: {complaint}");
        }
        for _ in 0..cut {
            let line = lines.next().context("the writer stopped")?;
            acknowledged = line?;
        }
        running.cut_power();
        // What was on its way to us when the power failed was acknowledged all the same.
        for line in lines.map_while(Result::ok) {
            if line.parse::<u64>().is_ok() {
                acknowledged = line;
            }
        }
    }

    // A last boot that only looks.
    let mut running = boot(&image, &acknowledged, "0")?;
    let complaint = complaint(&mut running);
    ensure!(running.wait()?.code == 0, "{complaint}");
    Ok(())
}

#[test]
fn a_full_or_read_only_disk_is_named_and_costs_nothing_acknowledged() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("disk");
    File::create(&image)?.set_len(96 << 20)?;
    let mut running = guest(&image, FILL)?.start()?;
    let mut said = String::new();
    let mut stdout = running.stdout().context("no standard output")?;
    stdout.read_to_string(&mut said)?;
    let complaint = complaint(&mut running);
    ensure!(running.wait()?.code == 0, "{said}{complaint}");
    ensure!(said.starts_with("ok"), "{said}{complaint}");
    ensure!(
        complaint.matches("is full: free some space").count() == 2,
        "{complaint}"
    );
    ensure!(complaint.contains("mounted read-only"), "{complaint}");
    Ok(())
}
