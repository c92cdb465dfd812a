//! What can be said on the command line. Behaviour is elsewhere.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Deserialize;

use crate::cluster::ClusterArgs;
use crate::migrate::MigrateArgs;

/// Keeps this host's IPVS table as the cluster's catalog says.
///
/// Without a command it runs the daemon: with an empty data directory it makes itself a cluster of
/// one node, ready for `meradm service add`.
#[derive(Debug, Parser)]
#[command(name = "merlin", version = concat!("version ", env!("CARGO_PKG_VERSION")))]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = EXIT_STATUS, after_long_help = format!("{SIGNALS}\n\n{EXIT_STATUS}"))]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

const SIGNALS: &str = "\
Signals: SIGTERM and SIGINT stop the daemon within five seconds; the kernel keeps its rules. SIGHUP \
reads the log level and the certificate again.";

const EXIT_STATUS: &str = "\
Exit status: 0 fine, 1 failure, 2 usage, 3 no daemon reached or no answer to rely on, 4 rejected \
(invalid, not found, exists, conflict).";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon (the default)
    Run(Box<RunArgs>),
    /// Administer the cluster this host's daemon is a member of
    Cluster(Box<ClusterArgs>),
    /// Move the catalog from one store to another
    ///
    /// The source is only read, and can be changed meanwhile; the destination is made to hold the
    /// same, then both are compared. No kernel changes by it. The raft store is reached through a
    /// daemon that runs.
    Migrate(Box<MigrateArgs>),
    /// Print a completion script for a shell
    Completions { shell: Shell },
    /// Print the manual page, or write those of all commands into a directory
    Man {
        /// Directory to write merlin.8, merlin-run.8 and so on into
        #[arg(long, value_name = "DIR")]
        out_dir: Option<PathBuf>,
    },
}

#[derive(Debug, Default, Args)]
pub(crate) struct RunArgs {
    /// TOML file with settings, named as the flags are; flags and environment override it
    #[arg(long, env = "MERLIN_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

/// Settings of the daemon as given: every one may be absent.
///
/// One definition serves flags, environment and file, so they cannot drift apart.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Where the replicated log, snapshots and the node's identity are kept [default: /var/lib/merlin]
    #[arg(long, env = "MERLIN_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where the unix socket merlin.sock is put [default: /run/merlin]
    #[arg(long, env = "MERLIN_RUN_DIR", value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Name of this node in listings [default: the host name]
    #[arg(long, env = "MERLIN_NODE_NAME", value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    /// Address of the gRPC API [default: 127.0.0.1:4282]; clients on other hosts need TLS and a
    /// certificate, see `merlin cluster client create`
    #[arg(long, env = "MERLIN_API_ADDR", value_name = "IP:PORT")]
    pub(crate) api_addr: Option<SocketAddr>,
    /// Port of the gRPC API, keeping its address (earlier spelling of --api-addr)
    #[arg(long, env = "MERLIN_PORT", value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// Address other nodes connect to [default: 0.0.0.0:4284]
    #[arg(long, env = "MERLIN_PEER_ADDR", value_name = "IP:PORT")]
    pub(crate) peer_addr: Option<SocketAddr>,
    /// How other nodes reach this one, when that is not --peer-addr
    #[arg(long, env = "MERLIN_ADVERTISE_ADDR", value_name = "IP:PORT")]
    pub(crate) advertise_addr: Option<SocketAddr>,
    /// Address of /health, /alive, /ready and /metrics over HTTP [default: 0.0.0.0:4283]
    #[arg(long, env = "MERLIN_HEALTH_ADDR", value_name = "IP:PORT")]
    pub(crate) health_addr: Option<SocketAddr>,
    /// Port of /health and the others, keeping the address (earlier spelling of --health-addr)
    #[arg(long, env = "MERLIN_HEALTH_PORT", value_name = "PORT")]
    pub(crate) health_port: Option<u16>,
    /// Where the catalog is kept [default: raft, or auto with --store-endpoints]
    #[arg(long, env = "MERLIN_STORE_BACKEND", value_name = "BACKEND")]
    pub(crate) store_backend: Option<StoreBackend>,
    /// URLs of the etcd members
    #[arg(
        long,
        env = "MERLIN_STORE_ENDPOINTS",
        value_name = "URL,URL",
        value_delimiter = ','
    )]
    pub(crate) store_endpoints: Option<Vec<String>>,
    /// Prefix of merlin's keys in etcd [default: /merlin]
    #[arg(long, env = "MERLIN_STORE_PREFIX", value_name = "PREFIX")]
    pub(crate) store_prefix: Option<String>,
    /// File with certificates of the authorities that sign those of etcd, for https endpoints
    #[arg(long, env = "MERLIN_STORE_CA", value_name = "FILE")]
    pub(crate) store_ca: Option<PathBuf>,
    /// File with the certificate to show to etcd
    #[arg(long, env = "MERLIN_STORE_CERT", value_name = "FILE")]
    pub(crate) store_cert: Option<PathBuf>,
    /// File with the key of that certificate
    #[arg(long, env = "MERLIN_STORE_KEY", value_name = "FILE")]
    pub(crate) store_key: Option<PathBuf>,
    /// User to log in to etcd as
    #[arg(long, env = "MERLIN_STORE_USER", value_name = "NAME")]
    pub(crate) store_user: Option<String>,
    /// File with that user's password
    #[arg(long, env = "MERLIN_STORE_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) store_password_file: Option<PathBuf>,
    /// Percentage of the services that etcd may take away at once without an operator's word; 100 for
    /// all [default: 50]
    #[arg(long, env = "MERLIN_MAX_REMOVAL", value_name = "PERCENT")]
    pub(crate) max_removal: Option<u8>,
    /// What the catalog is programmed into; memory is for trying and tests [default: ipvs]
    #[arg(long, env = "MERLIN_DATAPLANE", value_name = "DATAPLANE")]
    pub(crate) dataplane: Option<DataplaneKind>,
    /// Whether to program the data plane and check health, or serve the API only [default: true]
    #[arg(
        long,
        env = "MERLIN_RECONCILE",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub(crate) reconcile: Option<bool>,
    /// How often the whole table is compared with the catalog [default: 1m]
    #[arg(
        long,
        env = "MERLIN_RECONCILE_SYNC_PERIOD",
        value_name = "DURATION",
        value_parser = parse_duration
    )]
    #[serde(deserialize_with = "deserialize_duration")]
    pub(crate) reconcile_sync_period: Option<Duration>,
    /// What becomes of services in the kernel that the catalog does not know [default: delete]
    #[arg(long, env = "MERLIN_FOREIGN", value_name = "POLICY")]
    pub(crate) foreign: Option<Foreign>,
    /// Let whoever reaches the API's port change the catalog, in plaintext
    #[arg(long, env = "MERLIN_API_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) api_insecure: Option<bool>,
    /// File with a token to join a cluster with; ignored by a node that is a member. A node that
    /// the cluster does not let in ends, and begins no cluster of its own
    #[arg(long, env = "MERLIN_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub(crate) join_token_file: Option<PathBuf>,
    /// The token itself; better by the environment, as anybody can read command lines
    #[arg(
        long,
        env = "MERLIN_JOIN_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        conflicts_with = "join_token_file"
    )]
    pub(crate) join_token: Option<String>,
    /// How patient nodes are with their leader: they replace it after one and a half to two times as
    /// long without a word [default: 450ms]
    #[arg(long, env = "MERLIN_ELECTION_TIMEOUT", value_name = "DURATION", value_parser = parse_duration)]
    #[serde(deserialize_with = "deserialize_duration")]
    pub(crate) election_timeout: Option<Duration>,
    /// How long a new node has to keep up before it gets its vote [default: 10s]
    #[arg(long, env = "MERLIN_PROMOTE_AFTER", value_name = "DURATION", value_parser = parse_duration)]
    #[serde(deserialize_with = "deserialize_duration")]
    pub(crate) promote_after: Option<Duration>,
    /// Take part as a version that knows commands up to this level would
    ///
    /// Keeps the way back to that version open while others are tried.
    #[arg(long, env = "MERLIN_COMMAND_LEVEL", value_name = "N", hide = true)]
    pub(crate) command_level: Option<u32>,
    /// Write a snapshot whenever so many entries were added to the log [default: 2000]
    ///
    /// Fewer than usual are for tests, which have no time to wait for one.
    #[arg(long, env = "MERLIN_SNAPSHOT_EVERY", value_name = "N", hide = true)]
    pub(crate) snapshot_every: Option<NonZeroU64>,
    /// Form of the log on standard error [default: text]
    #[arg(long, env = "MERLIN_LOG_FORMAT", value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// Export per-server metrics too; their number grows with the catalog
    #[arg(long, env = "MERLIN_METRICS_PER_SERVER", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) metrics_per_server: Option<bool>,
    /// Log details
    #[arg(long, env = "MERLIN_DEBUG", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) debug: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StoreBackend {
    Auto,
    Raft,
    Etcd3,
    Etcd2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DataplaneKind {
    Ipvs,
    Memory,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Foreign {
    Delete,
    Keep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not a duration such as 200ms, 5s or 1m30s"))?;
    if duration.is_zero() {
        Err("must be longer than 0s".to_owned())
    } else {
        Ok(duration)
    }
}

fn deserialize_duration<'de, D>(deserializer: D) -> Result<Option<Duration>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    parse_duration(&text)
        .map(Some)
        .map_err(serde::de::Error::custom)
}

/// Puts a second dash before long flags that have only one, as the earlier system took them.
pub(crate) fn modernise(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut command = Cli::command();
    // Only then are --help and --version among its arguments.
    command.build();
    let is_long = |name: &str| {
        command
            .get_arguments()
            .any(|arg| arg.get_long() == Some(name))
    };
    args.into_iter()
        .map(|arg| match arg.to_str() {
            Some(text) if text.starts_with('-') && !text.starts_with("--") => {
                let name = text[1..].split('=').next().unwrap_or_default();
                if name.len() > 1 && is_long(name) {
                    format!("-{text}").into()
                } else {
                    arg
                }
            }
            _ => arg,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(modernise(args.iter().map(OsString::from)))
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn merlin_and_merlin_run_take_the_same_flags() {
        let bare = parse(&["merlin", "--data-dir", "/d", "--reconcile=false"]).unwrap();
        let run = parse(&["merlin", "run", "--data-dir", "/d", "--reconcile=false"]).unwrap();
        let Some(Command::Run(run)) = run.command else {
            panic!("not a run command")
        };
        assert_eq!(bare.run.settings, run.settings);
        assert_eq!(run.settings.reconcile, Some(false));
    }

    #[test]
    fn earlier_spellings_still_work() {
        let cli = parse(&[
            "merlin",
            "-store-endpoints",
            "http://a:2379,http://b:2379",
            "-store-backend=etcd3",
            "-port=4000",
            "-health-port",
            "4001",
            "-reconcile-sync-period=1m30s",
            "-reconcile",
            "-debug",
        ])
        .unwrap();
        let settings = cli.run.settings;
        assert_eq!(
            settings.store_endpoints.unwrap(),
            ["http://a:2379".to_owned(), "http://b:2379".to_owned()]
        );
        assert_eq!(settings.store_backend, Some(StoreBackend::Etcd3));
        assert_eq!(
            (settings.port, settings.health_port),
            (Some(4000), Some(4001))
        );
        assert_eq!(
            settings.reconcile_sync_period,
            Some(Duration::from_secs(90))
        );
        assert_eq!(
            (settings.reconcile, settings.debug),
            (Some(true), Some(true))
        );
    }

    #[test]
    fn bad_values_are_usage_errors_that_say_what_is_valid() {
        for (args, hint) in [
            (["merlin", "--dataplane", "magic"], "memory"),
            (["merlin", "--reconcile-sync-period", "soon"], "1m30s"),
            (["merlin", "--reconcile-sync-period", "0s"], "longer"),
            (["merlin", "--api-addr", "4282"], "socket address"),
            (["merlin", "--port", "70000"], "65535"),
        ] {
            let error = parse(&args).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
}
