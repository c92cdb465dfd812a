//! A machine's disk: ext4 in an image in memory, so that it can fail in every way.
//!
//! What was not synced is in the page cache and not in the image. So a copy of the image is what a
//! power cut would have left; the journal is written rarely, which leaves as little as possible.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::network::checked;

/// A raft log of some minutes fits many times.
const SIZE: &str = "192M";
/// Room for the image twice: once as it is, once as a power cut left it.
const BACKING: &str = "size=448M";

/// How often a disk is filled again in which something made room.
const FILLINGS: usize = 20;

#[derive(Debug)]
pub struct Disk {
    /// The file system the image is in.
    backing: PathBuf,
    mount: PathBuf,
}

impl Disk {
    pub(super) fn create(home: &Path) -> Result<Self> {
        let disk = Self {
            backing: home.join("backing"),
            mount: home.join("disk"),
        };
        fs::create_dir_all(&disk.backing)?;
        fs::create_dir_all(&disk.mount)?;
        checked(
            "mount",
            &["-t", "tmpfs", "-o", BACKING, "tmpfs", text(&disk.backing)],
        )?;
        let image = disk.image();
        checked("truncate", &["-s", SIZE, text(&image)])?;
        checked("mkfs.ext4", &["-q", "-E", "nodiscard", text(&image)])?;
        disk.mount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.backing.join("image")
    }

    fn cut_image(&self) -> PathBuf {
        self.backing.join("cut")
    }

    /// Where the file system is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount
    }

    pub fn mount(&self) -> Result<()> {
        // The journal is committed when somebody syncs, and hardly ever otherwise.
        let options = "loop,commit=600";
        let (image, mount) = (self.image(), &self.mount);
        checked("mount", &["-o", options, text(&image), text(mount)]).map(drop)
    }

    pub fn unmount(&self) -> Result<()> {
        checked("umount", &[text(&self.mount)]).map(drop)
    }

    /// As after a failure: repaired, and mounted again. Nothing may have files open.
    pub fn repair(&self) -> Result<()> {
        self.unmount()?;
        // 1 and 2 say that something was repaired, which is what is wanted.
        let fsck = std::process::Command::new("fsck.ext4")
            .args(["-y", text(&self.image())])
            .output()
            .context("starting fsck.ext4")?;
        ensure!(
            matches!(fsck.status.code(), Some(0..=2)),
            "fsck.ext4: {}",
            String::from_utf8_lossy(&fsck.stdout)
        );
        self.mount()?;
        let _ = fs::remove_file(self.stuffing());
        Ok(())
    }

    /// Takes all free space.
    pub fn fill(&self) -> Result<()> {
        let probe = self.mount.join("probe");
        // A daemon may remove what it does not need any more in between.
        for _ in 0..FILLINGS {
            fill(&self.mount.join("filler"))?;
            if fs::write(&probe, vec![1; 1 << 16]).is_err() {
                return Ok(());
            }
            fs::remove_file(&probe)?;
        }
        bail!("there is still room on a full disk");
    }

    pub fn unfill(&self) -> Result<()> {
        let _ = fs::remove_file(self.mount.join("probe"));
        fs::remove_file(self.mount.join("filler"))?;
        // Or the next failure of this disk takes the room away again.
        checked("sync", &["--file-system", text(&self.mount)]).map(drop)
    }

    /// Whatever is written to the disk from now on fails when it is synced: there is no room in
    /// the file system that the image is in.
    ///
    /// A loop device takes a write of which only the beginning found room for a whole one, so that a
    /// few are lost without a word. A snapshot may be; two in a row are more than anybody gets over.
    pub fn fail_writes(&self) -> Result<()> {
        // What was written once and is free by now has its room in the image still.
        checked("fstrim", &[text(&self.mount)])?;
        fill(&self.backing.join("filler"))?;
        // And what was freed since. It stays taken until then.
        let mut stuffing = fs::File::create(self.stuffing())?;
        for _ in 0..FILLINGS {
            let stuffed = stuffing.write_all(&vec![0x5a; 1 << 20]);
            if stuffed.and_then(|()| stuffing.sync_all()).is_err() {
                return Ok(());
            }
        }
        bail!("a broken disk goes on taking writes")
    }

    fn stuffing(&self) -> PathBuf {
        self.mount.join("stuffing")
    }

    /// Makes room again; what has failed stays failed until [`Disk::repair`].
    pub fn allow_writes(&self) -> Result<()> {
        Ok(fs::remove_file(self.backing.join("filler"))?)
    }

    /// Whether a new file can be written and synced.
    pub fn can_sync(&self) -> bool {
        let probe = self.mount.join("probe");
        let attempt = || -> std::io::Result<()> {
            let mut file = fs::File::create(&probe)?;
            // Random enough to need blocks of its own.
            file.write_all(&vec![0x5a; 1 << 20])?;
            file.sync_all()
        };
        let synced = attempt().is_ok();
        let _ = fs::remove_file(&probe);
        synced
    }

    /// Stops every write until [`Disk::thaw`]. Whoever writes, waits.
    pub fn freeze(&self) -> Result<()> {
        checked("fsfreeze", &["--freeze", text(&self.mount)]).map(drop)
    }

    pub fn thaw(&self) -> Result<()> {
        checked("fsfreeze", &["--unfreeze", text(&self.mount)]).map(drop)
    }

    /// As ext4 does when the disk under it fails: no more writes, until [`Disk::repair`].
    pub fn make_read_only(&self) -> Result<()> {
        checked("mount", &["-o", "remount,abort", text(&self.mount)])?;
        ensure!(
            fs::write(self.mount.join("probe"), "x").is_err(),
            "a read-only disk takes writes"
        );
        Ok(())
    }

    /// Takes down what a power cut at this moment would leave. Whoever writes must be stopped.
    pub fn cut(&self) -> Result<()> {
        // Written and never synced: it must not survive.
        fs::write(self.mount.join("canary"), "x")?;
        let (image, cut) = (self.image(), self.cut_image());
        checked("cp", &["--sparse=always", text(&image), text(&cut)]).map(drop)
    }

    /// Puts what [`Disk::cut`] took down in place of what is there. Nothing may have files open.
    pub fn lose_unsynced(&self) -> Result<()> {
        self.unmount()?;
        fs::rename(self.cut_image(), self.image())?;
        self.mount()?;
        ensure!(
            !self.mount.join("canary").exists(),
            "the power cut lost nothing: a file that was never synced is still there"
        );
        Ok(())
    }
}

fn fill(filler: &Path) -> Result<()> {
    let file = fs::File::options().create(true).append(true).open(filler)?;
    for block in [1 << 20, 1 << 12] {
        let mut size = file.metadata()?.len();
        while nix::fcntl::fallocate(
            &file,
            nix::fcntl::FallocateFlags::empty(),
            i64::try_from(size)?,
            block,
        )
        .is_ok()
        {
            size = file.metadata()?.len();
        }
    }
    Ok(())
}

/// Paths of the lab are its own and plain.
fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}
