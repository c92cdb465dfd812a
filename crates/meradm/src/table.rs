//! Tables for people, and for the scripts that have always matched their lines.

mod access;
mod catalog;
mod live;
mod nodes;
#[cfg(test)]
mod tests;
mod words;

pub(crate) use access::{audit, contexts, time};
pub(crate) use catalog::catalog;
pub(crate) use live::Live;
pub(crate) use nodes::status;
pub(crate) use words::event;

/// Pads to the width of a column.
fn pad(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(width_of(text));
    format!("{text}{:missing$}", "")
}

/// Width on a terminal, near enough: names are mostly ASCII.
fn width_of(text: &str) -> usize {
    text.chars().count()
}

/// Width that fits every one of these.
fn widest<'a>(texts: impl IntoIterator<Item = &'a str>) -> usize {
    texts.into_iter().map(width_of).max().unwrap_or(0)
}

/// Rows of columns, each as wide as its widest cell; no line ends in a space.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let widths: Vec<_> = (0..columns)
        .map(|column| widest(cells(column).map(String::as_str)) + 2)
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let line: String = cells.map(|(cell, width)| pad(cell, *width)).collect();
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}
