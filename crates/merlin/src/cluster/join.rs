//! `merlin cluster join` and `init`: makes this host a node of a cluster.
//!
//! A running daemon is told by its socket and begins anew by itself. Without one, the data directory
//! is made ready for its first start.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use merlin_proto::v1::{
    ClusterMember, DescribeRequest, DescribeResponse, JoinRequest, JoinResponse,
};
use merlin_raft::identity::Token;
use merlin_raft::{DataDirError, Join, JoinError, Joined, RaftStore};
use tokio::time::{Instant, sleep};

use super::failure::Failure;
use super::place::PlaceArgs;
use super::{ClusterArgs, Form};
use crate::config::Config;
use crate::daemon::raft_config;

/// How long a new node is waited for, when the daemon runs. It has to keep up for 10 s before it
/// gets its vote.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks at how it gets on.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What keeps a node out for less is not worth telling.
const TELL_AFTER: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct JoinArgs {
    /// What `merlin cluster token create` printed on a member
    token: Token,
    #[command(flatten)]
    place: PlaceArgs,
    /// Give up the catalog and membership that this node has; they are moved aside
    #[arg(long)]
    discard_local_state: bool,
    /// How long to wait until the node has its part, 0s for not at all [default: 2m, or not at all
    /// when the daemon does not run]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    #[command(flatten)]
    place: PlaceArgs,
}

/// Why the data directory was not made ready.
enum NotJoined {
    /// A daemon has it.
    DaemonRuns(String),
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for NotJoined {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl JoinArgs {
    pub(super) async fn perform(&self, args: &ClusterArgs) -> Result<ExitCode, Failure> {
        let began = Instant::now();
        let mut daemon = loop {
            if let Ok(daemon) = args.connect().await {
                break daemon;
            }
            match self.without_daemon(args).await {
                // It is starting, and answers in a moment.
                Err(NotJoined::DaemonRuns(_)) if began.elapsed() < args.timeout => {
                    sleep(LOOK_EVERY).await;
                }
                Err(NotJoined::DaemonRuns(words)) => {
                    let socket = args.run_dir.join("merlin.sock");
                    return Err(Failure::Unreachable(format!(
                        "{words}; the one that runs does not answer at {}: is --run-dir its own?",
                        socket.display()
                    )));
                }
                Err(NotJoined::Failed(failure)) => return Err(failure),
                Ok(code) => return Ok(code),
            }
        };
        // The cluster decides about it; a member that was asked may have to ask the leader.
        let mut request = args.request(JoinRequest {
            token: self.token.to_string(),
            discard_local_state: self.discard_local_state,
        });
        request.set_timeout(args.timeout.max(Duration::from_secs(30)));
        let joined = daemon.join(request).await?.into_inner();
        let progress = Progress::begin(args.output, &joined)?;
        progress.follow(args, self.wait.unwrap_or(PATIENCE)).await
    }

    async fn without_daemon(&self, args: &ClusterArgs) -> Result<ExitCode, NotJoined> {
        let config = self.place.config()?;
        let joined = match enter(&config, self.token.clone(), self.discard_local_state).await {
            Ok(joined) => joined,
            Err(error @ JoinError::DataDir(DataDirError::InUse { .. })) => {
                return Err(NotJoined::DaemonRuns(error.to_string()));
            }
            Err(error) => return Err(anyhow::Error::new(error).into()),
        };
        let response = match &joined {
            Joined::Already(name) => JoinResponse {
                node_id: name.node,
                role: String::new(),
                already: true,
            },
            Joined::Now { name, role, .. } => JoinResponse {
                node_id: name.node,
                role: role.to_string(),
                already: false,
            },
        };
        match self.wait.filter(|wait| !wait.is_zero()) {
            Some(wait) => {
                writeln!(
                    io::stderr(),
                    "let in; waiting for merlin to be started here"
                )?;
                let progress = Progress::begin(args.output, &response)?;
                Ok(progress.follow(args, wait).await?)
            }
            None => {
                args.print(&response, |_| words(&joined, &config))?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl InitArgs {
    pub(super) async fn perform(&self, args: &ClusterArgs) -> Result<ExitCode, Failure> {
        if let Ok(mut daemon) = args.connect().await {
            let request = args.request(DescribeRequest { local: true });
            let described = daemon.describe(request).await?.into_inner();
            args.print(&described, |cluster| {
                member_of(&cluster.cluster_id, cluster.node_id)
            })?;
            return Ok(ExitCode::SUCCESS);
        }
        let config = self.place.config()?;
        let fresh = !config.data_dir.join("node.json").exists();
        let opened = RaftStore::open(raft_config(&config)).await;
        let store = opened.map_err(|error| anyhow::Error::new(error).context("init"))?;
        let (cluster, node) = (store.cluster_id().to_string(), store.node_id());
        store.shutdown().await;
        let described = DescribeResponse {
            cluster_id: cluster,
            node_id: node,
            ..Default::default()
        };
        args.print(&described, |cluster| {
            if fresh {
                format!(
                    "founded cluster {} with this host as node {}; start the daemon\n",
                    cluster.cluster_id, cluster.node_id
                )
            } else {
                member_of(&cluster.cluster_id, cluster.node_id)
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn member_of(cluster: &str, node: u64) -> String {
    format!("already member of cluster {cluster} as node {node}\n")
}

// === waiting ===

/// Says how a new node gets on, a piece of one line at a time.
struct Progress<'a> {
    form: Form,
    joined: &'a JoinResponse,
    said: Stage,
    trouble: String,
    /// Since when, while it has not been told.
    troubled: Option<Instant>,
}

/// How far a new node has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    LetIn,
    Learner,
    CaughtUp,
    Voter,
}

impl<'a> Progress<'a> {
    fn begin(form: Form, joined: &'a JoinResponse) -> Result<Self, Failure> {
        let mut progress = Self {
            form,
            joined,
            said: Stage::LetIn,
            trouble: String::new(),
            troubled: None,
        };
        if joined.already {
            progress.say(&format!("already a member: node {}", joined.node_id))?;
        }
        Ok(progress)
    }

    fn say(&mut self, words: &str) -> io::Result<()> {
        if self.form == Form::Json {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        out.write_all(words.as_bytes())?;
        out.flush()
    }

    async fn follow(mut self, args: &ClusterArgs, wait: Duration) -> Result<ExitCode, Failure> {
        let deadline = Instant::now() + wait;
        loop {
            // The daemon is away for a moment while it begins anew.
            let seen = look(args).await;
            if let Some(cluster) = seen.filter(|seen| seen.node_id == self.joined.node_id)
                && self.advance(&cluster)?
            {
                self.say("\n")?;
                if self.form == Form::Json {
                    args.print(self.joined, |_| String::new())?;
                }
                return Ok(ExitCode::SUCCESS);
            }
            if Instant::now() >= deadline {
                if self.said > Stage::LetIn || self.joined.already {
                    self.say("\n")?;
                }
                let because = match self.trouble.as_str() {
                    "" => String::new(),
                    trouble => format!(": {trouble}"),
                };
                return Err(Failure::Unreachable(format!(
                    "node {} is let in, but has not got its part within {}{because}; it goes on \
                     by itself, and `merlin cluster status` shows how it gets on",
                    self.joined.node_id,
                    humantime::format_duration(wait),
                )));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Says what is new. True when the node is what it is to be.
    fn advance(&mut self, cluster: &DescribeResponse) -> io::Result<bool> {
        let id = self.joined.node_id;
        let this = cluster.members.iter().find(|member| member.id == id);
        let voters = cluster.members.iter().filter(|member| member.voter).count();
        let stage = stage(this);
        if self.said < Stage::Learner && stage >= Stage::Learner && !self.joined.already {
            self.say(&format!("joined as learner {id}"))?;
        }
        if self.said < Stage::CaughtUp && stage >= Stage::CaughtUp {
            self.say(", caught up")?;
        }
        if self.said < Stage::Voter && stage >= Stage::Voter {
            let promoted = if self.joined.already {
                "a"
            } else {
                "promoted to"
            };
            self.say(&format!(", {promoted} voter ({voters}/{voters})"))?;
        }
        self.said = self.said.max(stage);
        if stage < Stage::Learner {
            if self.trouble != cluster.unavailable {
                self.trouble.clone_from(&cluster.unavailable);
                self.troubled = Some(Instant::now());
            }
            // The daemon takes a moment to become the node that the others look for.
            let lasts = |since: &mut Instant| since.elapsed() >= TELL_AFTER;
            if self.troubled.take_if(lasts).is_some() {
                writeln!(io::stderr(), "{}", self.trouble)?;
            }
        }
        let learner = self.joined.role == "learner" || self.joined.already;
        Ok(stage == Stage::Voter || (learner && stage == Stage::CaughtUp))
    }
}

async fn look(args: &ClusterArgs) -> Option<DescribeResponse> {
    let mut daemon = args.connect().await.ok()?;
    let request = args.request(DescribeRequest { local: false });
    Some(daemon.describe(request).await.ok()?.into_inner())
}

fn stage(this: Option<&ClusterMember>) -> Stage {
    match this {
        Some(member) if member.voter => Stage::Voter,
        Some(member) if member.role == "learner" => match member.lag {
            Some(lag) if lag <= CAUGHT_UP && member.reachable => Stage::CaughtUp,
            _ => Stage::Learner,
        },
        _ => Stage::LetIn,
    }
}

/// Log entries that a learner may lack and still be promoted.
const CAUGHT_UP: u64 = 64;

// === without the daemon ===

/// Makes the data directory a member's.
pub(crate) async fn enter(
    config: &Config,
    token: Token,
    discard_local_state: bool,
) -> Result<Joined, JoinError> {
    let join = Join {
        data_dir: config.data_dir.clone(),
        token,
        name: config.node_name.clone(),
        advertise: config.advertise_addr,
        discard_local_state,
        level: config.command_level,
    };
    merlin_raft::join(join).await
}

/// What has become of the data directory.
pub(crate) fn words(joined: &Joined, config: &Config) -> String {
    match joined {
        Joined::Already(name) => format!(
            "already a member: node {}\n\
             if the cluster was restored or recovered since, this node does not belong to it any \
             more: stop merlin, and join with --discard-local-state\n",
            name.node
        ),
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(role: &str, lag: Option<u64>) -> ClusterMember {
        ClusterMember {
            role: role.into(),
            voter: role == "follower",
            reachable: true,
            lag,
            ..Default::default()
        }
    }

    #[test]
    fn a_node_is_let_in_then_learns_then_catches_up_then_votes() {
        assert_eq!(stage(None), Stage::LetIn);
        for (role, lag, expected) in [
            ("joining", None, Stage::LetIn),
            ("learner", None, Stage::Learner),
            ("learner", Some(CAUGHT_UP + 1), Stage::Learner),
            ("learner", Some(CAUGHT_UP), Stage::CaughtUp),
            ("follower", None, Stage::Voter),
        ] {
            assert_eq!(stage(Some(&member(role, lag))), expected);
        }
    }
}
