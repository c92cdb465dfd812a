//! One machine: its daemon, started and ended as an operator, a supervisor or an accident would.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::lab::Process;
use nix::sys::signal::Signal;

use super::disk::Disk;
use super::etcd::Member;
use super::{Clock, PRIVATE, Shape, Store, network};
use crate::ops::{Life, Moment, Node};

/// A supervisor waits so long before it starts a daemon that has ended by itself.
const RESTART_AFTER: Duration = Duration::from_millis(300);
/// A daemon that is told to end does so within this time; a busy machine is given more than the
/// daemon promises.
const STOP: Duration = Duration::from_secs(20);
/// Where Debian's libfaketime is.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

#[derive(Debug)]
pub struct Machine {
    pub number: Node,
    pub disk: Disk,
    /// Of the etcd that keeps the catalog, if there is one.
    pub member: Option<Member>,
    clock: Clock,
    merlin: PathBuf,
    environment: Vec<(String, String)>,
    home: PathBuf,
    log: PathBuf,
    movable_clock: bool,
    earlier: AtomicBool,
    daemon: Mutex<Daemon>,
}

#[derive(Debug, Default)]
struct Daemon {
    process: Option<Process>,
    /// Whether the supervisor starts it again when it ends.
    wanted: bool,
    started: Option<Instant>,
    ended: Option<Instant>,
    life: Life,
    ends: Vec<End>,
}

/// A daemon that ended by itself.
#[derive(Clone, Debug)]
pub struct End {
    pub at: Moment,
    pub life: Life,
    pub status: String,
}

impl Machine {
    pub(super) fn new(number: Node, shape: &Shape, disk: Disk, clock: Clock) -> Result<Self> {
        let member = (shape.store != Store::Raft).then(|| {
            let log = shape.folder.join(format!("n{number}.etcd.log"));
            Member::new(
                number,
                (shape.nodes, shape.store),
                disk.path().join("etcd"),
                log,
            )
        });
        let mut environment = shape.environment.clone();
        if let Some(member) = &member {
            environment.extend(member.settings());
        }
        let machine = Self {
            number,
            disk,
            member,
            clock,
            merlin: shape.merlin.clone(),
            environment,
            home: Path::new(PRIVATE).join(format!("n{number}")),
            log: shape.folder.join(format!("n{number}.log")),
            movable_clock: shape.movable_clocks,
            earlier: shape.earlier.into(),
            daemon: Mutex::default(),
        };
        machine.move_clock(0)?;
        // A run says nothing about the one before it.
        fs::write(&machine.log, "")?;
        Ok(machine)
    }

    #[must_use]
    pub fn name(&self) -> String {
        format!("n{}", self.number)
    }

    #[must_use]
    pub fn api(&self) -> SocketAddr {
        (network::address(self.number), 4282).into()
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.home.join("run/merlin.sock")
    }

    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.disk.path().join("data")
    }

    fn daemon(&self) -> MutexGuard<'_, Daemon> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often a daemon was started here.
    #[must_use]
    pub fn life(&self) -> Life {
        self.daemon().life
    }

    #[must_use]
    pub fn is_up(&self) -> bool {
        self.daemon().process.is_some()
    }

    // === the daemon ===

    /// Starts the daemon, and again whenever it ends by itself.
    pub fn start(&self) -> Result<()> {
        let mut daemon = self.daemon();
        daemon.wanted = true;
        self.launch(&mut daemon)
    }

    fn launch(&self, daemon: &mut Daemon) -> Result<()> {
        ensure!(daemon.process.is_none(), "{} runs already", self.name());
        let mut command = self.command();
        let place = network::namespace(self.number);
        daemon.process = Some(Process::spawn(&place, &mut command, self.log.clone())?);
        daemon.started = Some(Instant::now());
        daemon.life += 1;
        Ok(())
    }

    fn command(&self) -> Command {
        let at = network::address(self.number);
        let mut command = Command::new(&self.merlin);
        command
            .env_clear()
            .arg("run")
            .args(["--node-name", &self.name(), "--dataplane", "memory"])
            .arg("--data-dir")
            .arg(self.data())
            .arg("--run-dir")
            .arg(self.home.join("run"))
            .args(["--api-addr", &format!("{at}:4282"), "--api-insecure"])
            .args(["--health-addr", &format!("{at}:4283")])
            .args(["--peer-addr", &format!("{at}:4284")])
            .args(["--log-format", "json"])
            // Who joins while things break must get a vote in the lulls.
            .args(["--promote-after", "500ms"])
            // So that even a short run has snapshots to tear and to send.
            .env("MERLIN_SNAPSHOT_EVERY", "200")
            .envs(self.environment.iter().cloned());
        if self.is_earlier() {
            command.env("MERLIN_COMMAND_LEVEL", "1");
        }
        let token = self.token();
        if token.exists() {
            command.arg("--join-token-file").arg(token);
        }
        if self.movable_clock {
            command
                .env("LD_PRELOAD", FAKETIME)
                .env("FAKETIME_TIMESTAMP_FILE", self.clock_file())
                .env("FAKETIME_CACHE_DURATION", "1")
                // Timers are not the clock: they go on as on a host whose clock is set.
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                .env("DONT_FAKE_MONOTONIC", "1");
        }
        command
    }

    /// Starts what ended by itself. To be called often.
    pub fn supervise(&self) -> Result<()> {
        if let Some(member) = &self.member {
            member.supervise();
        }
        let mut daemon = self.daemon();
        let Some(process) = &mut daemon.process else {
            let due = daemon.ended.is_none_or(|at| at.elapsed() > RESTART_AFTER);
            if daemon.wanted && due {
                self.launch(&mut daemon)?;
            }
            return Ok(());
        };
        let Some(status) = process.exit_status()? else {
            return Ok(());
        };
        let (life, at) = (daemon.life, self.clock.now());
        let status = status.to_string();
        daemon.process = None;
        daemon.ended = Some(Instant::now());
        daemon.ends.push(End { at, life, status });
        Ok(())
    }

    /// Whether the daemon is one of an earlier version, or as good as.
    #[must_use]
    pub fn is_earlier(&self) -> bool {
        self.earlier.load(Ordering::Relaxed)
    }

    /// What is started from now on is of the latest version.
    pub fn upgrade(&self) {
        self.earlier.store(false, Ordering::Relaxed);
    }

    /// When and how daemons ended here by themselves.
    #[must_use]
    pub fn ends(&self) -> Vec<End> {
        self.daemon().ends.clone()
    }

    /// SIGKILL, and no supervisor.
    pub fn kill(&self) -> Result<()> {
        let mut daemon = self.daemon();
        daemon.wanted = false;
        if let Some(mut process) = daemon.process.take() {
            process.kill()?;
        }
        Ok(())
    }

    /// SIGTERM, and no supervisor. An error is the daemon's: it does not end, or not well.
    pub fn stop(&self) -> Result<()> {
        let mut daemon = self.daemon();
        daemon.wanted = false;
        if let Some(mut process) = daemon.process.take() {
            let status = process.terminate(STOP)?;
            if !status.success() {
                bail!("{} ended with {status} on SIGTERM", self.name());
            }
        }
        Ok(())
    }

    /// SIGHUP: has the daemon read its configuration again.
    pub fn hang_up(&self) -> Result<()> {
        let daemon = self.daemon();
        let process = daemon.process.as_ref().context("it does not run")?;
        process.signal(Signal::SIGHUP)
    }

    /// Stops the process in its tracks, and makes sure that it stands still.
    pub fn pause(&self) -> Result<()> {
        let daemon = self.daemon();
        stop_still(daemon.process.as_ref().context("it does not run")?)
    }

    pub fn resume(&self) -> Result<()> {
        let daemon = self.daemon();
        match &daemon.process {
            Some(process) => process.signal(Signal::SIGCONT),
            None => Ok(()),
        }
    }

    // === joining ===

    fn token(&self) -> PathBuf {
        self.home.join("token")
    }

    pub fn set_token(&self, token: &str) -> Result<()> {
        Ok(fs::write(self.token(), token)?)
    }

    /// Has this node's cluster let another one in.
    pub fn create_token(&self, name: &str) -> Result<String> {
        let said = self.cluster(&["token", "create", "--name", name])?;
        let token = said
            .split_whitespace()
            .find(|word| word.starts_with("mjt1."));
        let token = token.with_context(|| format!("no token in {said:?}"))?;
        Ok(token.to_owned())
    }

    /// Runs `merlin cluster ...` on this machine; it must succeed.
    pub fn cluster(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.merlin);
        command
            .env_clear()
            .arg("cluster")
            .args(args)
            .env("MERLIN_RUN_DIR", self.home.join("run"))
            .env("MERLIN_DATA_DIR", self.data());
        network::namespace(self.number).output(&mut command)
    }

    // === the clock ===

    fn clock_file(&self) -> PathBuf {
        self.home.join("clock")
    }

    /// Moves the machine's clock so many seconds away from the real one.
    pub fn move_clock(&self, seconds: i64) -> Result<()> {
        let staged = self.home.join("clock.new");
        fs::write(&staged, format!("{seconds:+}\n"))?;
        Ok(fs::rename(staged, self.clock_file())?)
    }

    #[must_use]
    pub fn has_movable_clock() -> bool {
        Path::new(FAKETIME).exists()
    }

    // === looking ===

    /// The next daemon begins a new log.
    pub fn set_log_aside(&self) -> Result<()> {
        let life = self.life();
        Ok(fs::rename(
            &self.log,
            self.log.with_extension(format!("{life}.log")),
        )?)
    }

    /// The whole response to a GET of the daemon's HTTP pages.
    pub fn http(&self, path: &str) -> Result<String> {
        let at = (network::address(self.number), 4283).into();
        let patience = Duration::from_secs(2);
        let mut stream = TcpStream::connect_timeout(&at, patience)?;
        stream.set_read_timeout(Some(patience))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        Ok(response)
    }

    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let from = log.lines().count().saturating_sub(15);
        let tail: Vec<_> = log.lines().skip(from).collect();
        tail.join("\n")
    }
}

/// SIGSTOP, and it has worked when this returns.
pub(super) fn stop_still(process: &Process) -> Result<()> {
    process.signal(Signal::SIGSTOP)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid()))?;
        let state = stat.rsplit(')').next().unwrap_or_default();
        if state.trim_start().starts_with('T') {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "SIGSTOP did not stop it");
        std::thread::sleep(Duration::from_millis(1));
    }
}
