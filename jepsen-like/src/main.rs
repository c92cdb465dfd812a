//! `jepsen-like kill` and `jepsen-like power-cut`: hurt a daemon for as long as you like, and say
//! whether it kept its word.

#![expect(clippy::print_stderr, reason = "what went wrong in the guest")]
#![expect(
    clippy::print_stdout,
    reason = "a run reports its progress and its verdict"
)]

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use jepsen_like::history::{History, Serial};
use jepsen_like::kill::{self, Plan};
use jepsen_like::power;

#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Run {
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
    },
    /// What `power-cut` runs beside the daemon in its guest
    #[command(hide = true)]
    InGuest { first: Serial },
}

#[tokio::main]
async fn main() -> ExitCode {
    let verdict = match Cli::parse().run {
        Run::Kill { rounds, seed } => {
            println!("seed {seed}");
            let longest = Duration::from_millis(400);
            kill::run(
                Plan {
                    rounds,
                    seed,
                    longest,
                },
                |round, history| {
                    if round % 10 == 0 {
                        println!("{round} kills, {}", count(history));
                    }
                },
            )
            .await
        }
        Run::PowerCut { cuts, seed } => {
            println!("seed {seed}");
            let cut = || power::run(&std::env::current_exe()?, cuts, seed);
            tokio::task::block_in_place(cut)
        }
        Run::InGuest { first } => {
            if let Err(error) = power::in_guest(first).await {
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
