//! A machine's disk: ext4 in an image in memory, so that it can fail in every way.
//!
//! What was not synced is in the page cache and not in the image. So a copy of the image is what a
//! power cut would have left; the journal is written rarely, which leaves as little as possible.

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::network::checked;

/// A raft log of some minutes fits many times, and the two segments that etcd reserves.
const SIZE: &str = "512M";

/// How often a disk is filled again in which something made room.
const FILLINGS: usize = 20;

#[derive(Debug)]
pub struct Disk {
    mount: PathBuf,
    image: Mutex<Image>,
    /// What a power cut would have left.
    cut: Mutex<Option<Image>>,
}

/// A file in memory that can be told to take no more writes.
#[derive(Debug)]
struct Image(OwnedFd);

impl Image {
    fn new() -> Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        Ok(Self(memfd_create("disk", flags)?))
    }

    /// By which other programs find it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    fn copy(&self) -> Result<Self> {
        let copy = Self::new()?;
        checked("cp", &["--sparse=always", &self.path(), &copy.path()])?;
        Ok(copy)
    }

    /// Every write fails from now on, whole, and for good.
    fn seal(&self) -> Result<()> {
        let seal = FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE);
        fcntl(&self.0, seal).context("sealing a disk")?;
        Ok(())
    }
}

impl Disk {
    pub(super) fn create(home: &Path) -> Result<Self> {
        let image = Image::new()?;
        checked("truncate", &["-s", SIZE, &image.path()])?;
        checked("mkfs.ext4", &["-q", "-E", "nodiscard", &image.path()])?;
        let disk = Self {
            mount: home.join("disk"),
            image: Mutex::new(image),
            cut: Mutex::default(),
        };
        fs::create_dir_all(&disk.mount)?;
        disk.mount()?;
        Ok(disk)
    }

    fn image(&self) -> MutexGuard<'_, Image> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the file system is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount
    }

    pub fn mount(&self) -> Result<()> {
        // The journal is committed when somebody syncs, and hardly ever otherwise.
        let options = "loop,commit=600";
        let image = self.image().path();
        checked("mount", &["-o", options, &image, text(&self.mount)]).map(drop)
    }

    pub fn unmount(&self) -> Result<()> {
        checked("umount", &[text(&self.mount)]).map(drop)
    }

    /// What is left of a failed disk, on a new one: repaired, and mounted again. Nothing may have
    /// files open.
    pub fn repair(&self) -> Result<()> {
        self.unmount()?;
        let image = self.image().copy()?;
        // 1 and 2 say that something was repaired, which is what is wanted.
        let fsck = std::process::Command::new("fsck.ext4")
            .args(["-y", &image.path()])
            .output()
            .context("starting fsck.ext4")?;
        ensure!(
            matches!(fsck.status.code(), Some(0..=2)),
            "fsck.ext4: {}",
            String::from_utf8_lossy(&fsck.stdout)
        );
        *self.image() = image;
        self.mount()
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

    /// Whatever is written to the disk from now on fails when it is synced, until
    /// [`Disk::repair`].
    pub fn fail_writes(&self) -> Result<()> {
        self.image().seal()
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
        let copy = self.image().copy()?;
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = Some(copy);
        Ok(())
    }

    /// Puts what [`Disk::cut`] took down in place of what is there. Nothing may have files open.
    pub fn lose_unsynced(&self) -> Result<()> {
        let cut = self
            .cut
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.unmount()?;
        *self.image() = cut.context("the power was not cut")?;
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
        while fallocate(&file, FallocateFlags::empty(), i64::try_from(size)?, block).is_ok() {
            size = file.metadata()?.len();
        }
    }
    Ok(())
}

/// Paths of the lab are its own and plain.
fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}
