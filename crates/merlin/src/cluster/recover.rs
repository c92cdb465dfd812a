//! `merlin cluster recover`: the last resort when the quorum is lost for good.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use merlin_raft::{BackupMember, Remains, Summary};

use super::failure::Failure;
use super::tables;
use crate::cli::{RunArgs, Settings};
use crate::config::Config;

#[derive(Debug, Args)]
pub(super) struct RecoverArgs {
    /// Begin a new life of the cluster with this node alone
    #[arg(long, required = true)]
    force_new_cluster: bool,
    /// Do not ask; NAME is this node's name, as it would be typed
    #[arg(long, value_name = "NAME")]
    yes_i_know: Option<String>,
    /// Go on although somebody answers at the address of another voter
    #[arg(long)]
    despite_live_voters: bool,
    /// Where this node keeps its state
    #[arg(long, env = "MERLIN_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// How other nodes will reach this one [default: as they did]
    #[arg(long, env = "MERLIN_ADVERTISE_ADDR", value_name = "IP:PORT")]
    advertise_addr: Option<SocketAddr>,
}

impl RecoverArgs {
    pub(super) async fn perform(&self) -> Result<ExitCode, Failure> {
        let settings = Settings {
            data_dir: self.data_dir.clone(),
            advertise_addr: self.advertise_addr,
            ..Settings::default()
        };
        let config = Config::load(&RunArgs {
            config: None,
            settings,
        })?;
        let remains = Remains::inspect(&config.data_dir).await;
        let remains = remains
            .context("nothing was changed")
            .map_err(Failure::from)?;
        let summary = remains.summary().clone();
        let name = summary.node_name.clone().unwrap_or(config.node_name);
        let advertise = config.advertise_addr.to_string();
        let addr = match (self.advertise_addr, &summary.addr) {
            (None, Some(addr)) => addr.clone(),
            _ => advertise,
        };
        say(&describe(&name, &summary))?;
        self.refuse_if_any_lives(&remains.alive().await)?;
        self.confirm(&name)?;
        let recovered = remains
            .perform(name, addr)
            .await
            .map_err(anyhow::Error::from)?;
        say(&format!(
            "this is node {} of cluster {}, incarnation {}, revision {} now\n\
             what was there before is in {}\n\
             start the daemon; then make tokens, and on every other host that has its old data \
             directory join with --discard-local-state\n",
            recovered.reborn.name.node,
            recovered.reborn.name.cluster,
            recovered.reborn.incarnation,
            recovered.reborn.revision,
            recovered.backup.display(),
        ))?;
        Ok(ExitCode::SUCCESS)
    }

    /// A learner that lives has no say in a quorum.
    fn refuse_if_any_lives(&self, alive: &[BackupMember]) -> anyhow::Result<()> {
        let voters = alive.iter().filter(|member| member.voter);
        let alive: Vec<_> = voters
            .map(|member| format!("node {} ({}) at {}", member.id, member.name, member.addr))
            .collect();
        if alive.is_empty() || self.despite_live_voters {
            return Ok(());
        }
        bail!(
            "nothing was changed: {} answers. While other voters live there may be a quorum, or \
             one to be had: start the missing ones, or stop these for good. If it is not a voter \
             that answers there, say --despite-live-voters",
            alive.join(", ")
        )
    }

    fn confirm(&self, name: &str) -> anyhow::Result<()> {
        let typed = match &self.yes_i_know {
            Some(typed) => typed.clone(),
            None if io::stdin().is_terminal() => {
                say(&format!("Type the name of this node, {name}, to go on: "))?;
                let mut line = String::new();
                io::stdin().lock().read_line(&mut line)?;
                line.trim().to_owned()
            }
            None => {
                return Err(anyhow!(
                    "nothing was changed: there is no terminal to ask at; say --yes-i-know {name}"
                ));
            }
        };
        if typed == name {
            Ok(())
        } else {
            bail!("nothing was changed: {typed:?} is not the name of this node, {name:?}")
        }
    }
}

fn describe(name: &str, summary: &Summary) -> String {
    let mut text = format!(
        "This host is node {} ({name}) of cluster {}, incarnation {}.\n",
        summary.name.node, summary.name.cluster, summary.incarnation
    );
    let entry = |at: Option<u64>| at.map_or("none".to_owned(), |at| format!("entry {at}"));
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{name:<10}{value}");
    };
    line(
        "Log",
        &format_args!(
            "committed up to {}, ends with {}",
            entry(summary.committed),
            entry(summary.last)
        ),
    );
    let uncertain = match summary.uncertain {
        0 => "none".to_owned(),
        count => format!("{count} entries, which are kept"),
    };
    line("Uncertain", &uncertain);
    line(
        "Revision",
        &format_args!("{}, {} services", summary.revision, summary.services),
    );
    if !summary.voter {
        text += "It has no vote: a voter that is left may hold more than this node.\n";
    }
    let mut rows = vec![["ID", "NAME", "ADDRESS", "ROLE"].map(str::to_owned)];
    rows.extend(summary.others.iter().map(|member| {
        [
            member.id.to_string(),
            member.name.clone(),
            member.addr.clone(),
            if member.voter { "voter" } else { "learner" }.to_owned(),
        ]
    }));
    text += "These have no part in the cluster any more, and what only they hold is lost:\n";
    text + &tables::table(&rows)
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
