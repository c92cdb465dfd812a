//! Real etcd members for tests: on loopback addresses of their own, killed when dropped.

// Every test file takes what it needs.
#![allow(dead_code, reason = "shared by several test programs")]

pub(crate) mod link;
pub(crate) mod pki;

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use merlin_etcd::{Backend, Config, EtcdStore, Layout, MaxRemoval, Tls};
use merlin_model::{Command as Proposal, Mutation, Timestamp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// Long enough for anything that is going to happen on a loaded machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A loopback address that no other test program uses at this time.
pub(crate) fn address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let pid = std::process::id();
    let low = NEXT.fetch_add(1, Ordering::Relaxed);
    let [_, _, high, middle] = pid.to_be_bytes();
    Ipv4Addr::new(127, 100 + high % 100, middle, low)
}

/// Two ports. The first is only let go once there is the second: a free one is handed out again.
fn ports(address: Ipv4Addr) -> [u16; 2] {
    let listen = || TcpListener::bind((address, 0)).expect("a loopback port");
    let listeners = [listen(), listen()];
    listeners.map(|listener| listener.local_addr().expect("its address").port())
}

/// What a member is started with beyond the ordinary.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// The v2 keys API too.
    pub(crate) v2: bool,
    /// Where the members listen, if not on addresses of their own.
    pub(crate) address: Option<Ipv4Addr>,
    /// Server certificate, its key, and the authority that client certificates must come from.
    pub(crate) tls: Option<(PathBuf, PathBuf, PathBuf)>,
}

/// One etcd process. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) url: String,
    name: String,
    args: Vec<String>,
    child: Option<Child>,
    frozen: bool,
}

/// Members with one data set, and the directory of all of them.
#[derive(Debug)]
pub(crate) struct Etcd {
    pub(crate) members: Vec<Member>,
    pub(crate) dir: TempDir,
}

impl Etcd {
    pub(crate) async fn start() -> Self {
        Self::cluster(1, &Options::default()).await
    }

    pub(crate) async fn cluster(size: usize, options: &Options) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let scheme = if options.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let places: Vec<_> = (0..size)
            .map(|n| {
                let address = options.address.unwrap_or_else(address);
                let [client, peer] = ports(address);
                let client = format!("{scheme}://{address}:{client}");
                let peer = format!("http://{address}:{peer}");
                (format!("m{n}"), client, peer)
            })
            .collect();
        let initial: Vec<_> = places
            .iter()
            .map(|(name, _, peer)| format!("{name}={peer}"))
            .collect();
        let initial = initial.join(",");
        let members = places.into_iter().map(|(name, client, peer)| {
            let mut args: Vec<String> = [
                ("--name", name.as_str()),
                ("--data-dir", &dir.path().join(&name).display().to_string()),
                ("--listen-client-urls", &client),
                ("--advertise-client-urls", &client),
                ("--listen-peer-urls", &peer),
                ("--initial-advertise-peer-urls", &peer),
                ("--initial-cluster", &initial),
                ("--heartbeat-interval", "50"),
                ("--election-timeout", "500"),
                ("--log-level", "error"),
            ]
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value.to_owned()])
            .collect();
            // Its durability is not what is tested here.
            args.push("--unsafe-no-fsync".to_owned());
            if options.v2 {
                args.push("--enable-v2=true".to_owned());
            }
            if let Some((certificate, key, ca)) = &options.tls {
                args.push("--client-cert-auth".to_owned());
                for (flag, path) in [("cert", certificate), ("key", key), ("trusted-ca", ca)] {
                    args.push(format!("--{flag}-file={}", path.display()));
                }
            }
            Member {
                url: client,
                name,
                args,
                child: None,
                frozen: false,
            }
        });
        let mut etcd = Self {
            members: members.collect(),
            dir,
        };
        for member in &mut etcd.members {
            member.start();
        }
        etcd
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| member.url.clone())
            .collect()
    }

    pub(crate) fn member(&mut self) -> &mut Member {
        &mut self.members[0]
    }

    pub(crate) fn data_dir(&self, member: usize) -> PathBuf {
        self.dir.path().join(&self.members[member].name)
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            backend: Some(Backend::Etcd3),
            endpoints: self.urls(),
            layout: Layout::default(),
            tls: Tls::default(),
            user: None,
            keep: None,
            max_removal: MaxRemoval::ALL,
        }
    }

    /// A store that is up.
    pub(crate) async fn store(&self) -> EtcdStore {
        self.store_on(Backend::Etcd3).await
    }

    /// A store that is up and uses this API.
    pub(crate) async fn store_on(&self, backend: Backend) -> EtcdStore {
        let store = EtcdStore::open(Config {
            backend: Some(backend),
            ..self.config()
        });
        connected(&store).await;
        store
    }

    /// A client of the same etcd that knows nothing of merlin.
    pub(crate) async fn client(&self) -> etcd_client::Client {
        let until = Instant::now() + DEADLINE;
        loop {
            let attempt = async {
                let mut client = etcd_client::Client::connect(self.urls(), None).await?;
                client.get("/", None).await?;
                Ok::<_, etcd_client::Error>(client)
            };
            match attempt.await {
                Ok(client) => return client,
                Err(error) if Instant::now() > until => panic!("{error}"),
                Err(_) => sleep(POLL).await,
            }
        }
    }
}

impl Member {
    /// Starts it, or starts it again on the same data.
    pub(crate) fn start(&mut self) {
        self.kill();
        let child = Command::new("/usr/bin/etcd")
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd-server is installed: cargo xtask setup");
        self.child = Some(child);
    }

    pub(crate) fn set(&mut self, flag: &str) {
        self.args.push(flag.to_owned());
    }

    fn pid(&self) -> Option<Pid> {
        let id = self.child.as_ref()?.id();
        Some(Pid::from_raw(i32::try_from(id).expect("a process id")))
    }

    pub(crate) fn freeze(&mut self) {
        self.frozen = true;
        kill(self.pid().expect("it runs"), Signal::SIGSTOP).expect("it can be stopped");
    }

    pub(crate) fn thaw(&mut self) {
        self.frozen = false;
        kill(self.pid().expect("it runs"), Signal::SIGCONT).expect("it can go on");
    }

    /// At once, as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.frozen = false;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

const POLL: Duration = Duration::from_millis(20);

/// Waits for something to become so.
#[track_caller]
pub(crate) fn eventually<'a, C>(what: &'a str, mut check: C) -> impl Future<Output = ()> + 'a
where
    C: FnMut() -> bool + 'a,
{
    let caller = std::panic::Location::caller();
    async move {
        let until = Instant::now() + DEADLINE;
        while !check() {
            assert!(Instant::now() < until, "{caller}: never: {what}");
            sleep(POLL).await;
        }
    }
}

pub(crate) async fn connected(store: &EtcdStore) {
    let until = Instant::now() + DEADLINE;
    while let Some(reason) = store.status().unavailable {
        assert!(Instant::now() < until, "never connected: {reason}");
        sleep(POLL).await;
    }
}

/// Names of the services a store knows of.
pub(crate) fn names(store: &EtcdStore) -> Vec<String> {
    let catalog = Arc::clone(&store.catalog().borrow());
    catalog
        .services()
        .map(|service| service.id.to_string())
        .collect()
}

pub(crate) fn command(mutation: Mutation) -> Proposal {
    Proposal::new(Timestamp::default(), mutation)
}
