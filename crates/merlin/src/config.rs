//! The daemon's configuration: flags over environment over file over defaults.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};

use merlin_raft::Level;

use crate::cli::{DataplaneKind, Foreign, LogFormat, RunArgs, Settings};

mod etcd;

pub(crate) use etcd::resolve as etcd;

/// Everything the daemon needs to know, complete and checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) node_name: String,
    pub(crate) api_addr: SocketAddr,
    /// Whether other hosts may speak plaintext to the API.
    pub(crate) api_insecure: bool,
    /// Where the catalog is kept, unless it is in raft.
    pub(crate) etcd: Option<merlin_etcd::Config>,
    pub(crate) peer_addr: SocketAddr,
    /// How other nodes reach this one.
    pub(crate) advertise_addr: SocketAddr,
    /// Nobody said so.
    pub(crate) advertise_guessed: bool,
    pub(crate) health_addr: SocketAddr,
    pub(crate) dataplane: DataplaneKind,
    pub(crate) reconcile: bool,
    pub(crate) reconcile_sync_period: Duration,
    pub(crate) foreign: Foreign,
    pub(crate) join_token: Option<TokenSource>,
    pub(crate) election_timeout: Duration,
    pub(crate) promote_after: Duration,
    pub(crate) command_level: Level,
    pub(crate) snapshot_every: Option<NonZeroU64>,
    pub(crate) log_format: LogFormat,
    pub(crate) metrics_per_server: bool,
    pub(crate) debug: bool,
}

/// Where a token to join with comes from.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum TokenSource {
    File(PathBuf),
    Text(String),
}

impl std::fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            // A secret.
            Self::Text(_) => f.write_str("Text"),
        }
    }
}

impl Config {
    pub(crate) const API_PORT: u16 = 4282;
    const HEALTH_PORT: u16 = 4283;
    const PEER_PORT: u16 = 4284;

    /// Joins the command line and its environment with the file they name.
    pub(crate) fn load(args: &RunArgs) -> anyhow::Result<Self> {
        let file = match &args.config {
            Some(path) => read_file(path)?,
            None => Settings::default(),
        };
        Self::resolve(args.settings.clone().over(file), host_name)
    }

    fn resolve(
        given: Settings,
        host_name: impl FnOnce() -> anyhow::Result<String>,
    ) -> anyhow::Result<Self> {
        let etcd = etcd(&given)?;
        ensure!(
            etcd.is_none() || (given.join_token_file.is_none() && given.join_token.is_none()),
            "--join-token-file, --join-token: nodes that keep their catalog in etcd join no cluster; remove it"
        );
        let node_name = match given.node_name {
            Some(name) => name,
            None => host_name()?,
        };
        ensure!(
            !node_name.is_empty() && !node_name.contains(char::is_whitespace),
            "--node-name: must be a name without spaces"
        );
        let addr = |given: Option<SocketAddr>, port: Option<u16>, ip, default| {
            let mut addr = given.unwrap_or(SocketAddr::new(IpAddr::V4(ip), default));
            if let Some(port) = port {
                addr.set_port(port);
            }
            addr
        };
        let local = Ipv4Addr::LOCALHOST;
        let any = Ipv4Addr::UNSPECIFIED;
        // On etcd there is no authority to make certificates, and the earlier system answered
        // everybody: whoever replaces it must not find a door closed.
        let api_insecure = given.api_insecure.unwrap_or(etcd.is_some());
        let api_ip = if etcd.is_some() && api_insecure {
            any
        } else {
            local
        };
        let api_addr = addr(given.api_addr, given.port, api_ip, Self::API_PORT);
        // A dead leader is replaced within three times this, and a disk may stall for as long.
        let command_level = match given.command_level {
            None => Level::LATEST,
            Some(level) => Level::new(level).with_context(|| {
                let (first, latest) = (Level::FIRST, Level::LATEST);
                format!("--command-level: this version knows {first} to {latest}, not {level}")
            })?,
        };
        let election_timeout = given.election_timeout.unwrap_or(Duration::from_millis(450));
        ensure!(
            (Duration::from_millis(100)..=Duration::from_secs(60)).contains(&election_timeout),
            "--election-timeout: must be 100ms to 60s"
        );
        let peer_addr = addr(given.peer_addr, None, any, Self::PEER_PORT);
        let advertise_guessed = given.advertise_addr.is_none() && peer_addr.ip().is_unspecified();
        let advertise_addr = match given.advertise_addr {
            Some(addr) => addr,
            None if advertise_guessed => {
                SocketAddr::new(own_address(peer_addr.ip()), peer_addr.port())
            }
            None => peer_addr,
        };
        ensure!(
            !advertise_addr.ip().is_unspecified() && advertise_addr.port() != 0,
            "--advertise-addr: {advertise_addr} is not an address others can connect to"
        );
        Ok(Self {
            data_dir: given.data_dir.unwrap_or_else(|| "/var/lib/merlin".into()),
            run_dir: given.run_dir.unwrap_or_else(|| "/run/merlin".into()),
            node_name,
            api_addr,
            api_insecure,
            etcd,
            peer_addr,
            advertise_addr,
            advertise_guessed,
            health_addr: addr(given.health_addr, given.health_port, any, Self::HEALTH_PORT),
            dataplane: given.dataplane.unwrap_or(DataplaneKind::Ipvs),
            reconcile: given.reconcile.unwrap_or(true),
            reconcile_sync_period: given
                .reconcile_sync_period
                .unwrap_or(Duration::from_secs(60)),
            foreign: given.foreign.unwrap_or(Foreign::Delete),
            join_token: match (given.join_token, given.join_token_file) {
                (Some(token), _) => Some(TokenSource::Text(token)),
                (None, file) => file.map(TokenSource::File),
            },
            election_timeout,
            promote_after: given.promote_after.unwrap_or(Duration::from_secs(10)),
            command_level,
            snapshot_every: given.snapshot_every,
            log_format: given.log_format.unwrap_or(LogFormat::Text),
            metrics_per_server: given.metrics_per_server.unwrap_or(false),
            debug: given.debug.unwrap_or(false),
        })
    }
}

impl Config {
    /// Where the API can be reached from other hosts.
    pub(crate) fn remote_api(&self) -> Option<SocketAddr> {
        match self.api_addr.ip() {
            ip if ip.is_loopback() => None,
            ip if ip.is_unspecified() => Some(SocketAddr::new(
                self.advertise_addr.ip(),
                self.api_addr.port(),
            )),
            _ => Some(self.api_addr),
        }
    }
}

impl Settings {
    /// What is set here, and otherwise what is set in `below`.
    fn over(self, mut below: Self) -> Self {
        // An address is complete: a port from a lower layer must not change it.
        below.port = below.port.filter(|_| self.api_addr.is_none());
        below.health_port = below.health_port.filter(|_| self.health_addr.is_none());
        macro_rules! layer {
            ($($field:ident),* $(,)?) => { Self { $($field: self.$field.or(below.$field)),* } };
        }
        layer!(
            data_dir,
            run_dir,
            node_name,
            api_addr,
            port,
            peer_addr,
            advertise_addr,
            health_addr,
            health_port,
            store_backend,
            store_endpoints,
            store_prefix,
            store_ca,
            store_cert,
            store_key,
            store_user,
            store_password_file,
            max_removal,
            dataplane,
            reconcile,
            reconcile_sync_period,
            foreign,
            api_insecure,
            join_token_file,
            join_token,
            election_timeout,
            promote_after,
            command_level,
            snapshot_every,
            log_format,
            metrics_per_server,
            debug,
        )
    }
}

fn read_file(path: &Path) -> anyhow::Result<Settings> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("--config: reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("--config: {}", path.display()))
}

/// The address this host reaches others from, or loopback when it reaches none. Connecting a
/// datagram socket looks up the route and sends nothing; 192.0.2.1 and 2001:db8::1 are
/// documentation addresses (RFC 5737, RFC 3849) and stand for anywhere.
fn own_address(family_of: IpAddr) -> IpAddr {
    let (any, anywhere, loopback) = match family_of {
        IpAddr::V4(_) => ("0.0.0.0:0", "192.0.2.1:9", IpAddr::V4(Ipv4Addr::LOCALHOST)),
        IpAddr::V6(_) => ("[::]:0", "[2001:db8::1]:9", IpAddr::V6(Ipv6Addr::LOCALHOST)),
    };
    let route = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(anywhere)?;
        socket.local_addr()
    });
    route.map_or(loopback, |from| from.ip())
}

fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("reading the host name")?;
    name.into_string()
        .ok()
        .context("the host name is not UTF-8: set --node-name")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(settings: Settings) -> anyhow::Result<Config> {
        Config::resolve(settings, || Ok("host".to_owned()))
    }

    #[test]
    fn nothing_given_is_the_documented_default() {
        let config = resolve(Settings::default()).unwrap();
        assert_eq!(config.api_addr.to_string(), "127.0.0.1:4282");
        assert_eq!(config.peer_addr.to_string(), "0.0.0.0:4284");
        assert_eq!(config.health_addr.to_string(), "0.0.0.0:4283");
        assert_eq!(config.data_dir, Path::new("/var/lib/merlin"));
        assert_eq!(config.node_name, "host");
        assert!(config.reconcile);
    }

    #[test]
    fn flags_beat_the_file_and_the_file_beats_defaults() {
        let file: Settings = toml::from_str(
            "data-dir = '/file'\nnode-name = 'file'\nreconcile-sync-period = '5s'\nport = 4000",
        )
        .unwrap();
        let flags = Settings {
            node_name: Some("flag".into()),
            ..Settings::default()
        };
        let config = resolve(flags.over(file)).unwrap();
        assert_eq!(config.node_name, "flag");
        assert_eq!(config.data_dir, Path::new("/file"));
        assert_eq!(config.reconcile_sync_period, Duration::from_secs(5));
        assert_eq!(config.api_addr.to_string(), "127.0.0.1:4000");
    }

    #[test]
    fn a_port_from_the_file_does_not_change_an_address_from_a_flag() {
        let flags: Settings = toml::from_str("api-addr = '127.0.0.1:1'").unwrap();
        let file: Settings = toml::from_str("port = 2\nhealth-port = 3").unwrap();
        let config = resolve(flags.over(file)).unwrap();
        assert_eq!((config.api_addr.port(), config.health_addr.port()), (1, 3));
    }

    #[test]
    fn an_unknown_key_in_the_file_is_named() {
        let error = toml::from_str::<Settings>("data_dri = '/x'").unwrap_err();
        assert!(error.to_string().contains("data_dri"), "{error}");
    }

    #[test]
    fn other_hosts_are_answered_by_tls_unless_plaintext_is_asked_for() {
        let opened = |api_insecure| {
            let settings = Settings {
                api_addr: Some("0.0.0.0:4282".parse().unwrap()),
                advertise_addr: Some("192.0.2.1:4284".parse().unwrap()),
                api_insecure,
                ..Settings::default()
            };
            resolve(settings).unwrap()
        };
        assert!(!opened(None).api_insecure);
        assert!(opened(Some(true)).api_insecure);
        let remote = opened(None).remote_api();
        assert_eq!(remote, Some("192.0.2.1:4282".parse().unwrap()));
        assert_eq!(resolve(Settings::default()).unwrap().remote_api(), None);
    }

    #[test]
    fn on_etcd_the_api_is_open_as_it_was_unless_told_otherwise() {
        let on_etcd = |api_insecure| Settings {
            store_endpoints: Some(vec!["http://127.0.0.1:2379".to_owned()]),
            api_insecure,
            ..Settings::default()
        };
        let open = resolve(on_etcd(None)).unwrap();
        assert_eq!(open.api_addr.to_string(), "0.0.0.0:4282");
        assert!(open.api_insecure);
        let closed = resolve(on_etcd(Some(false))).unwrap();
        assert_eq!(closed.api_addr.to_string(), "127.0.0.1:4282");
        assert!(!closed.api_insecure);
    }
}
