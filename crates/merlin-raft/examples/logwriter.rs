//! `logwriter DIR [N|forever]`: appends to the log in DIR up to index N, from 300 bytes to a megabyte
//! at a time, and prints each index once it is acknowledged. For tests that cut the power.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

#[path = "support/load.rs"]
#[expect(dead_code, reason = "the other half is for logcheck")]
mod load;

fn main() -> ExitCode {
    load::report(run())
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: logwriter DIR [N|forever]")?;
    let until = match args.next().as_deref() {
        None | Some("forever") => u64::MAX,
        Some(until) => until.parse()?,
    };
    load::write(Path::new(&dir), until, &mut std::io::stdout())
}
