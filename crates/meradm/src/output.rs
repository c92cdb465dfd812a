//! Printing results.

use std::io::{self, Write};

use serde::Serialize;

use crate::cli::Form;

/// Prints a result whole: as a table, or as the value it is made of.
pub(crate) fn print(
    form: Form,
    table: impl FnOnce() -> String,
    value: &impl Serialize,
) -> io::Result<()> {
    let text = match form {
        Form::Table => table(),
        Form::Json => serde_json::to_string_pretty(value)? + "\n",
        Form::Yaml => yaml(value)?,
    };
    write(&text)
}

/// Prints one of many results: a line, a line of JSON, or a YAML document.
pub(crate) fn print_one(
    form: Form,
    line: impl FnOnce() -> String,
    value: &impl Serialize,
) -> io::Result<()> {
    let text = match form {
        Form::Table => line() + "\n",
        Form::Json => serde_json::to_string(value)? + "\n",
        Form::Yaml => format!("---\n{}", yaml(value)?),
    };
    write(&text)
}

/// Flushed each time, so that whoever reads a watch sees it as it happens.
pub(crate) fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

pub(crate) fn yaml(value: &impl Serialize) -> io::Result<String> {
    serde_norway::to_string(value).map_err(io::Error::other)
}

/// Compares what would be printed with what was reviewed; the input is in the test.
#[cfg(test)]
macro_rules! snapshot {
    ($text:expr) => {
        insta::with_settings!({omit_expression => true}, { insta::assert_snapshot!($text) })
    };
}
#[cfg(test)]
pub(crate) use snapshot;
