//! `merlin cluster ...`: asks the daemon of this host by its unix socket, or another node by TLS, or
//! gets this host ready to be one of a cluster.
//!
//! Each command is a module: its arguments and what it does. Here are the dispatch and what the
//! commands share: reaching the daemon, and printing an answer in the form that was asked for.

mod change;
mod client;
mod failure;
mod join;
mod members;
mod place;
mod recover;
mod snapshot;
mod tables;
mod token;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use merlin_client::{ConnectError, Contexts, Wish};
use merlin_proto::json::Json;
use merlin_proto::v1::cluster_client::ClusterClient;
use prost::Name;
use tonic::Request;
use tonic::transport::Channel;

use self::failure::Failure;
pub(crate) use self::join::{enter, words as joined};
use crate::cli::parse_duration;

#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// Node to ask, by name or address, instead of this host's; it takes a context (meradm login)
    #[arg(short = 'H', long, global = true, value_name = "HOST")]
    host: Option<String>,
    /// Port of that node's API [default: 4282]
    #[arg(
        short = 'P',
        long,
        global = true,
        value_name = "PORT",
        requires = "host"
    )]
    port: Option<u16>,
    /// Context to use, as `meradm contexts` lists them [default: the one last chosen]
    #[arg(long, global = true, env = "MERLIN_CONTEXT", value_name = "NAME")]
    context: Option<String>,
    /// Where the daemon's socket merlin.sock is
    #[arg(long, global = true, env = "MERLIN_RUN_DIR", value_name = "DIR")]
    #[arg(default_value = "/run/merlin")]
    run_dir: PathBuf,
    /// How long to wait for an answer
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s")]
    #[arg(value_parser = parse_duration)]
    timeout: Duration,
    /// Form of the output
    #[arg(
        long,
        short,
        global = true,
        value_name = "FORM",
        default_value = "table"
    )]
    output: Form,
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Show whether the cluster takes writes, who leads, who is in it, and what is wrong
    ///
    /// The exit code is 0 when all is well, 1 when there is a warning, 2 when this node cannot have
    /// anything written, and 3 when the daemon does not answer.
    Status,
    /// Show who is in the cluster
    Members,
    /// Make this host the first node of a new cluster
    ///
    /// A daemon that finds an empty data directory does this by itself.
    Init(join::InitArgs),
    /// Make this host a node of an existing cluster
    ///
    /// A daemon that runs, and has held no service yet, is told and begins anew by itself; then this
    /// waits until the node has its part, and says so. Without one, the data directory is made ready:
    /// start the daemon afterwards, and give the same directory and addresses here as there. It can
    /// be run again after it was interrupted.
    Join(join::JoinArgs),
    /// Take this host's node out of its cluster
    ///
    /// Another node leads from then on, if this one did. The node's state is moved aside in its
    /// data directory; the kernel keeps its rules.
    Leave(change::LeaveArgs),
    /// Take a node out of the cluster for good
    ///
    /// Works on nodes that are away, too. Whoever was removed is told so when it calls the others,
    /// and serves on with the catalog it had; it can come back as a new node, with a new token.
    Remove(change::RemoveArgs),
    /// Give a learner a vote
    ///
    /// Refused until the learner has caught up. A node that joined with a token for voters gets its
    /// vote by itself.
    Promote(change::NodeArg),
    /// Make a voter a learner, which follows but does not count for the quorum
    Demote(change::NodeArg),
    /// Have another voter lead
    ///
    /// Writes wait meanwhile, for about as long as one election takes; none is lost.
    TransferLeader(change::TransferArgs),
    /// See to this node's certificate
    #[command(subcommand)]
    Cert(change::CertCommand),
    /// See to the authority that certificates of nodes and clients are of
    #[command(subcommand)]
    Ca(change::CaCommand),
    /// Make, list and revoke the tokens that let new nodes in
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Make, list and revoke the clients that administer the cluster from other hosts
    #[command(subcommand)]
    Client(client::ClientCommand),
    /// Copy the cluster's state to a file, look at such a file, begin a cluster from it
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Make this host the only node of its cluster, when the majority is lost for good
    ///
    /// Only when the other voters will never come back: were they to, there would be two clusters
    /// of the same name. Everything this node holds is kept; what the others acknowledged without
    /// it is lost. Run it on the node that holds most, with the daemon stopped, then start the
    /// daemon and join the other hosts anew with `merlin cluster join --discard-local-state`.
    Recover(recover::RecoverArgs),
}

pub(crate) async fn run(args: &ClusterArgs) -> ExitCode {
    let done = match &args.command {
        ClusterCommand::Status => members::status(args).await,
        ClusterCommand::Members => members::members(args).await,
        ClusterCommand::Init(init) => init.perform(args).await,
        ClusterCommand::Join(join) => join.perform(args).await,
        ClusterCommand::Leave(leave) => leave.perform(args).await,
        ClusterCommand::Remove(remove) => remove.perform(args).await,
        ClusterCommand::Promote(node) => change::promote(args, node).await,
        ClusterCommand::Demote(node) => change::demote(args, node).await,
        ClusterCommand::TransferLeader(transfer) => transfer.perform(args).await,
        ClusterCommand::Cert(cert) => cert.perform(args).await,
        ClusterCommand::Ca(ca) => ca.perform(args).await,
        ClusterCommand::Token(token) => token.perform(args).await,
        ClusterCommand::Client(client) => client.perform(args).await,
        ClusterCommand::Snapshot(snapshot) => snapshot.perform(args).await,
        ClusterCommand::Recover(recover) => recover.perform().await,
    };
    done.unwrap_or_else(|failure| failure.report())
}

impl ClusterArgs {
    async fn connect(&self) -> Result<ClusterClient<Channel>, Failure> {
        Ok(ClusterClient::new(self.channel().await?))
    }

    /// The daemon of this host by its socket, or the node that was named.
    async fn channel(&self) -> Result<Channel, Failure> {
        let elsewhere = self.host.is_some() || self.context.is_some();
        let wish = Wish {
            host: self.host.clone(),
            port: self.port,
            socket: (!elsewhere).then(|| self.run_dir.join("merlin.sock")),
            run_dir: self.run_dir.clone(),
            context: self.context.clone(),
            plaintext: false,
        };
        let contexts = Contexts::of_user();
        let connected = merlin_client::connect(&wish, &contexts, self.timeout, |_| {});
        connected.await.map_err(|error| match error {
            ConnectError::Unreachable(words) if elsewhere => Failure::Unreachable(words),
            ConnectError::Unreachable(words) => {
                Failure::Unreachable(format!("{words}; is merlin running on this host?"))
            }
            error => Failure::Other(error.into()),
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    fn print<M: Name>(&self, message: &M, table: impl FnOnce(&M) -> String) -> io::Result<()> {
        let text = match self.output {
            Form::Table => table(message),
            Form::Json => serde_json::to_string_pretty(&Json::full(message))? + "\n",
        };
        io::stdout().lock().write_all(text.as_bytes())
    }
}
