//! `e2e-peer server|client|load`: the two ends of test traffic, for tests and by hand.

#![expect(clippy::print_stdout, reason = "its results are what it is run for")]

use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use e2e::peer::{Load, LoadPlan, Protocol, Server, survey};

/// Answer with a name, or ask for one.
#[derive(Debug, Parser)]
enum Command {
    /// Answer TCP, UDP and HTTP on one port with a name; print `ready` once listening.
    Server {
        #[arg(long)]
        name: String,
        #[arg(long)]
        port: u16,
        /// While this file exists, GET /health answers 503.
        #[arg(long)]
        sick_file: Option<PathBuf>,
    },
    /// Ask some times and print who answered how often; exit 1 if a question failed.
    Client {
        /// tcp, udp or http
        protocol: Protocol,
        target: SocketAddr,
        #[arg(short = 'n', long, default_value_t = 10)]
        questions: usize,
        #[arg(long, default_value_t = 1000, value_name = "MILLISECONDS")]
        timeout: u64,
    },
    /// Keep opening connections until standard input closes; exit 1 if anything failed.
    Load {
        target: SocketAddr,
        /// Connections to hold open all along.
        #[arg(long, default_value_t = 0)]
        lasting: usize,
        /// Between two new connections.
        #[arg(long, default_value_t = 5, value_name = "MILLISECONDS")]
        pause: u64,
        #[arg(long, default_value_t = 1000, value_name = "MILLISECONDS")]
        timeout: u64,
    },
}

fn main() -> Result<ExitCode> {
    let fine = match Command::parse() {
        Command::Server {
            name,
            port,
            sick_file,
        } => {
            Server {
                name,
                port,
                sick_file,
            }
            .run(|| println!("ready"))?;
            true
        }
        Command::Client {
            protocol,
            target,
            questions,
            timeout,
        } => {
            let answers = survey(protocol, target, questions, Duration::from_millis(timeout));
            print!("{answers}");
            answers.failures.is_empty()
        }
        Command::Load {
            target,
            lasting,
            pause,
            timeout,
        } => {
            let pause = Duration::from_millis(pause);
            let timeout = Duration::from_millis(timeout);
            let load = Load::start(LoadPlan {
                target,
                lasting,
                pause,
                timeout,
            })
            .context("opening the lasting connections")?;
            io::stdin().read_to_end(&mut Vec::new())?;
            let report = load.stop();
            print!("{report}");
            report.flawless()
        }
    };
    Ok(if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
