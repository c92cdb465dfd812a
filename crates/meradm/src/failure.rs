//! Why a command did not succeed, in words on standard error and as an exit code.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::ErrorKind;
use merlin_client::ContextsError;
use merlin_proto::status::{Meaning, meaning};
use tonic::Status;

use crate::cli::Cli;

#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line makes no sense, or asks for help.
    Usage(clap::Error),
    /// No node could be reached; nothing was asked.
    Unreachable(String),
    /// Contexts are not as they should be; nothing was asked.
    Context(Box<dyn Error>),
    /// A node refused or failed.
    Status(Status),
    /// What was asked for makes no sense to the catalog; nothing was changed.
    Rejected(String),
    /// Something on this host is in the way.
    Local(String),
    /// The result could not be printed.
    Output(io::Error),
}

const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const UNAVAILABLE: u8 = 3;
const REJECTED: u8 = 4;

impl Failure {
    /// A usage error that clap could not see.
    pub(crate) fn usage(words: impl std::fmt::Display) -> Self {
        Self::Usage(Cli::command().error(ErrorKind::ValueValidation, words))
    }

    /// Tells people what went wrong and scripts what kind of thing it was.
    pub(crate) fn report(&self) -> ExitCode {
        let (code, words) = match self {
            Self::Usage(error) => {
                // Help goes to standard output; nobody may be listening, which is fine.
                let _ = error.print();
                let code = if error.use_stderr() { USAGE } else { 0 };
                return code.into();
            }
            // Whoever read the output has seen enough.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return ExitCode::SUCCESS;
            }
            Self::Output(error) => (FAILURE, error.to_string()),
            Self::Unreachable(words) => (UNAVAILABLE, words.clone()),
            Self::Context(error) => (FAILURE, chain(&error.to_string(), error.source())),
            Self::Rejected(words) => (REJECTED, words.clone()),
            Self::Local(words) => (FAILURE, words.clone()),
            Self::Status(status) => match meaning(status) {
                Meaning::Rejected => (REJECTED, in_words(status)),
                Meaning::Unavailable | Meaning::Unknown => (UNAVAILABLE, in_words(status)),
                Meaning::Failed => (FAILURE, in_words(status)),
            },
        };
        say(&format!("meradm: {words}"));
        code.into()
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<ContextsError> for Failure {
    fn from(error: ContextsError) -> Self {
        Self::Context(Box::new(error))
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// A status as one line.
pub(crate) fn in_words(status: &Status) -> String {
    let message = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    chain(message, status.source())
}

/// An error and its causes, each said once: transports repeat their causes' words, and put the
/// telling part last.
pub(crate) fn chain(message: &str, mut source: Option<&dyn Error>) -> String {
    let mut words = message.to_owned();
    while let Some(error) = source {
        let text = error.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        source = error.source();
    }
    words
}

/// Prints a line on standard error. When that is closed there is nobody left to tell.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
