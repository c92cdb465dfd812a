//! `jepsen-like kill`: hurts a daemon for as long as you like and says whether it kept its word.

#![expect(
    clippy::print_stdout,
    reason = "a run reports its progress and its verdict"
)]

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use jepsen_like::kill::{self, Plan};

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
}

#[tokio::main]
async fn main() -> ExitCode {
    let Run::Kill { rounds, seed } = Cli::parse().run;
    println!("seed {seed}");
    let longest = Duration::from_millis(400);
    let ran = kill::run(
        Plan {
            rounds,
            seed,
            longest,
        },
        |round, history| {
            if round % 10 == 0 {
                let (acknowledged, unknown) = (history.acknowledged, history.unknown);
                println!("{round} kills, {acknowledged} writes acknowledged, {unknown} unknown");
            }
        },
    );
    match ran.await {
        Ok(_) => {
            println!("clean: every acknowledged write is there");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}
