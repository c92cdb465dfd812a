//! A load-balanced network of namespaces, inside a guest.
//!
//! ```text
//!   client ──┐                                   VIPs: routed, on `lo` of every balancer
//!            │ front 10.1.0.0/24  fd01::/64            and of every real server
//!   lb1..lbN ┼──────────────┐
//!     │  │   │ back  10.2.0.0/24  fd02::/64
//!     │  └───┼──────────┐   │
//!     │      │          │   │
//!     └──────│───────┐  rs1..rsM
//!            control 10.3.0.0/24 (balancers only)
//! ```
//!
//! * The address by which a rule names a real server decides what works: by its *back* address,
//!   masquerading (its answers go back through the chosen balancer); by its *front* address,
//!   direct routing and tunnels (its answers go straight to the client).
//! * The client's packets to a VIP go through the balancer chosen by [`Lab::route_through`]; to
//!   begin with, the first. [`Lab::route_through_all`] spreads its connections over all of them.
//! * Balancers talk to each other on *control*, so that cutting it ([`Lab::cut_control`]) leaves
//!   the traffic alone.
//!
//! Invariants: a lab's namespaces are new, so it starts with an empty IPVS table and default
//! sysctls; dropping it ends its processes first, then deletes its namespaces. There is one lab at
//! a time in a guest.

mod address;
mod ipvs;
mod namespace;
mod network;
mod process;

use std::cell::RefCell;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::poll::eventually;
use crate::programs;

pub use address::{Family, vip};
pub use ipvs::{WeightChanges, WeightWatch};
pub use namespace::Namespace;
pub use process::Process;

/// Logs of a lab's processes, and the real servers' sick files.
const DIRECTORY: &str = "/run/lab";

/// How much of a failed case's logs is worth reading.
const LOG_TAIL_LINES: usize = 60;

/// How long a test server may take to listen.
const SERVER_START: Duration = Duration::from_secs(5);

/// What everything in a lab needs of the kernel. Schedulers are left to be loaded on use.
const MODULES: [&str; 7] = [
    "bridge",
    "veth",
    "dummy",
    "ipv6",
    "ipip",
    "ip6_tunnel",
    "ip_vs",
];

/// How many hosts of each kind.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub balancers: u8,
    pub servers: u8,
}

/// A host of the lab.
#[derive(Debug)]
pub struct Host {
    pub namespace: Namespace,
    number: u8,
}

impl Host {
    #[must_use]
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    /// On the network of the client.
    #[must_use]
    pub fn front(&self, family: Family) -> IpAddr {
        address::FRONT.address(family, self.number)
    }

    /// On the network behind the balancers.
    #[must_use]
    pub fn back(&self, family: Family) -> IpAddr {
        address::BACK.address(family, self.number)
    }

    /// On the network among the balancers.
    #[must_use]
    pub fn control(&self) -> IpAddr {
        address::CONTROL.address(Family::V4, self.number)
    }
}

/// The network and everything running in it.
#[derive(Debug)]
pub struct Lab {
    pub client: Host,
    /// `lb1`, `lb2`, ...
    pub balancers: Vec<Host>,
    /// `rs1`, `rs2`, ...
    pub servers: Vec<Host>,
    wire: Namespace,
    running: RefCell<Vec<Process>>,
    directory: PathBuf,
}

impl Lab {
    /// Builds the network.
    pub fn new(shape: Shape) -> Result<Self> {
        ensure!(
            crate::guest::inside(),
            "a lab can only be built inside a guest"
        );
        load_modules()?;
        let directory = PathBuf::from(DIRECTORY);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir(&directory)?;
        let host = |(name, number): (String, u8)| Host {
            namespace: Namespace::named(name),
            number,
        };
        let lab = Self {
            client: host(address::client()),
            balancers: (1..=shape.balancers)
                .map(|n| host(address::balancer(n)))
                .collect(),
            servers: (1..=shape.servers)
                .map(|n| host(address::server(n)))
                .collect(),
            wire: Namespace::named(network::WIRE.to_owned()),
            running: RefCell::default(),
            directory,
        };
        network::build(&lab).context("building the lab's network")?;
        Ok(lab)
    }

    /// Where everything of this lab is kept; a file system in memory, emptied by the next lab.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Sends the client's packets for VIPs to this balancer, and back through it what real servers
    /// answer from their back addresses. Connections follow their packets.
    pub fn route_through(&self, balancer: &Host) -> Result<()> {
        network::route_through(self, balancer)
    }

    /// Spreads the client's connections over all balancers, as the routers before them would.
    /// Real servers have to answer straight to the client: by direct routing or through tunnels.
    pub fn route_through_all(&self) -> Result<()> {
        network::spread(self)
    }

    /// Unplugs a balancer from the control network; traffic and real servers stay in reach.
    pub fn cut_control(&self, balancer: &Host) -> Result<()> {
        network::plug(&self.wire, balancer, false)
    }

    /// Undoes [`Lab::cut_control`].
    pub fn mend_control(&self, balancer: &Host) -> Result<()> {
        network::plug(&self.wire, balancer, true)
    }

    /// Starts a process on a host; it ends with the lab. Its output goes to a log that
    /// [`Lab::logs`] shows.
    pub fn spawn(&self, host: &Host, name: &str, command: &mut Command) -> Result<Process> {
        let log = self.directory.join(format!("{}-{name}.log", host.name()));
        Process::spawn(&host.namespace, command, log)
    }

    /// Starts a test server on every real server, each answering with its host's name, and waits
    /// until they listen.
    pub fn serve(&self, port: u16) -> Result<()> {
        let peer = programs::locate("e2e-peer")?;
        let mut started = Vec::new();
        for host in &self.servers {
            let mut command = Command::new(&peer);
            command
                .args(["server", "--name", host.name(), "--port", &port.to_string()])
                .arg("--sick-file")
                .arg(self.sick_file(host));
            started.push(self.spawn(host, &format!("server-{port}"), &mut command)?);
        }
        for server in &mut started {
            eventually(SERVER_START, || {
                ensure!(server.is_running()?, "it ended:\n{}", server.log());
                ensure!(
                    server.log().contains("ready"),
                    "it is not ready:\n{}",
                    server.log()
                );
                Ok(())
            })
            .context("starting a test server")?;
        }
        self.running.borrow_mut().extend(started);
        Ok(())
    }

    /// Makes a real server answer its health checks with 503, or with 200 again.
    pub fn set_healthy(&self, server: &Host, healthy: bool) -> Result<()> {
        let file = self.sick_file(server);
        if healthy {
            fs::remove_file(&file)
        } else {
            fs::write(&file, "")
        }
        .with_context(|| format!("switching {} by {}", server.name(), file.display()))
    }

    fn sick_file(&self, host: &Host) -> PathBuf {
        self.directory.join(format!("{}.sick", host.name()))
    }

    /// The end of every log that says anything, for the report of a failed case.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut files: Vec<PathBuf> = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .collect();
        files.sort();
        files.iter().map(|file| log_section(file)).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.running.get_mut().clear();
        // The next lab would fail to build, and say so.
        let _ = network::tear_down(self);
    }
}

fn log_section(file: &Path) -> String {
    let log = process::read_log(file);
    let lines: Vec<&str> = log.lines().collect();
    if lines.is_empty() {
        return String::new();
    }
    let from = lines.len().saturating_sub(LOG_TAIL_LINES);
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    format!(
        "--- {name}, lines {}..{}\n{}\n",
        from + 1,
        lines.len(),
        lines[from..].join("\n")
    )
}

fn load_modules() -> Result<()> {
    static LOADED: Once = Once::new();
    let mut outcome = Ok(());
    LOADED.call_once(|| {
        let mut modprobe = Command::new("modprobe");
        outcome = namespace::checked_output(modprobe.arg("-a").args(MODULES)).map(drop);
    });
    outcome
}
