//! Administers merlin nodes over gRPC.
//!
//! * [`cli`]: what can be said; completions and manual pages come from it.
//! * [`commands`]: what is done about it, one module per noun.
//! * [`client`] and [`connect`]: how a node is found, asked, and asked again.
//! * [`document`]: the catalog as a file.
//! * [`table`], [`output`]: what is printed. Standard output carries results only.

mod cli;
mod client;
mod commands;
mod connect;
mod document;
mod duration;
mod failure;
mod output;
mod table;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;
use crate::failure::Failure;

fn main() -> ExitCode {
    let outcome = Cli::try_parse().map_err(Failure::Usage).and_then(run);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(commands::run(cli))
}
