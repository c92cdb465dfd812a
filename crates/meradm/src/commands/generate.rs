//! Completions and manual pages, from the same definitions as the command line itself.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::output;

pub(super) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "meradm", &mut script);
    Ok(output::write(&String::from_utf8_lossy(&script))?)
}

pub(super) fn man(out_dir: Option<&Path>) -> Result<(), Failure> {
    // A page says "version" itself, where the program has to.
    let command = Cli::command().version(env!("CARGO_PKG_VERSION"));
    if let Some(dir) = out_dir {
        return Ok(clap_mangen::generate_to(command, dir)?);
    }
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    Ok(output::write(&String::from_utf8_lossy(&page))?)
}
