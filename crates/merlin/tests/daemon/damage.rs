//! Damaged files in the data directory. The daemon starts with everything it had acknowledged, or
//! it says which file is damaged and what to do. It removes and overwrites nothing of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::support::process::{Process, merlin};
use crate::support::requests::{ids, numbered_server, service, weight};
use crate::support::{AMPLE, Refusal, Setup, eventually};

/// The data directory of a daemon that was stopped, with snapshots and a purged log, and the
/// listing that it answered last. It takes a few thousand writes, so it is made once.
struct Original {
    dir: TempDir,
    listing: Vec<(String, usize)>,
    revision: u64,
}

fn original() -> &'static Original {
    static ORIGINAL: OnceLock<Original> = OnceLock::new();
    ORIGINAL.get_or_init(|| {
        let make = || tokio::runtime::Runtime::new().unwrap().block_on(make());
        std::thread::spawn(make).join().unwrap()
    })
}

async fn make() -> Original {
    let setup = Setup::new();
    let mut daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    merlin
        .create_server(numbered_server("web", 1))
        .await
        .unwrap();
    // Two snapshots are kept, and the log from the older one on.
    for value in 0..7000 {
        merlin
            .update_server(weight("web", 1, value % 1000))
            .await
            .unwrap();
    }
    let list = merlin.list(()).await.unwrap().into_inner();
    eventually(async || match snapshots(&setup.data_dir()).len() {
        2 => Ok(()),
        snapshots => Err(snapshots),
    })
    .await;
    daemon.process.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(daemon.process.wait(AMPLE).code(), Some(0));
    let dir = tempfile::tempdir().unwrap();
    copy(&setup.data_dir(), dir.path());
    Original {
        dir,
        listing: ids(&list),
        revision: list.revision,
    }
}

fn snapshots(data_dir: &Path) -> Vec<PathBuf> {
    let mut files = files(&data_dir.join("snapshots"));
    files.retain(|path| path.extension().is_some_and(|e| e == "snap"));
    files.sort();
    files
}

/// Every file below.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let to = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&file, to).unwrap();
    }
}

/// What is in every file, by its path.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    };
    files(dir).into_iter().map(read).collect()
}

/// A way to damage a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip,
    Halve,
    Empty,
    Remove,
}

impl Damage {
    const ALL: [Self; 4] = [Self::Flip, Self::Halve, Self::Empty, Self::Remove];

    fn apply(self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        match self {
            Self::Flip => {
                // All over the file, so that it cannot fall where nothing is.
                let step = (bytes.len() / 64).max(1);
                bytes
                    .iter_mut()
                    .step_by(step)
                    .for_each(|byte| *byte ^= 0x55);
            }
            Self::Halve => bytes.truncate(bytes.len() / 2),
            Self::Empty => bytes.clear(),
            Self::Remove => return fs::remove_file(path).unwrap(),
        }
        fs::write(path, bytes).unwrap();
    }
}

/// What the daemon makes of a directory.
#[derive(Debug)]
enum Outcome {
    /// It runs, with everything it had acknowledged.
    Whole,
    /// It refused, in these words, and left every file as it was.
    Refused(String),
}

/// Starts a daemon with a damaged copy.
async fn with_damage(damage: impl FnOnce(&Path)) -> Outcome {
    let original = original();
    let setup = Setup::new();
    copy(original.dir.path(), &setup.data_dir());
    damage(&setup.data_dir());
    let before = contents(&setup.data_dir());
    let mut process = Process::spawn(merlin().args(setup.args()));
    let ready = format!("{}", setup.http.addr());
    let ended = eventually(async || {
        if let Some(status) = process.ended() {
            return Ok(Some(status));
        }
        match crate::support::web::get(setup.http.addr(), "/ready").await {
            Ok(answer) if answer.status == 200 => Ok(None),
            other => Err((&ready, other)),
        }
    })
    .await;
    let Some(status) = ended else {
        let mut merlin = setup.client().await;
        let list = merlin.list(()).await.unwrap().into_inner();
        assert_eq!(ids(&list), original.listing);
        assert_eq!(list.revision, original.revision);
        return Outcome::Whole;
    };
    process.wait(AMPLE);
    let words = process.log();
    assert_eq!(status.code(), Some(1), "{words}");
    kept(&before, &setup.data_dir(), &words);
    // Nor does trying again wear it down.
    Refusal::of(merlin().args(setup.args())).expect(1, &["merlin: "]);
    kept(&before, &setup.data_dir(), &words);
    Outcome::Refused(words)
}

/// Every file is still there, under its name or set aside, as it was. A log that is sound is opened
/// and closed like any other, which its database does not do without writing.
fn kept(before: &BTreeMap<PathBuf, Vec<u8>>, data_dir: &Path, words: &str) {
    let after = contents(data_dir);
    let sound = words.contains("opened the raft log");
    for (path, bytes) in before {
        if sound && path.starts_with(data_dir.join("log")) {
            continue;
        }
        let same = after.get(path).is_some_and(|now| now == bytes);
        let aside = || {
            let name = path.file_name().unwrap().to_str().unwrap();
            let aside = |at: &PathBuf| at.to_str().unwrap().ends_with(&format!("-{name}"));
            after.iter().any(|(at, now)| aside(at) && now == bytes)
        };
        assert!(same || aside(), "{} was changed: {words}", path.display());
    }
}

/// Refused in words that name the file or directory and say what to do.
fn explains(outcome: &Outcome, path: &str, advice: &[&str]) {
    let Outcome::Refused(words) = outcome else {
        panic!("{path}: {outcome:?}");
    };
    let last = words.lines().last().unwrap();
    assert!(last.starts_with("merlin: "), "{path}: {words}");
    assert!(last.contains(path), "{path}: {words}");
    assert!(
        advice.iter().any(|advice| last.contains(advice)),
        "{path}: {words}"
    );
}

const ADVICE: [&str; 2] = ["restore", "join again"];

#[tokio::test]
async fn what_says_which_node_this_is_must_be_whole() {
    for damage in Damage::ALL {
        let outcome = with_damage(|dir| damage.apply(&dir.join("node.json"))).await;
        explains(&outcome, "node.json", &ADVICE);
    }
    for damage in [Damage::Flip, Damage::Halve, Damage::Empty] {
        let outcome = with_damage(|dir| damage.apply(&dir.join("identity/node.pem"))).await;
        explains(&outcome, "node.pem", &ADVICE);
    }
}

/// A certificate that is gone is made again from the cluster's authority, which is replicated.
#[tokio::test]
async fn a_certificate_that_is_gone_is_made_again() {
    let outcome = with_damage(|dir| Damage::Remove.apply(&dir.join("identity/node.pem"))).await;
    assert!(matches!(outcome, Outcome::Whole), "{outcome:?}");
}

#[tokio::test]
async fn one_damaged_snapshot_costs_nothing_and_two_are_reported() {
    for damage in Damage::ALL {
        let newest = |dir: &Path| damage.apply(&snapshots(dir)[1]);
        let outcome = with_damage(newest).await;
        assert!(matches!(outcome, Outcome::Whole), "{damage:?}: {outcome:?}");
        let both = |dir: &Path| snapshots(dir).iter().for_each(|path| damage.apply(path));
        let outcome = with_damage(both).await;
        explains(&outcome, "snapshot", &ADVICE);
    }
}

/// The log's database, and the file beside it that knows how much was acknowledged. Damage may
/// miss what counts: then everything is there.
#[tokio::test]
async fn a_damaged_log_is_never_a_shorter_one() {
    for file in ["log/sled/db", "log/tip"] {
        for damage in Damage::ALL {
            let outcome = with_damage(|dir| damage.apply(&dir.join(file))).await;
            let lossless = matches!(damage, Damage::Flip | Damage::Halve);
            if !(lossless && matches!(outcome, Outcome::Whole)) {
                explains(&outcome, "/log", &ADVICE);
            }
        }
    }
    let gone = with_damage(|dir| fs::remove_dir_all(dir.join("log")).unwrap()).await;
    explains(&gone, "log", &ADVICE);
}

/// These only make a start faster or a restart smoother.
#[tokio::test]
async fn files_that_nothing_depends_on_may_be_damaged() {
    for damage in Damage::ALL {
        let mark = with_damage(|dir| damage.apply(&dir.join("log/committed"))).await;
        assert!(matches!(mark, Outcome::Whole), "{damage:?}: {mark:?}");
        let index = |dir: &Path| {
            let files = files(&dir.join("log/sled")).into_iter();
            let is_index = |path: &PathBuf| path.to_str().unwrap().contains("/snap.");
            files.filter(is_index).for_each(|path| damage.apply(&path));
        };
        let outcome = with_damage(index).await;
        assert!(matches!(outcome, Outcome::Whole), "{damage:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn what_a_newer_version_wrote_is_left_to_it() {
    let newer = |name: &'static str| {
        move |dir: &Path| {
            let path = dir.join(name);
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
        }
    };
    let outcome = with_damage(newer("node.json")).await;
    explains(&outcome, "node.json", &["run that version"]);
    let snapshots = |dir: &Path| {
        for path in snapshots(dir) {
            let mut bytes = fs::read(&path).unwrap();
            // The format follows eight bytes of magic.
            bytes[11] = 3;
            fs::write(&path, bytes).unwrap();
        }
    };
    let outcome = with_damage(snapshots).await;
    explains(&outcome, "snapshot", &["newer merlin"]);
}

#[tokio::test]
async fn a_second_daemon_in_a_directory_is_refused_and_harms_nobody() {
    let first = Setup::new();
    let mut daemon = first.start().await;
    let second = Setup::new();
    let args = second.args().into_iter().map(|arg| {
        if arg == second.data_dir().to_str().unwrap() {
            first.data_dir().display().to_string()
        } else {
            arg
        }
    });
    let refusal = Refusal::of(merlin().args(args));
    refusal.expect(
        1,
        &[
            "another merlin",
            "--data-dir",
            first.data_dir().to_str().unwrap(),
        ],
    );
    assert!(daemon.process.ended().is_none());
    assert_eq!(daemon.page("/health").await, "ok\n");
}

#[tokio::test]
async fn what_is_in_the_way_is_named_before_anything_is_made() {
    for taken in ["--api-addr", "--health-addr", "--peer-addr"] {
        let setup = Setup::new();
        let addr = match taken {
            "--api-addr" => setup.api.addr(),
            "--health-addr" => setup.http.addr(),
            _ => setup.peer.addr(),
        };
        let _listening = std::net::TcpListener::bind(addr).unwrap();
        let refusal = Refusal::of(merlin().args(setup.args()));
        refusal.expect(1, &[taken, &addr.to_string(), "in use"]);
        assert!(!setup.data_dir().exists(), "{taken}");
    }
    let setup = Setup::new();
    fs::write(setup.data_dir(), "a file").unwrap();
    Refusal::of(merlin().args(setup.args())).expect(1, &[setup.data_dir().to_str().unwrap()]);
}
