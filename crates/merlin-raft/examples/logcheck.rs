//! `logcheck DIR N`: verifies that the log in DIR holds what logwriter appended, up to index N at
//! least, without a gap and byte for byte. N is `none` before anything was acknowledged. Prints
//! the last index.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

#[path = "support/load.rs"]
#[expect(dead_code, reason = "the other half is for logwriter")]
mod load;

fn main() -> ExitCode {
    load::report(run())
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(dir), Some(acknowledged)) = (args.next(), args.next()) else {
        return Err("usage: logcheck DIR N".into());
    };
    let acknowledged = match &*acknowledged {
        "none" => None,
        index => Some(index.parse()?),
    };
    let last = load::check(Path::new(&dir), acknowledged)?;
    writeln!(std::io::stdout(), "ok, last {last:?}")?;
    Ok(())
}
