//! `jepsen-like run`, `kill` and `power-cut`: hurt a cluster or a daemon for as long as you like, and
//! say whether it kept its word.

#![expect(clippy::print_stderr, reason = "what went wrong in the guest")]
#![expect(
    clippy::print_stdout,
    reason = "a run reports its progress and its verdict"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Args, Parser, Subcommand, ValueEnum};
use jepsen_like::fast;
use jepsen_like::history::{History, Serial};
use jepsen_like::kill::{self, Plan};
use jepsen_like::lab::{Store, enclosure};
use jepsen_like::nemesis::Kind;
use jepsen_like::power::{self, Subject};
use jepsen_like::report::Verdict;
use jepsen_like::run;
use jepsen_like::workload::Load;

#[derive(Debug, Parser)]
#[command(version, about, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    ordeal: Ordeal,
}

#[derive(Debug, Subcommand)]
enum Ordeal {
    /// Hurt a cluster in every way while clients use it, and judge what they were told
    ///
    /// Needs root, or sudo: networks, disks and processes are made inside namespaces of their own, and go
    /// with them. The exit code is 0 when merlin kept every promise, 1 when it broke one, and 3
    /// when this program failed and nothing is proved.
    Run(RunArgs),
    /// The same judgement on clusters in this process, thousands of them in a minute
    ///
    /// Network and disks are simulated and the clock is too, so that it needs neither root nor time. It
    /// leaves out what only the other commands have: real disks, TLS, the API and the data plane.
    Fast(FastArgs),
    /// Kill one daemon with -9 at random moments during writes
    Kill {
        #[arg(long, default_value_t = 100)]
        rounds: u32,
        /// The same seed rolls the same dice; the machine rolls some of its own
        #[arg(long, default_value_t = rand::random())]
        seed: u64,
    },
    /// Cut the power of a guest at random moments during writes
    PowerCut {
        #[arg(long, default_value_t = 10)]
        cuts: u32,
        #[arg(long, default_value_t = rand::random())]
        seed: u64,
        /// Not of the daemon, but of a store that does not sync, to see that it is caught
        #[arg(long)]
        careless: bool,
    },
    /// What `power-cut` runs beside the daemon in its guest
    #[command(hide = true)]
    InGuest {
        first: Serial,
        #[arg(long)]
        careless: bool,
    },
}

#[derive(Clone, Debug, Args)]
#[command(args_override_self = true)]
struct RunArgs {
    /// How long; every chosen nemesis gets its turn even if that takes longer
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// The same seed rolls the same dice; the machine rolls some of its own
    #[arg(long)]
    seed: Option<u64>,
    /// Ways to hurt the cluster, or `all`, or `none`
    #[arg(long, value_delimiter = ',', default_value = "all")]
    nemesis: Vec<String>,
    /// Has something happen to the network too while a node is hurt or the members change
    #[arg(long)]
    overlap: bool,
    /// What the catalog is kept in
    #[arg(long, default_value = "raft")]
    store: Store,
    /// Nodes of the cluster
    #[arg(long, default_value_t = 5)]
    nodes: u8,
    /// Clients that write and read
    #[arg(long, default_value_t = 8)]
    writers: u32,
    /// A client's pause between two operations, in milliseconds
    #[arg(long, default_value_t = 30)]
    pause: u64,
    /// How long a fault lasts, in seconds
    #[arg(long, default_value_t = 3.0)]
    hold: f64,
    /// How long after a fault all has to be well again, in seconds
    #[arg(long, default_value_t = 60.0)]
    patience: f64,
    /// Where logs, history and picture go [default: jepsen-runs/SEED]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// The daemon's program [default: merlin, beside this program]
    #[arg(long)]
    merlin: Option<PathBuf>,
    /// Sets a variable in the daemons' environment
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
}

const HARNESS_FAILED: u8 = 3;

fn main() -> ExitCode {
    match Cli::parse().ordeal {
        Ordeal::Run(args) => run_cluster(args),
        Ordeal::Fast(args) => run_fast(&args).unwrap_or_else(|error| {
            eprintln!("{error:#}");
            ExitCode::from(HARNESS_FAILED)
        }),
        ordeal => match tokio::runtime::Runtime::new() {
            Ok(runtime) => runtime.block_on(run_daemon(ordeal)),
            Err(error) => {
                eprintln!("{error}");
                ExitCode::from(HARNESS_FAILED)
            }
        },
    }
}

fn run_cluster(args: RunArgs) -> ExitCode {
    match try_cluster(args) {
        Ok(code) => code,
        Err(error) => {
            println!("NOTHING PROVED: the harness failed, not merlin: {error:#}");
            ExitCode::from(HARNESS_FAILED)
        }
    }
}

fn try_cluster(args: RunArgs) -> Result<ExitCode> {
    let Some(seed) = args.seed.filter(|_| enclosure::inside()) else {
        let seed = args.seed.unwrap_or_else(rand::random);
        println!("seed {seed}");
        // The last of two wins, so the seed is the one that was printed.
        let given = std::env::args_os().skip(1);
        let ended = enclosure::run(given.chain(["--seed".into(), seed.to_string().into()]))?;
        let code = ended.code().and_then(|code| u8::try_from(code).ok());
        return Ok(code.unwrap_or(HARNESS_FAILED).into());
    };
    let plan = plan(args, seed)?;
    let report = run::run(&plan, |line| println!("{line}"))?;
    report.save(&plan.folder)?;
    println!("{report}");
    println!("{}", plan.folder.display());
    Ok(match report.verdict() {
        Verdict::Clean => ExitCode::SUCCESS,
        Verdict::Broken => ExitCode::FAILURE,
        Verdict::HarnessFailed => ExitCode::from(HARNESS_FAILED),
    })
}

fn run_fast(args: &FastArgs) -> Result<ExitCode> {
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let plan = fast::Plan {
        first_seed: seed,
        seeds: match (args.seeds, args.minutes) {
            (Some(seeds), _) => seeds,
            (None, Some(_)) => u64::MAX,
            (None, None) => 1000,
        },
        time: args.minutes.map_or(Duration::MAX, |minutes| {
            Duration::from_secs_f64(minutes * 60.0)
        }),
        nodes: args.nodes,
        until_broken: args.until_broken,
        folder: match &args.folder {
            Some(folder) => folder.clone(),
            None => format!("jepsen-runs/fast-{seed}").into(),
        },
    };
    let tally = fast::run(&plan, |line| println!("{line}"))?;
    println!("{tally}");
    if tally.broken.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        println!("{}", plan.folder.display());
        Ok(ExitCode::FAILURE)
    }
}

#[derive(Debug, Args)]
struct FastArgs {
    /// The first seed; each cluster takes the next one [default: any]
    #[arg(long)]
    seed: Option<u64>,
    /// How many clusters [default: 1000, or as many as --minutes allow]
    #[arg(long)]
    seeds: Option<u64>,
    /// For how long
    #[arg(long)]
    minutes: Option<f64>,
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// End at the first promise that is broken
    #[arg(long)]
    until_broken: bool,
    /// Where to keep what was seen of broken promises [default: jepsen-runs/fast-SEED]
    #[arg(long)]
    folder: Option<PathBuf>,
}

fn plan(args: RunArgs, seed: u64) -> Result<run::Plan> {
    let kinds = match args.nemesis.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["all"] => Kind::all(args.store),
        ["none"] => Vec::new(),
        ref names => {
            let kind = |name: &&str| {
                Kind::from_str(name, true).map_err(|error| anyhow!("--nemesis: {error}"))
            };
            names.iter().map(kind).collect::<Result<_>>()?
        }
    };
    let variable = |given: &String| {
        let pair = given.split_once('=').context("--env: NAME=VALUE")?;
        Ok((pair.0.to_owned(), pair.1.to_owned()))
    };
    let plan = run::Plan {
        seed,
        nodes: args.nodes,
        store: args.store,
        time: Duration::from_secs_f64(args.minutes * 60.0),
        hold: Duration::from_secs_f64(args.hold),
        kinds,
        overlap: args.overlap,
        load: Load {
            writers: args.writers,
            pause: Duration::from_millis(args.pause),
        },
        patience: Duration::from_secs_f64(args.patience),
        folder: args
            .folder
            .unwrap_or_else(|| format!("jepsen-runs/{seed}").into()),
        merlin: match args.merlin {
            Some(merlin) => merlin,
            None => e2e::programs::locate("merlin")?,
        },
        environment: args.env.iter().map(variable).collect::<Result<_>>()?,
    };
    plan.check()?;
    Ok(plan)
}

async fn run_daemon(ordeal: Ordeal) -> ExitCode {
    let verdict = match ordeal {
        Ordeal::Run(_) | Ordeal::Fast(_) => return ExitCode::from(HARNESS_FAILED),
        Ordeal::Kill { rounds, seed } => {
            println!("seed {seed}");
            let longest = Duration::from_millis(400);
            kill::run(
                Plan {
                    rounds,
                    seed,
                    longest,
                    until_purged: false,
                },
                |round, history| {
                    if round % 10 == 0 {
                        println!("{round} kills, {}", count(history));
                    }
                },
            )
            .await
        }
        Ordeal::PowerCut {
            cuts,
            seed,
            careless,
        } => {
            println!("seed {seed}");
            let subject = match careless {
                true => Subject::Careless,
                false => Subject::Daemon,
            };
            let cut = || power::run(&std::env::current_exe()?, subject, cuts, seed);
            tokio::task::block_in_place(cut)
        }
        Ordeal::InGuest { first, careless } => {
            let ended = match careless {
                true => power::in_guest_carelessly(first),
                false => power::in_guest(first).await,
            };
            if let Err(error) = ended {
                eprintln!("{error:#}");
            }
            return ExitCode::FAILURE;
        }
    };
    match verdict {
        Ok(history) => {
            println!(
                "clean: every acknowledged write is there; {}",
                count(&history)
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn count(history: &History) -> String {
    format!(
        "{} acknowledged, {} unknown",
        history.acknowledged, history.unknown
    )
}
