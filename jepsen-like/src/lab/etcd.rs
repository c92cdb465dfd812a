//! A machine's member of the etcd that keeps the catalog, where that is not merlin's own store. Its
//! data is on the machine's disk, so whatever becomes of the one becomes of the other.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::lab::Process;
use nix::sys::signal::Signal;

use super::{Store, machine, network};
use crate::ops::Node;

pub const CLIENTS: u16 = 2379;
pub const PEERS: u16 = 2380;

/// For members to find each other and a leader.
const START: Duration = Duration::from_secs(40);

/// A supervisor waits so long before it starts a member that has ended by itself.
const RESTART_AFTER: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub struct Member {
    node: Node,
    nodes: Node,
    store: Store,
    data: PathBuf,
    log: PathBuf,
    process: Mutex<Option<Process>>,
    /// When it was seen that it had ended by itself.
    ended: Mutex<Option<Instant>>,
    /// Whether it was added to a cluster that was there before it.
    added: AtomicBool,
}

fn url(node: Node, port: u16) -> String {
    format!("http://{}:{port}", network::address(node))
}

impl Member {
    pub(super) fn new(
        node: Node,
        (nodes, store): (Node, Store),
        data: PathBuf,
        log: PathBuf,
    ) -> Self {
        Self {
            node,
            nodes,
            store,
            data,
            log,
            process: Mutex::default(),
            ended: Mutex::default(),
            added: AtomicBool::new(false),
        }
    }

    /// What a daemon is told of the members, the one beside it first. Clients change most of the
    /// few services there are within seconds, so a node that was away may not wait for an operator
    /// to let that pass.
    pub(super) fn settings(&self) -> [(String, String); 3] {
        let others = (1..=self.nodes).filter(|node| *node != self.node);
        let members = std::iter::once(self.node).chain(others);
        let urls: Vec<_> = members.map(|node| url(node, CLIENTS)).collect();
        [
            ("MERLIN_STORE_ENDPOINTS".to_owned(), urls.join(",")),
            // Called the same by the daemon.
            (
                "MERLIN_STORE_BACKEND".to_owned(),
                crate::name_of(self.store),
            ),
            ("MERLIN_MAX_REMOVAL".to_owned(), "100".to_owned()),
        ]
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn start(&self) -> Result<()> {
        let mut process = self.process();
        ensure!(process.is_none(), "this member runs already");
        self.launch(&mut process)
    }

    /// Starts it again if it has ended by itself, as it does when it cannot use its disk. To be
    /// called often; what fails is tried again then.
    pub(super) fn supervise(&self) {
        let mut process = self.process();
        let ended = |process: &mut Process| !process.is_running().unwrap_or(true);
        if !process.as_mut().is_some_and(ended) {
            return;
        }
        let mut since = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if since.get_or_insert_with(Instant::now).elapsed() > RESTART_AFTER
            && self.launch(&mut process).is_ok()
        {
            *since = None;
        }
    }

    fn launch(&self, process: &mut Option<Process>) -> Result<()> {
        let cluster = (1..=self.nodes).map(|node| format!("n{node}={}", url(node, PEERS)));
        let cluster: Vec<_> = cluster.collect();
        let mut command = Command::new("etcd");
        command
            .arg("--name")
            .arg(format!("n{}", self.node))
            .arg("--data-dir")
            .arg(&self.data)
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--initial-cluster-state", self.cluster_state()])
            .args(["--initial-advertise-peer-urls", &url(self.node, PEERS)])
            .args(["--listen-peer-urls", &url(self.node, PEERS)])
            .args(["--listen-client-urls", &url(self.node, CLIENTS)])
            .args(["--advertise-client-urls", &url(self.node, CLIENTS)])
            .args(["--heartbeat-interval", "100", "--election-timeout", "800"])
            .args(["--logger", "zap", "--log-level", "error"])
            .arg(format!("--enable-v2={}", self.store == Store::Etcd2));
        let place = network::namespace(self.node);
        *process = Some(Process::spawn(&place, &mut command, self.log.clone())?);
        Ok(())
    }

    fn cluster_state(&self) -> &'static str {
        match self.added.load(Ordering::Relaxed) {
            true => "existing",
            false => "new",
        }
    }

    /// Another member, with nothing on its disk, in place of this one, which is dead. The cluster
    /// is told by `teller`, whose member lives. What fails can be tried again.
    pub fn replace(&self, teller: &Self) -> Result<()> {
        let (name, at) = (format!("n{}", self.node), url(self.node, PEERS));
        // As in `8e9e05c52164694d, started, n1, http://..., http://..., false`; without a name
        // before its first start.
        let listed = teller.control(&["member", "list"])?;
        let mut lines = listed
            .lines()
            .map(|line| line.split(", ").collect::<Vec<_>>());
        let present = lines.find(|words| words.get(3) == Some(&at.as_str()));
        let is_added = match present.as_deref() {
            Some([id, "started", ..]) => {
                teller.control(&["member", "remove", id])?;
                false
            }
            Some(_) => true,
            None => false,
        };
        if !is_added {
            if self.data.exists() {
                std::fs::remove_dir_all(&self.data)?;
            }
            teller.control(&["member", "add", &name, &format!("--peer-urls={at}")])?;
        }
        self.added.store(true, Ordering::Relaxed);
        self.start()
    }

    /// Waits until it answers, and so has a quorum.
    pub fn await_ready(&self) -> Result<()> {
        let deadline = Instant::now() + START;
        while let Err(error) = self.control(&["get", "/nothing"]) {
            ensure!(
                Instant::now() < deadline,
                "etcd on n{} does not answer: {error:#}",
                self.node
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    pub fn kill(&self) -> Result<()> {
        match self.process().take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    pub fn pause(&self) -> Result<()> {
        machine::stop_still(
            self.process()
                .as_ref()
                .context("this member does not run")?,
        )
    }

    pub fn resume(&self) -> Result<()> {
        match self.process().as_ref() {
            Some(process) => process.signal(Signal::SIGCONT),
            None => Ok(()),
        }
    }

    /// Whether this member leads. None if it does not answer.
    #[must_use]
    pub fn leads(&self) -> Option<bool> {
        let status = self.status().ok()?;
        Some(status["leader"] == status["header"]["member_id"])
    }

    fn status(&self) -> Result<serde_json::Value> {
        let said = self.control(&["endpoint", "status", "-w", "json"])?;
        let mut said: serde_json::Value = serde_json::from_str(&said)?;
        Ok(said[0]["Status"].take())
    }

    /// Forgets every state before the present one.
    pub fn compact(&self) -> Result<u64> {
        let status = self.status()?;
        let Some(revision) = status["header"]["revision"].as_u64() else {
            bail!("a status without a revision: {status}");
        };
        self.control(&["compact", &revision.to_string()])?;
        Ok(revision)
    }

    fn control(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &url(self.node, CLIENTS)])
            .args(["--command-timeout", "5s", "--dial-timeout", "1s"])
            .args(words);
        network::namespace(self.node).output(&mut command)
    }
}
