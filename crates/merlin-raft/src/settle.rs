//! The moment at which a data directory becomes another node's. Once it is decided it happens
//! wholly, however often it is cut off: whoever opens the directory next goes on with it.
//!
//! ```text
//! identity/admitted.pem ─▶ admission.json: decided
//!   ─▶ what was there aside ─▶ introducers.json ─▶ admitted.pem is node.pem ─▶ node.json
//!   ─▶ identity/joining.pem and admission.json removed
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::datadir::{DataDir, DataDirError, Introducer, NodeFile};
use crate::typ::NodeId;

const ADMISSION: &str = "admission.json";

/// What the directory is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Admission {
    pub(crate) cluster_id: String,
    pub(crate) node_id: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) introducers: Vec<Introducer>,
    /// Where what was there goes.
    pub(crate) aside: String,
    /// Whether it stays there.
    pub(crate) keep: bool,
}

/// Decides it. The new node's identity is in the identity directory already.
pub(crate) fn decide(path: &Path, admission: &Admission) -> Result<(), DataDirError> {
    let at = path.join(ADMISSION);
    let write = || -> io::Result<()> {
        let unfinished = at.with_extension("tmp");
        fs::write(&unfinished, serde_json::to_vec_pretty(admission)?)?;
        File::open(&unfinished)?.sync_all()?;
        fs::rename(&unfinished, &at)?;
        File::open(path)?.sync_all()
    };
    write().map_err(|source| DataDirError::io("write", &at, source))
}

/// Does what was decided, if anything was. Returns where what was there is kept.
pub(crate) fn finish(dir: &DataDir, path: &Path) -> Result<Option<PathBuf>, DataDirError> {
    let decided = path.join(ADMISSION);
    let failed = |source| DataDirError::io("finish", &decided, source);
    let bytes = match fs::read(&decided) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(failed)?,
    };
    let damaged = |source| DataDirError::Damaged {
        path: decided.clone(),
        source,
    };
    let admission: Admission = serde_json::from_slice(&bytes).map_err(damaged)?;
    let cluster = admission.cluster_id.parse();
    let cluster = cluster.map_err(|error| damaged(serde::de::Error::custom(error)))?;
    let identity = dir.identity();
    let admitted = identity.join("admitted.pem");
    // Gone only when everything before has been done.
    if admitted.exists() {
        dir.set_aside(&admission.aside)?;
        dir.set_introducers(&admission.introducers)?;
        fs::rename(&admitted, identity.join("node.pem")).map_err(failed)?;
        File::open(&identity)
            .and_then(|dir| dir.sync_all())
            .map_err(failed)?;
    }
    dir.set_node(&NodeFile {
        cluster,
        node: admission.node_id,
        incarnation: admission.incarnation,
    })?;
    remove(&identity.join("joining.pem")).map_err(failed)?;
    let aside = Some(path.join(&admission.aside)).filter(|aside| aside.exists());
    let kept = match aside {
        Some(aside) if !admission.keep => {
            dir.remove_aside(&aside)?;
            None
        }
        aside => aside,
    };
    remove(&decided).map_err(failed)?;
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(failed)?;
    Ok(kept)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ClusterId;

    const OLD: NodeFile = NodeFile {
        cluster: ClusterId::from_bytes([1; 16]),
        node: 1,
        incarnation: 1,
    };
    const NEW: NodeFile = NodeFile {
        cluster: ClusterId::from_bytes([2; 16]),
        node: 7,
        incarnation: 3,
    };

    type Step = fn(&Path, &DataDir);

    fn rename(path: &Path, from: &str, to: &str) {
        fs::create_dir_all(path.join("aside")).unwrap();
        fs::rename(path.join(from), path.join(to)).unwrap();
    }

    fn used(path: &Path) -> DataDir {
        let dir = DataDir::open(path).unwrap();
        dir.set_node(&OLD).unwrap();
        for part in ["log", "snapshots", "identity"] {
            fs::create_dir(path.join(part)).unwrap();
        }
        fs::write(path.join("log/old"), "").unwrap();
        for (file, of) in [("node", "old"), ("admitted", "new"), ("joining", "key")] {
            fs::write(path.join("identity").join(file).with_extension("pem"), of).unwrap();
        }
        dir
    }

    #[test]
    fn it_happens_wholly_wherever_it_is_cut_off() {
        // What a cut leaves done, one step after another.
        let steps: [Step; 8] = [
            |_, _| {},
            |path, _| rename(path, "node.json", "aside/node.json"),
            |path, _| rename(path, "log", "aside/log"),
            |path, _| rename(path, "snapshots", "aside/snapshots"),
            |path, _| rename(path, "identity/node.pem", "aside/node.pem"),
            |_, dir| dir.set_introducers(&[]).unwrap(),
            |path, _| rename(path, "identity/admitted.pem", "identity/node.pem"),
            |_, dir| dir.set_node(&NEW).unwrap(),
        ];
        for keep in [false, true] {
            for cut in 0..steps.len() {
                let parent = tempfile::tempdir().unwrap();
                let path = parent.path();
                let dir = used(path);
                let introducers = vec![Introducer {
                    id: 1,
                    addr: "192.0.2.1:4284".into(),
                }];
                let admission = Admission {
                    cluster_id: NEW.cluster.to_string(),
                    node_id: NEW.node,
                    incarnation: NEW.incarnation,
                    introducers,
                    aside: "aside".into(),
                    keep,
                };
                decide(path, &admission).unwrap();
                steps[..=cut].iter().for_each(|step| step(path, &dir));
                drop(dir);

                let dir = DataDir::open(path).unwrap();
                assert_eq!(dir.node().unwrap(), Some(NEW), "cut after {cut}");
                assert_eq!(fs::read(path.join("identity/node.pem")).unwrap(), b"new");
                assert_eq!(path.join("aside/log/old").exists(), keep);
                for gone in ["log", "admission.json", "identity/joining.pem"] {
                    assert!(!path.join(gone).exists(), "{gone}, cut after {cut}");
                }
            }
        }
    }
}
