//! An etcd beside the daemons of the lab: a member on each of some hosts, on their control network.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::lab::{Host, Lab, Process};
use crate::poll::eventually;

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// How long members may take to find each other and a leader, on the one CPU of a guest.
const START: Duration = Duration::from_secs(30);

/// Some members, each on a host of its own.
#[derive(Debug)]
pub struct Etcd<'lab> {
    lab: &'lab Lab,
    hosts: &'lab [Host],
    members: Vec<Option<Process>>,
    directory: PathBuf,
    /// Counts the clusters that were begun: members of different ones do not talk.
    cluster: u32,
}

impl<'lab> Etcd<'lab> {
    /// Starts a member on each host, and waits until all answer.
    pub fn start(lab: &'lab Lab, hosts: &'lab [Host]) -> Result<Self> {
        let directory = lab.directory().join("etcd");
        fs::create_dir(&directory)?;
        let mut etcd = Self {
            lab,
            hosts,
            members: hosts.iter().map(|_| None).collect(),
            directory,
            cluster: 0,
        };
        etcd.start_all()?;
        Ok(etcd)
    }

    /// What `--store-endpoints` takes.
    #[must_use]
    pub fn endpoints(&self) -> String {
        let urls: Vec<_> = self
            .hosts
            .iter()
            .map(|host| url(host, CLIENT_PORT))
            .collect();
        urls.join(",")
    }

    /// As a crash of its host would.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        let process = self.members[member].take();
        process.context("this member does not run")?.kill()
    }

    pub fn kill_all(&mut self) -> Result<()> {
        (0..self.hosts.len()).try_for_each(|member| self.kill(member))
    }

    /// Stops a member where it is, with its connections open.
    pub fn freeze(&self, member: usize) -> Result<()> {
        self.signal(member, Signal::SIGSTOP)
    }

    pub fn thaw(&self, member: usize) -> Result<()> {
        self.signal(member, Signal::SIGCONT)
    }

    fn signal(&self, member: usize, signal: Signal) -> Result<()> {
        let process = self.members[member].as_ref();
        process.context("this member does not run")?.signal(signal)
    }

    /// Starts a member that was killed, with what it has on its disk.
    pub fn restart(&mut self, member: usize) -> Result<()> {
        self.launch(member)?;
        self.await_member(member)
    }

    /// Starts whatever does not run, and waits until all answer.
    pub fn start_all(&mut self) -> Result<()> {
        for member in 0..self.hosts.len() {
            if self.members[member].is_none() {
                self.launch(member)?;
            }
        }
        (0..self.hosts.len()).try_for_each(|member| self.await_member(member))
    }

    /// The member that leads.
    pub fn leader(&self) -> Result<usize> {
        for member in 0..self.hosts.len() {
            if self.members[member].is_some() {
                let status = self.control(member, &["endpoint", "status", "-w", "json"])?;
                let status: Value = serde_json::from_str(&status)?;
                let status = &status[0]["Status"];
                if status["leader"] == status["header"]["member_id"] {
                    return Ok(member);
                }
            }
        }
        bail!("no member leads")
    }

    /// Forgets every state before the present one; its revision.
    pub fn compact(&self, member: usize) -> Result<u64> {
        let status = self.control(member, &["endpoint", "status", "-w", "json"])?;
        let status: Value = serde_json::from_str(&status)?;
        let revision = status[0]["Status"]["header"]["revision"].as_u64();
        let revision = revision.context("a status without a revision")?;
        self.control(member, &["compact", &revision.to_string()])?;
        Ok(revision)
    }

    /// Where a member's clients find it.
    #[must_use]
    pub fn url(&self, member: usize) -> String {
        url(&self.hosts[member], CLIENT_PORT)
    }

    /// What each member counts.
    pub fn metrics(&self) -> Result<Vec<String>> {
        let page = |host: &Host| {
            let target = SocketAddr::new(host.control(), CLIENT_PORT);
            let asked = host.namespace.enter(|| {
                let timeout = Duration::from_secs(5);
                Ok(crate::peer::client::get(target, "/metrics", timeout)?)
            });
            asked.map(|(_, page)| page)
        };
        self.hosts.iter().map(page).collect()
    }

    /// Keeps a copy of everything in a file.
    pub fn save(&self, member: usize, file: &Path) -> Result<()> {
        let file = file.to_str().context("a name that is not text")?;
        self.control(member, &["snapshot", "save", file]).map(drop)
    }

    /// Begins another cluster at the same addresses: with what is in a copy, or with nothing.
    pub fn begin_anew(&mut self, copy: Option<&Path>) -> Result<()> {
        for member in 0..self.hosts.len() {
            if self.members[member].is_some() {
                self.kill(member)?;
            }
            fs::remove_dir_all(self.data(member))?;
        }
        self.cluster += 1;
        if let Some(copy) = copy {
            for (member, host) in self.hosts.iter().enumerate() {
                let mut restore = Command::new("etcdctl");
                restore
                    .env("ETCDCTL_API", "3")
                    .args(["snapshot", "restore"])
                    .arg(copy)
                    .arg("--data-dir")
                    .arg(self.data(member))
                    .args(self.membership(host));
                host.namespace.output(&mut restore)?;
            }
        }
        self.start_all()
    }

    fn data(&self, member: usize) -> PathBuf {
        self.directory.join(self.hosts[member].name())
    }

    fn launch(&mut self, member: usize) -> Result<()> {
        let host = &self.hosts[member];
        let mut command = Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(self.data(member))
            .args(self.membership(host))
            .args(["--initial-cluster-state", "new"])
            .args(["--listen-peer-urls", &url(host, PEER_PORT)])
            .args(["--listen-client-urls", &url(host, CLIENT_PORT)])
            .args(["--advertise-client-urls", &url(host, CLIENT_PORT)])
            .args(["--heartbeat-interval", "200", "--election-timeout", "2000"])
            .args(["--logger", "zap", "--log-level", "warn"]);
        self.members[member] = Some(self.lab.spawn(host, "etcd", &mut command)?);
        Ok(())
    }

    /// Who the members are, as `etcd` and `etcdctl snapshot restore` are told.
    fn membership(&self, host: &Host) -> Vec<String> {
        let peers = self
            .hosts
            .iter()
            .map(|host| format!("{}={}", host.name(), url(host, PEER_PORT)));
        let peers: Vec<_> = peers.collect();
        [
            ("--name", host.name().to_owned()),
            ("--initial-cluster", peers.join(",")),
            ("--initial-cluster-token", format!("lab-{}", self.cluster)),
            ("--initial-advertise-peer-urls", url(host, PEER_PORT)),
        ]
        .into_iter()
        .flat_map(|(option, value)| [option.to_owned(), value])
        .collect()
    }

    fn await_member(&mut self, member: usize) -> Result<()> {
        eventually(START, || {
            let process = self.members[member].as_mut();
            let process = process.context("it was not started")?;
            ensure!(process.is_running()?, "it ended:\n{}", process.log());
            // Linearizable, so a quorum and its leader are there.
            self.control(member, &["get", "/nothing"])
        })
        .with_context(|| format!("starting etcd on {}", self.hosts[member].name()))?;
        Ok(())
    }

    /// Runs etcd's own tool on the member's host.
    fn control(&self, member: usize, words: &[&str]) -> Result<String> {
        let host = &self.hosts[member];
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &url(host, CLIENT_PORT)])
            .args(["--command-timeout", "2s", "--dial-timeout", "2s"])
            .args(words);
        host.namespace.output(&mut command)
    }
}

fn url(host: &Host, port: u16) -> String {
    format!("http://{}:{port}", host.control())
}
