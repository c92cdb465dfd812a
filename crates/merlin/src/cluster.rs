//! `merlin cluster ...`: asks the daemon of this host by its unix socket, or gets this host ready
//! to be one of a cluster.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use hyper_util::rt::TokioIo;
use merlin_proto::json::Json;
use merlin_proto::status::{Meaning, meaning};
use merlin_proto::v1::cluster_client::ClusterClient;
use merlin_proto::v1::{
    CreateTokenRequest, DescribeRequest, DescribeResponse, ListTokensRequest, ListTokensResponse,
    RevokeTokenRequest,
};
use prost::Name;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use merlin_raft::identity::Token;
use merlin_raft::{Join, Joined};

use crate::cli::{RunArgs, Settings, parse_duration};
use crate::config::Config;

#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
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
    /// Show whether the cluster takes writes, who leads, and who is in it
    Status,
    /// Show who is in the cluster
    Members,
    /// Make this host a node of an existing cluster
    ///
    /// Run it before the daemon's first start, or with the daemon stopped; then start the daemon.
    /// It can be run again after it was interrupted. What the daemon is told about its data
    /// directory and addresses has to be told here too.
    Join(JoinArgs),
    /// Make, list and revoke the tokens that let new nodes in
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Debug, Args)]
struct JoinArgs {
    /// What `merlin cluster token create` printed on a member
    token: Token,
    /// Where this node will keep its state
    #[arg(long, env = "MERLIN_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Name of this node in listings [default: the host name]
    #[arg(long, env = "MERLIN_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Address other nodes will connect to
    #[arg(long, env = "MERLIN_PEER_ADDR", value_name = "IP:PORT")]
    peer_addr: Option<SocketAddr>,
    /// How other nodes reach this one, when that is not --peer-addr
    #[arg(long, env = "MERLIN_ADVERTISE_ADDR", value_name = "IP:PORT")]
    advertise_addr: Option<SocketAddr>,
    /// Give up the catalog and membership that are in the data directory; they are moved aside
    #[arg(long)]
    discard_local_state: bool,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print the command that joins a new node with it
    ///
    /// The token is a secret: whoever has it can join a node. It is shown once.
    Create {
        /// Whom the token is for
        #[arg(long, default_value = "")]
        name: String,
        /// What the new node becomes: a voter counts for the quorum, a learner only follows
        #[arg(long, default_value = "voter", value_parser = ["voter", "learner"])]
        role: String,
        /// How long the token is good for
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
        ttl: Duration,
        /// How many nodes may join with it
        #[arg(long, default_value_t = 1)]
        uses: u32,
    },
    /// List tokens; their secrets are not kept
    List,
    /// Make a token worthless
    Revoke {
        /// The id that `token list` shows
        id: String,
    },
}

/// Why a command failed, by exit code.
enum Failure {
    Unreachable(String),
    Status(Status),
    Output(io::Error),
    Join(anyhow::Error),
}

pub(crate) async fn run(args: &ClusterArgs) -> ExitCode {
    match perform(args).await {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

async fn perform(args: &ClusterArgs) -> Result<ExitCode, Failure> {
    if let ClusterCommand::Join(join) = &args.command {
        let joined = join.perform().await.map_err(Failure::Join)?;
        io::stdout().lock().write_all(joined.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut cluster = ClusterClient::new(connect(&args.run_dir).await?);
    match &args.command {
        ClusterCommand::Join(_) => {}
        ClusterCommand::Status => {
            let described = cluster.describe(args.request(DescribeRequest {})).await?;
            let described = described.into_inner();
            args.print(&described, status_table)?;
            if !described.unavailable.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
        ClusterCommand::Members => {
            let described = cluster.describe(args.request(DescribeRequest {})).await?;
            args.print(&described.into_inner(), members_table)?;
        }
        ClusterCommand::Token(TokenCommand::Create {
            name,
            role,
            ttl,
            uses,
        }) => {
            let request = CreateTokenRequest {
                name: name.clone(),
                role: role.clone(),
                ttl: prost_types::Duration::try_from(*ttl).ok(),
                uses: *uses,
            };
            let created = cluster.create_token(args.request(request)).await?;
            args.print(&created.into_inner(), |created| {
                format!("merlin cluster join {}\n", created.token)
            })?;
        }
        ClusterCommand::Token(TokenCommand::List) => {
            let listed = cluster
                .list_tokens(args.request(ListTokensRequest {}))
                .await?;
            args.print(&listed.into_inner(), tokens_table)?;
        }
        ClusterCommand::Token(TokenCommand::Revoke { id }) => {
            let request = RevokeTokenRequest { id: id.clone() };
            cluster.revoke_token(args.request(request)).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn connect(run_dir: &Path) -> Result<Channel, Failure> {
    let path: Arc<Path> = run_dir.join("merlin.sock").into();
    let unreachable = |error: io::Error| {
        Failure::Unreachable(format!(
            "cannot reach the daemon at {}: {error}; is merlin running on this host?",
            path.display()
        ))
    };
    drop(UnixStream::connect(&path).await.map_err(unreachable)?);
    let path = Arc::clone(&path);
    let connector = tower::service_fn(move |_: Uri| {
        let path = Arc::clone(&path);
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector))
}

impl JoinArgs {
    async fn perform(&self) -> anyhow::Result<String> {
        let settings = Settings {
            data_dir: self.data_dir.clone(),
            node_name: self.node_name.clone(),
            peer_addr: self.peer_addr,
            advertise_addr: self.advertise_addr,
            ..Settings::default()
        };
        let config = Config::load(&RunArgs {
            config: None,
            settings,
        })?;
        join(&config, self.token.clone(), self.discard_local_state).await
    }
}

/// Makes the data directory a member's and says what has become of it.
pub(crate) async fn join(
    config: &Config,
    token: Token,
    discard_local_state: bool,
) -> anyhow::Result<String> {
    let joined = merlin_raft::join(Join {
        data_dir: config.data_dir.clone(),
        token,
        name: config.node_name.clone(),
        advertise: config.advertise_addr,
        discard_local_state,
    });
    Ok(match joined.await? {
        Joined::Already(name) => format!("already a member: node {}\n", name.node),
        Joined::Now {
            name,
            role,
            discarded,
            ..
        } => {
            let mut text = format!("joined as node {}, to be a {role}\n", name.node);
            if let Some(aside) = discarded {
                let _ = writeln!(text, "what was there is in {}", aside.display());
            }
            text += "start the daemon: the cluster takes the node in once it answers at ";
            text + &format!("{}\n", config.advertise_addr)
        }
    })
}

impl ClusterArgs {
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

// === tables ===

fn status_table(cluster: &DescribeResponse) -> String {
    let voters = cluster.members.iter().filter(|member| member.voter).count();
    let quorum = voters / 2 + 1;
    let leader = cluster
        .members
        .iter()
        .find(|member| member.id == cluster.leader);
    let leader = leader.map_or("none".to_owned(), |leader| {
        format!("{} ({})", leader.id, leader.name)
    });
    let writes = match cluster.unavailable.as_str() {
        "" => "yes".to_owned(),
        reason => format!("no: {reason}"),
    };
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{name:<10}{value}");
    };
    line(
        "Cluster",
        &format_args!("{} incarnation {}", cluster.cluster_id, cluster.incarnation),
    );
    line("Leader", &leader);
    line("Term", &cluster.term);
    line("Revision", &cluster.revision);
    let tolerated = voters.saturating_sub(quorum);
    line(
        "Quorum",
        &format_args!("{quorum} of {voters} voters, tolerates {tolerated} failure(s)"),
    );
    line("Writes", &writes);
    text.push('\n');
    text + &members_table(cluster)
}

fn members_table(cluster: &DescribeResponse) -> String {
    let mut rows = vec![["ID", "NAME", "ADDRESS", "ROLE", "LAG", ""].map(str::to_owned)];
    rows.extend(cluster.members.iter().map(|member| {
        [
            member.id.to_string(),
            member.name.clone(),
            member.addr.clone(),
            member.role.clone(),
            member.lag.map_or("-".to_owned(), |lag| lag.to_string()),
            if member.id == cluster.node_id {
                "this node".to_owned()
            } else {
                String::new()
            },
        ]
    }));
    table(&rows)
}

fn tokens_table(listed: &ListTokensResponse) -> String {
    let mut rows = vec![["ID", "NAME", "ROLE", "USES LEFT", "EXPIRES"].map(str::to_owned)];
    rows.extend(listed.tokens.iter().map(|token| {
        let expires = token
            .expires
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        [
            token.id.clone(),
            token.name.clone(),
            token.role.clone(),
            token.uses_left.to_string(),
            if token.revoked {
                "revoked".to_owned()
            } else {
                expires
            },
        ]
    }));
    table(&rows)
}

/// Rows in columns as wide as their widest cell.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

// === impl Failure ===

impl Failure {
    fn report(&self) -> ExitCode {
        let (code, words) = match self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return ExitCode::SUCCESS;
            }
            Self::Output(error) => (1, error.to_string()),
            Self::Join(error) => (1, format!("{error:#}")),
            Self::Unreachable(words) => (3, words.clone()),
            Self::Status(status) => match meaning(status) {
                Meaning::Rejected => (4, status.message().to_owned()),
                Meaning::Unavailable | Meaning::Unknown => (3, status.message().to_owned()),
                Meaning::Failed => (1, status.message().to_owned()),
            },
        };
        let _ = writeln!(io::stderr(), "merlin: {words}");
        ExitCode::from(code)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

#[cfg(test)]
mod tests {
    use merlin_proto::v1::ClusterMember;

    use super::*;

    fn described() -> DescribeResponse {
        let member = |id, name: &str, role: &str| ClusterMember {
            id,
            name: name.into(),
            addr: format!("10.0.0.{id}:4284"),
            role: role.into(),
            voter: role != "learner",
            lag: (id != 3).then_some(0),
        };
        DescribeResponse {
            cluster_id: "9f2c".into(),
            incarnation: 1,
            node_id: 1,
            leader: 1,
            term: 4,
            revision: 17,
            members: vec![
                member(1, "lb-one", "leader"),
                member(2, "lb2", "follower"),
                member(3, "lb3", "learner"),
            ],
            ..Default::default()
        }
    }

    #[test]
    fn status_says_how_many_failures_the_cluster_survives() {
        let expected = "\
Cluster   9f2c incarnation 1
Leader    1 (lb-one)
Term      4
Revision  17
Quorum    2 of 2 voters, tolerates 0 failure(s)
Writes    yes

ID  NAME    ADDRESS        ROLE      LAG
1   lb-one  10.0.0.1:4284  leader    0    this node
2   lb2     10.0.0.2:4284  follower  0
3   lb3     10.0.0.3:4284  learner   -
";
        assert_eq!(status_table(&described()), expected);
    }

    #[test]
    fn status_says_why_writes_are_not_possible() {
        let lost = DescribeResponse {
            leader: 0,
            unavailable: "no leader".into(),
            ..described()
        };
        let text = status_table(&lost);
        assert!(text.contains("Leader    none\n"), "{text}");
        assert!(text.contains("Writes    no: no leader\n"), "{text}");
    }
}
