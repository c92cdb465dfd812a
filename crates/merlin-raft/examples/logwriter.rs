//! `logwriter DIR [UNTIL]`: appends to the log in DIR, from 300 bytes to 60 kB at a time, and prints
//! each index once it is acknowledged. For tests that cut the power.

use std::error::Error;
use std::path::Path;

#[path = "support/load.rs"]
#[expect(dead_code, reason = "the other half is for logcheck")]
mod load;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().ok_or("usage: logwriter DIR [UNTIL]")?;
    let until = match args.next() {
        Some(until) => until.to_str().ok_or("UNTIL is not a number")?.parse()?,
        None => u64::MAX,
    };
    load::write(Path::new(&dir), until, &mut std::io::stdout())
}
