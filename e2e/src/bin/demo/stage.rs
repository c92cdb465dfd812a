//! How the demonstration talks: scenes, commands as they are typed, and what came of them.

use std::fmt;
use std::io::IsTerminal;
use std::thread::sleep;
use std::time::Duration;

use e2e::guest::Guest;

/// Tells the part in the guest that somebody looks at a terminal: it cannot know.
const TERMINAL: &str = "DEMO_TERMINAL";

/// For a reader to follow.
const PAUSE: Duration = Duration::from_secs(2);

const BOLD: &str = "1";
const CYAN: &str = "36";

/// Has the part in the guest talk as this part would.
pub(crate) fn announce_terminal(guest: Guest) -> Guest {
    if std::io::stdout().is_terminal() {
        guest.env(TERMINAL, "1")
    } else {
        guest
    }
}

fn on_terminal() -> bool {
    std::env::var_os(TERMINAL).is_some()
}

fn coloured(code: &str, text: &str) -> String {
    if on_terminal() {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

/// Begins a scene, after a pause if somebody reads along.
pub(crate) fn scene(title: &str) {
    if on_terminal() {
        sleep(PAUSE);
    }
    println!("\n{}\n", coloured(BOLD, &format!("== {title}")));
}

pub(crate) fn say(text: &str) {
    println!("{text}");
}

/// A command, and on which host it is typed.
pub(crate) fn typed(host: &str, line: &str) {
    println!("{}", coloured(CYAN, &format!("{host}# {line}")));
}

/// What a command printed.
pub(crate) fn printed(text: &str) {
    for line in text.lines() {
        println!("{}", format!("    {line}").trim_end());
    }
}

/// Rows of figures under names, the first of each row being what the row is about.
pub(crate) fn matrix(columns: &[&str], rows: &[(String, Vec<u64>)]) {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut head = format!("    {:width$}", "");
    for column in columns {
        head += &format!("{column:>7}");
    }
    println!("{head}");
    for (name, figures) in rows {
        let figures: String = figures
            .iter()
            .map(|figure| format!("{figure:>7}"))
            .collect();
        println!("    {name:width$}{figures}");
    }
}

/// What the demonstration showed, for the end.
#[derive(Debug, Default)]
pub(crate) struct Summary(Vec<(&'static str, String)>);

impl Summary {
    pub(crate) fn note(&mut self, what: &'static str, figure: impl Into<String>) {
        self.0.push((what, figure.into()));
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
        self.0
            .iter()
            .try_for_each(|(what, figure)| writeln!(f, "    {what:width$}  {figure}"))
    }
}

pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
