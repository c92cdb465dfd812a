//! Completions and manual pages, from the same definitions as the command line itself.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;

/// Where manual pages of daemons and their administration belong.
const SECTION: &str = "8";

pub(crate) fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "merlin", &mut script);
    concluded(print(&script))
}

/// Prints the page of `merlin` itself, or writes those of all commands into a directory.
pub(crate) fn man(out_dir: Option<&Path>) -> ExitCode {
    let mut command = Cli::command()
        .disable_help_subcommand(true)
        .version(env!("CARGO_PKG_VERSION"));
    command.build();
    concluded(match out_dir {
        Some(dir) => write(&command, dir)
            .with_context(|| format!("--out-dir: writing into {}", dir.display())),
        None => render(command).and_then(|page| print(&page)),
    })
}

fn write(command: &clap::Command, dir: &Path) -> anyhow::Result<()> {
    for subcommand in command.get_subcommands() {
        write(subcommand, dir)?;
    }
    Man::new(command.clone())
        .section(SECTION)
        .generate_to(dir)?;
    Ok(())
}

fn render(command: clap::Command) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command).section(SECTION).render(&mut page)?;
    Ok(page)
}

fn print(text: &[u8]) -> anyhow::Result<()> {
    match io::stdout().lock().write_all(text) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

fn concluded(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::report(&error);
            ExitCode::FAILURE
        }
    }
}
