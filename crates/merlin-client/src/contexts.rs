//! Where a user keeps contexts.
//!
//! ```text
//! $XDG_CONFIG_HOME/merlin, or ~/.config/merlin    mode 0700
//!   contexts/NAME.toml                            0600
//!   current                                       the name of the one in use
//! ```

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::context::{Context, ContextError};

/// Why contexts cannot be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum ContextsError {
    #[error("there is no context {name:?}{}: log in with `meradm login FILE`", among(.known))]
    Unknown { name: String, known: Vec<String> },
    #[error(
        "context {name:?} belongs to another cluster ({cluster}): choose another name with --name"
    )]
    OtherCluster { name: String, cluster: String },
    #[error("{0:?} is not a name for a context: letters, digits or any of . _ - @ +")]
    Name(String),
    #[error("there is no home directory to keep contexts in: set HOME or XDG_CONFIG_HOME")]
    Homeless,
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Context(#[from] ContextError),
}

fn among(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names => format!(" (there is {})", names.join(", ")),
    }
}

type Result<T> = std::result::Result<T, ContextsError>;

/// A user's contexts.
#[derive(Clone, Debug)]
pub struct Contexts {
    /// None for a user without a home, who has no contexts.
    dir: Option<PathBuf>,
}

impl Contexts {
    /// Those of the user that runs this program.
    pub fn of_user() -> Self {
        Self::found(
            std::env::var_os("XDG_CONFIG_HOME"),
            std::env::var_os("HOME"),
        )
    }

    fn found(config: Option<OsString>, home: Option<OsString>) -> Self {
        // Relative ones are to be ignored (XDG base directories).
        let absolute = |dir: OsString| Some(PathBuf::from(dir)).filter(|dir| dir.is_absolute());
        let config = config.and_then(absolute);
        let home = || Some(home.and_then(absolute)?.join(".config"));
        Self {
            dir: config.or_else(home).map(|config| config.join("merlin")),
        }
    }

    pub fn in_dir(dir: PathBuf) -> Self {
        Self { dir: Some(dir) }
    }

    /// Names in order.
    pub fn names(&self) -> Result<Vec<String>> {
        let Some(dir) = self.dir.as_ref().map(|dir| dir.join("contexts")) else {
            return Ok(Vec::new());
        };
        let files = match fs::read_dir(&dir) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(failed("list", &dir)(source)),
        };
        let mut names = Vec::new();
        for file in files {
            let name = file.map_err(failed("list", &dir))?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".toml"));
            names.extend(name.map(str::to_owned));
        }
        names.sort_unstable();
        Ok(names)
    }

    pub fn get(&self, name: &str) -> Result<Context> {
        let names = self.names()?;
        if !names.iter().any(|known| known == name) {
            return Err(ContextsError::Unknown {
                name: name.to_owned(),
                known: names,
            });
        }
        Ok(Context::read(&self.file(name)?)?)
    }

    /// The name of the context in use.
    pub fn current(&self) -> Result<Option<String>> {
        let Some(path) = self.dir.as_ref().map(|dir| dir.join("current")) else {
            return Ok(None);
        };
        match fs::read_to_string(&path) {
            Ok(name) => Ok(Some(name.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed("read", &path)(source)),
        }
    }

    /// Makes a context the one in use.
    pub fn choose(&self, name: &str) -> Result<()> {
        self.get(name)?;
        let path = self.home()?.join("current");
        fs::write(&path, format!("{name}\n")).map_err(failed("write", &path))
    }

    /// Keeps a context, in place of one of the same name and cluster, and makes it the one in use.
    pub fn add(&self, name: &str, context: &Context) -> Result<()> {
        let letter = |b: u8| b.is_ascii_alphanumeric() || b"._-@+".contains(&b);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(letter) {
            return Err(ContextsError::Name(name.to_owned()));
        }
        match self.get(name) {
            Ok(held) if held.cluster_id != context.cluster_id => {
                return Err(ContextsError::OtherCluster {
                    name: name.to_owned(),
                    cluster: held.cluster_id,
                });
            }
            // One that cannot be read is of no use to anybody.
            Ok(_) | Err(ContextsError::Unknown { .. } | ContextsError::Context(_)) => {}
            Err(error) => return Err(error),
        }
        let file = self.file(name)?;
        let dir = file.parent().unwrap_or(&file);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("create", dir))?;
        context.write(&file, true)?;
        self.choose(name)
    }

    /// Forgets a context.
    pub fn remove(&self, name: &str) -> Result<()> {
        let names = self.names()?;
        if !names.iter().any(|known| known == name) {
            let (name, known) = (name.to_owned(), names);
            return Err(ContextsError::Unknown { name, known });
        }
        let file = self.file(name)?;
        if self.current()?.as_deref() == Some(name) {
            let path = self.home()?.join("current");
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        fs::remove_file(&file).map_err(failed("remove", &file))
    }

    fn home(&self) -> Result<&Path> {
        self.dir.as_deref().ok_or(ContextsError::Homeless)
    }

    fn file(&self, name: &str) -> Result<PathBuf> {
        Ok(self.home()?.join("contexts").join(format!("{name}.toml")))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ContextsError {
    let path = path.to_owned();
    move |source| ContextsError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::context::tests::context;
    use crate::tls::tests::Authority;

    fn contexts() -> (tempfile::TempDir, Contexts) {
        let dir = tempfile::tempdir().unwrap();
        let contexts = Contexts::in_dir(dir.path().join("merlin"));
        (dir, contexts)
    }

    #[test]
    fn the_last_one_added_or_chosen_is_in_use() {
        let (dir, contexts) = contexts();
        assert_eq!(contexts.names().unwrap(), [""; 0]);
        assert_eq!(contexts.current().unwrap(), None);
        let (ana, bob) = (context("ana"), context("bob"));
        contexts.add("ana", &ana).unwrap();
        contexts.add("bob", &bob).unwrap();
        assert_eq!(contexts.current().unwrap().as_deref(), Some("bob"));
        contexts.choose("ana").unwrap();
        assert_eq!(contexts.current().unwrap().as_deref(), Some("ana"));
        assert_eq!(contexts.get("ana").unwrap(), ana);
        assert_eq!(contexts.names().unwrap(), ["ana", "bob"]);

        let mode = |path: &str| {
            let metadata = fs::metadata(dir.path().join(path)).unwrap();
            metadata.permissions().mode() & 0o777
        };
        assert_eq!(mode("merlin"), 0o700);
        assert_eq!(mode("merlin/contexts/ana.toml"), 0o600);

        contexts.remove("ana").unwrap();
        assert_eq!(contexts.current().unwrap(), None);
        assert_eq!(contexts.names().unwrap(), ["bob"]);
        let error = contexts.remove("ana").unwrap_err();
        assert!(error.to_string().contains("there is bob"), "{error}");
    }

    #[test]
    fn a_context_is_replaced_by_its_own_clusters_only() {
        let (_dir, contexts) = contexts();
        contexts
            .add("ana", &Authority::new("c1").client("ana"))
            .unwrap();
        let renewed = Authority::new("c1").client("ana");
        contexts.add("ana", &renewed).unwrap();
        assert_eq!(contexts.get("ana").unwrap(), renewed);
        let other = Authority::new("c2").client("ana");
        let error = contexts.add("ana", &other).unwrap_err();
        assert!(error.to_string().contains("--name"), "{error}");
        contexts.add("ana@c2", &other).unwrap();
        let error = contexts.add("../ana", &other).unwrap_err();
        assert!(matches!(error, ContextsError::Name(_)), "{error}");
    }

    #[test]
    fn they_are_kept_where_configuration_is() {
        let of = |config: Option<&str>, home: Option<&str>| {
            Contexts::found(config.map(Into::into), home.map(Into::into)).dir
        };
        let dir = |path: &str| Some(PathBuf::from(path));
        assert_eq!(of(Some("/x"), Some("/h")), dir("/x/merlin"));
        assert_eq!(of(Some("x"), Some("/h")), dir("/h/.config/merlin"));
        assert_eq!(of(None, Some("/h")), dir("/h/.config/merlin"));
        assert_eq!(of(None, None), None);
        let homeless = Contexts { dir: None };
        assert_eq!(homeless.names().unwrap(), [""; 0]);
        let error = homeless.add("ana", &context("ana")).unwrap_err();
        assert!(error.to_string().contains("HOME"), "{error}");
    }
}
