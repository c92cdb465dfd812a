//! What can be said on the command line. Behaviour is elsewhere.

pub(crate) mod server;
pub(crate) mod service;
pub(crate) mod values;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::duration;

/// Administers the virtual services of a merlin cluster.
///
/// Any node takes any command. Without -H or -P the node on this host is asked, through its unix
/// socket or else on localhost:4282. Nodes on other hosts are asked by TLS, after `meradm login`.
#[derive(Debug, Parser)]
#[command(name = "meradm", version = concat!("version ", env!("CARGO_PKG_VERSION")))]
#[command(after_help = EXIT_STATUS)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_STATUS: &str = "\
Exit status: 0 fine, 1 failure, 2 usage, 3 no node reached or no answer to rely on, 4 rejected \
(invalid, not found, exists, conflict).";

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Node to ask, by name or address
    #[arg(short = 'H', long, global = true, value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// Port of the node's API [default: 4282]
    #[arg(short = 'P', long, global = true, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// Unix socket of the node to ask
    #[arg(long, global = true, value_name = "PATH", conflicts_with_all = ["host", "port"])]
    pub(crate) socket: Option<PathBuf>,
    /// Context to use, as `meradm contexts` lists them [default: the one last chosen]
    #[arg(
        long,
        env = "MERLIN_CONTEXT",
        global = true,
        value_name = "NAME",
        hide_env_values = true,
        conflicts_with = "socket"
    )]
    pub(crate) context: Option<String>,
    /// Speak plaintext with a node on another host, although there is a context
    #[arg(long, global = true, conflicts_with = "context")]
    pub(crate) plaintext: bool,
    /// Directory of the local node's unix socket
    #[arg(
        long,
        env = "MERLIN_RUN_DIR",
        global = true,
        value_name = "DIR",
        default_value = "/run/merlin",
        hide_env_values = true
    )]
    pub(crate) run_dir: PathBuf,
    /// How long to try
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        default_value = "10s",
        value_parser = duration::parse
    )]
    pub(crate) timeout: Duration,
    /// Form of the output
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORM",
        default_value = "table"
    )]
    pub(crate) output: Form,
    /// Say on standard error what is being done
    #[arg(short = 'X', long, global = true)]
    pub(crate) debug: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people and line-based scripts
    Table,
    /// For programs, with the API's JSON names
    Json,
    /// The same as YAML
    Yaml,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List virtual services and their real servers
    List(List),
    /// Print the whole catalog as a file that import reads
    Export(Export),
    /// Make the catalog hold what a file declares
    Import(Import),
    /// Show how every node is doing
    Status,
    /// Print changes as they happen, one per line
    Watch(Watch),
    /// Add, edit or delete a virtual service
    #[command(subcommand)]
    Service(service::Command),
    /// Add, edit or delete a real server
    #[command(subcommand)]
    Server(server::Command),
    /// Show who changed what in catalog and cluster, newest first
    Audit(Audit),
    /// Keep a file that `merlin cluster client create` wrote, and use it from now on
    Login(Login),
    /// Forget a context
    Logout {
        /// Its name [default: the one in use]
        name: Option<String>,
    },
    /// List the clusters this user has logged in to
    Contexts {
        /// Use this one from now on
        #[arg(long = "use", value_name = "NAME")]
        choose: Option<String>,
    },
    /// Look after a store that is etcd
    #[command(subcommand)]
    Store(Store),
    /// Print a completion script for a shell
    Completions { shell: Shell },
    /// Print the manual page, or write those of all commands into a directory
    Man {
        /// Directory to write meradm.1, meradm-list.1 and so on into
        #[arg(long, value_name = "DIR")]
        out_dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Store {
    /// Have the node that is asked remove the services that are gone from etcd
    ///
    /// A node does not take away more than half of its services, or all, because etcd says so: etcd
    /// may have been wiped, restored, or be looked at under the wrong prefix. The status says what
    /// is held back. Every node has to be told.
    AcceptRemoval {
        /// Only if what is held back is the catalog of this revision
        #[arg(long, value_name = "REVISION")]
        revision: Option<u64>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Accept the node's own copy, which may lag; it works without a quorum
    #[arg(long)]
    pub(crate) stale: bool,
    /// Add what the kernel of every node holds: weights, connections and health
    #[arg(long)]
    pub(crate) live: bool,
}

/// As YAML, or with -o json as JSON. Sorted, so that two exports can be compared line by line.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Accept the node's own copy, which may lag; it works without a quorum
    #[arg(long)]
    pub(crate) stale: bool,
}

/// Prints what differs, then does it: adds (+), edits (~) and, if asked to, removes (-). Nothing is
/// done when anything in the file is wrong. Running it again does what is left, or nothing.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// YAML or JSON, as export writes it; - for standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Only print what differs
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Remove services and real servers that are not in the file
    #[arg(long)]
    pub(crate) prune: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Begin after this revision instead of now
    #[arg(long, value_name = "REVISION")]
    pub(crate) from: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// How many changes
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) number: u32,
    /// Only changes since a time (2026-11-23T10:00:00Z), or for as long as that (1h30m)
    #[arg(long, value_name = "TIME", value_parser = values::since)]
    pub(crate) since: Option<SystemTime>,
}

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// What `merlin cluster client create` wrote
    pub(crate) file: PathBuf,
    /// What to call the context [default: the client's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}

/// A condition on every change.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Condition {
    /// Only if the object last changed at this revision; 0: only if it does not exist
    #[arg(long, value_name = "REVISION")]
    pub(crate) expect_revision: Option<u64>,
}
