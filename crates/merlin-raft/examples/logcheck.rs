//! `logcheck DIR N`: verifies that the log in DIR holds what logwriter appended, up to index N at
//! least, without a gap and byte for byte. Prints the last index.

use std::error::Error;
use std::io::Write;
use std::path::Path;

#[path = "support/load.rs"]
#[expect(dead_code, reason = "the other half is for logwriter")]
mod load;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(dir), Some(acknowledged)) = (args.next(), args.next()) else {
        return Err("usage: logcheck DIR N".into());
    };
    let last = load::check(Path::new(&dir), Some(acknowledged.parse()?))?;
    writeln!(std::io::stdout(), "ok, last {last:?}")?;
    Ok(())
}
