//! Where the programs under test are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Overrides the directory the programs are taken from, say to test a release build.
pub const DIRECTORY: &str = "E2E_PROGRAMS";

/// Finds a program of this workspace beside the running one: cargo puts test executables in a
/// `deps` directory, and the programs in its parent.
pub fn locate(program: &str) -> Result<PathBuf> {
    find(Path::new(program), &format!("-p {program}"))
}

/// Finds an example program of this package.
pub fn example(package: &str, example: &str) -> Result<PathBuf> {
    let path = Path::new("examples").join(example);
    find(&path, &format!("-p {package} --example {example}"))
}

fn find(program: &Path, build: &str) -> Result<PathBuf> {
    let directory = match env::var_os(DIRECTORY) {
        Some(directory) => PathBuf::from(directory),
        None => beside(&env::current_exe().context("finding out which program this is")?),
    };
    let path = directory.join(program);
    if !path.is_file() {
        bail!(
            "{} does not exist; build it first: cargo build {build}{}",
            path.display(),
            if directory.ends_with("release") {
                " --release"
            } else {
                ""
            },
        );
    }
    Ok(path)
}

fn beside(executable: &Path) -> PathBuf {
    let directory = executable.parent().unwrap_or(Path::new("."));
    match directory.file_name() {
        Some(name) if name == "deps" => directory.parent().unwrap_or(directory).to_owned(),
        _ => directory.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_programs_find_the_same_directory() {
        assert_eq!(
            beside(Path::new("/t/debug/deps/kernel-0123")),
            Path::new("/t/debug")
        );
        assert_eq!(beside(Path::new("/t/debug/guest")), Path::new("/t/debug"));
    }
}
