//! `merlin migrate`: the catalog from one store to another, while both are in use.
//!
//! It is an import from a store instead of a file: the difference, then the least changes that make
//! it go away, each on the condition that its object is as it was. What changes at the source
//! meanwhile is moved in another round, and in the end both are read once more and compared. The
//! source is only read.
//!
//! No kernel changes by it. The one thing that could do that is a daemon that programs its kernel
//! from a catalog while it is being filled, so an empty raft catalog is only filled while no node of
//! that cluster does (`--reconcile=false`).

mod ends;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use merlin_model::Catalog;
use merlin_model::difference::{Action, Difference, Extra, difference};

use self::ends::End;
use crate::cli::parse_duration;

/// Changes on their way at the same time.
const IN_FLIGHT: usize = 16;
/// A source that changes faster than this can follow is not one to leave behind just now.
const ROUNDS: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// Where the catalog is
    #[arg(long, value_name = "STORE")]
    from: StoreKind,
    /// Where it is to be
    #[arg(long, value_name = "STORE")]
    to: StoreKind,
    /// etcd members of the source
    #[arg(long, value_name = "URL,URL", value_delimiter = ',')]
    from_endpoints: Option<Vec<String>>,
    /// Prefix of merlin's keys at the source [default: /merlin]
    #[arg(long, value_name = "PREFIX")]
    from_prefix: Option<String>,
    /// File with the authorities that sign the certificates of the source
    #[arg(long, value_name = "FILE")]
    from_ca: Option<PathBuf>,
    /// File with the certificate to show to the source
    #[arg(long, value_name = "FILE")]
    from_cert: Option<PathBuf>,
    /// File with the key of that certificate
    #[arg(long, value_name = "FILE")]
    from_key: Option<PathBuf>,
    /// User to log in to the source as
    #[arg(long, value_name = "NAME")]
    from_user: Option<String>,
    /// File with that user's password
    #[arg(long, value_name = "FILE")]
    from_password_file: Option<PathBuf>,
    /// etcd members of the destination
    #[arg(long, value_name = "URL,URL", value_delimiter = ',')]
    to_endpoints: Option<Vec<String>>,
    /// Prefix of merlin's keys at the destination [default: /merlin]
    #[arg(long, value_name = "PREFIX")]
    to_prefix: Option<String>,
    /// File with the authorities that sign the certificates of the destination
    #[arg(long, value_name = "FILE")]
    to_ca: Option<PathBuf>,
    /// File with the certificate to show to the destination
    #[arg(long, value_name = "FILE")]
    to_cert: Option<PathBuf>,
    /// File with the key of that certificate
    #[arg(long, value_name = "FILE")]
    to_key: Option<PathBuf>,
    /// User to log in to the destination as
    #[arg(long, value_name = "NAME")]
    to_user: Option<String>,
    /// File with that user's password
    #[arg(long, value_name = "FILE")]
    to_password_file: Option<PathBuf>,
    /// Node of the raft cluster to ask, instead of this host's daemon; it takes a context (meradm
    /// login)
    #[arg(short = 'H', long, value_name = "HOST")]
    host: Option<String>,
    /// Port of that node's API [default: 4282]
    #[arg(short = 'P', long, value_name = "PORT", requires = "host")]
    port: Option<u16>,
    /// Where the daemon's socket merlin.sock is
    #[arg(long, env = "MERLIN_RUN_DIR", value_name = "DIR")]
    #[arg(default_value = "/run/merlin")]
    run_dir: PathBuf,
    /// How long to wait for each answer
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    #[arg(value_parser = parse_duration)]
    timeout: Duration,
    /// Only print what differs
    #[arg(long)]
    dry_run: bool,
    /// Remove what only the destination has
    #[arg(long)]
    prune: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreKind {
    Etcd3,
    Etcd2,
    Raft,
}

pub(crate) async fn run(args: &MigrateArgs) -> ExitCode {
    match migrate(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "merlin: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn migrate(args: &MigrateArgs) -> Result<()> {
    let from = End::open(args, ends::Side::From).await?;
    let to = End::open(args, ends::Side::To).await?;
    let done = between(args, &from, &to).await;
    from.close().await;
    to.close().await;
    done
}

async fn between(args: &MigrateArgs, from: &End, to: &End) -> Result<()> {
    for problem in from.passed_over() {
        say(&format!("merlin: left behind: {problem}"));
    }
    let mut first = true;
    for _ in 0..ROUNDS {
        let (source, present) = (from.read().await?, to.read().await?);
        let steps = steps(args, &present, &source)?;
        if first {
            print(&steps, args.dry_run)?;
            if args.dry_run {
                return Ok(());
            }
            first = false;
        }
        if steps.is_empty() {
            return checked(&source);
        }
        if present.services().len() == 0 {
            to.nobody_programs_from_it().await?;
        }
        apply(to, &steps).await?;
    }
    bail!("the source changes all the time: stop changing it for the moment, and run this again")
}

fn steps(args: &MigrateArgs, present: &Catalog, source: &Catalog) -> Result<Difference> {
    let extra = match args.prune {
        true => Extra::Remove,
        false => Extra::Keep,
    };
    let steps = difference(present, source, extra).context("the catalogs cannot be made equal")?;
    if let Some(object) = steps.kept.first() {
        let count = steps.kept.len();
        bail!(
            "the destination has what the source has not: {object} and so on, {count} in all; --prune removes that"
        );
    }
    Ok(steps)
}

fn print(steps: &Difference, dry_run: bool) -> Result<()> {
    let lines: String = steps.steps.iter().map(|step| format!("{step}\n")).collect();
    let count = |action| steps.count(action);
    let (added, edited, removed) = (
        count(Action::Add),
        count(Action::Edit),
        count(Action::Remove),
    );
    let dry = match dry_run {
        true => " (dry run: nothing was done)",
        false => "",
    };
    let summary = match steps.is_empty() {
        true => "nothing to do\n".to_owned(),
        false => format!("{added} added, {edited} edited, {removed} removed{dry}\n"),
    };
    write(&(lines + &summary))
}

/// Both were just read, and nothing differs.
fn checked(source: &Catalog) -> Result<()> {
    let servers: usize = source.services().map(|service| service.servers.len()).sum();
    let services = source.services().len();
    write(&format!(
        "checked: both hold the same {services} services and {servers} real servers\n"
    ))
}

/// Makes the changes, stage by stage. The first that fails is the last that is begun.
async fn apply(to: &End, steps: &Difference) -> Result<()> {
    for stage in steps.stages() {
        let mut waiting = stage.iter();
        let mut under_way = FuturesUnordered::new();
        let mut failed = None;
        loop {
            while failed.is_none() && under_way.len() < IN_FLIGHT {
                let Some(step) = waiting.next() else { break };
                under_way.push(async move {
                    let made = to.make(step).await;
                    made.with_context(|| format!("{}", step.object))
                });
            }
            match under_way.next().await {
                None => break,
                Some(Ok(())) => {}
                Some(Err(error)) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error.context("not everything was moved; run this again"));
        }
    }
    Ok(())
}

fn write(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

impl MigrateArgs {
    /// Refuses options that would have no effect.
    fn check(&self) -> Result<()> {
        for (kind, side, given) in [
            (self.from, "from", self.from_endpoints.is_some()),
            (self.to, "to", self.to_endpoints.is_some()),
        ] {
            ensure!(
                kind != StoreKind::Raft || !given,
                "--{side}-endpoints: the raft store has none; a node of it is named with -H"
            );
        }
        let raft = [self.from, self.to].contains(&StoreKind::Raft);
        ensure!(
            raft || self.host.is_none(),
            "--host: only goes with a raft store"
        );
        ensure!(
            [self.from, self.to] != [StoreKind::Raft; 2],
            "--to: from raft to raft is what `merlin cluster snapshot` is for"
        );
        Ok(())
    }
}
