//! The database as it was found, in case it turns out to be damaged.
//!
//! sled writes to a file while it opens it, also to one that it then finds fault with or that has
//! less in it than was acknowledged. Whoever is to look into a damaged log, or to rescue what can
//! be read of it, should find it as it was. So its files are copied before they are opened, and put
//! back if the log is refused. The copy is not synced and lasts for as long as opening takes, which
//! is why a copy that a crash has left behind is worth nothing.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A copy of the database's directory, beside it.
#[derive(Debug)]
pub(super) struct Keepsake {
    original: PathBuf,
    copy: PathBuf,
}

impl Keepsake {
    /// None if there is nothing to keep yet, or no way to keep it: that is no reason not to open
    /// what is in all likelihood sound.
    pub(super) fn take(original: &Path) -> Option<Self> {
        let keepsake = Self {
            original: original.to_owned(),
            copy: original.with_extension("found"),
        };
        keepsake.discard();
        if !original.exists() {
            return None;
        }
        match copy(original, &keepsake.copy) {
            Ok(()) => Some(keepsake),
            Err(error) => {
                tracing::debug!(%error, "the log is opened without a copy of what was found");
                keepsake.discard();
                None
            }
        }
    }

    /// The log is good.
    pub(super) fn discard(&self) {
        // What cannot be removed is removed at the next start.
        let _ = fs::remove_dir_all(&self.copy);
    }

    /// The log is refused: every file is put back as it was, but for those set aside meanwhile.
    pub(super) fn put_back(&self, set_aside: impl Fn(&str) -> bool) -> io::Result<()> {
        for file in files(&self.original)? {
            let found = self
                .copy
                .join(file.strip_prefix(&self.original).unwrap_or(&file));
            if !found.exists() {
                fs::remove_file(&file)?;
            }
        }
        for found in files(&self.copy)? {
            let name = found.file_name().and_then(|name| name.to_str());
            if name.is_some_and(&set_aside) {
                continue;
            }
            File::open(&found)?.sync_all()?;
            let to = found.strip_prefix(&self.copy).unwrap_or(&found);
            fs::rename(&found, self.original.join(to))?;
        }
        File::open(&self.original)?.sync_all()?;
        self.discard();
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&from, &to)?;
        } else {
            fs::copy(&from, &to)?;
        }
    }
    Ok(())
}

/// All files below a directory.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.append(&mut files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_put_back_and_what_was_not_there_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("sled");
        assert!(Keepsake::take(&dir).is_none());
        fs::create_dir_all(dir.join("blobs")).unwrap();
        for (name, text) in [("db", "as found"), ("snap.1", "aside"), ("blobs/1", "blob")] {
            fs::write(dir.join(name), text).unwrap();
        }
        // Left by a crash, and no copy of anything.
        fs::create_dir(dir.with_extension("found")).unwrap();
        fs::write(dir.with_extension("found").join("db"), "torn").unwrap();

        let keepsake = Keepsake::take(&dir).unwrap();
        fs::write(dir.join("db"), "spoilt").unwrap();
        fs::remove_file(dir.join("blobs/1")).unwrap();
        fs::rename(dir.join("snap.1"), parent.path().join("snap.1")).unwrap();
        fs::write(dir.join("snap.2"), "new").unwrap();
        keepsake.put_back(|name| name.starts_with("snap.")).unwrap();

        let read = |name| fs::read_to_string(dir.join(name)).ok();
        assert_eq!(read("db").as_deref(), Some("as found"));
        assert_eq!(read("blobs/1").as_deref(), Some("blob"));
        assert_eq!((read("snap.1"), read("snap.2")), (None, None));
        assert!(!dir.with_extension("found").exists());
    }
}
