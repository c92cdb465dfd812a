//! Why a command failed, in words and as an exit code.

use std::io::{self, Write as _};
use std::process::ExitCode;

use merlin_proto::status::{Meaning, meaning};
use tonic::Status;

/// Why a command failed, by exit code.
pub(super) enum Failure {
    Unreachable(String),
    Status(Status),
    Output(io::Error),
    Other(anyhow::Error),
}

impl Failure {
    pub(super) fn report(&self) -> ExitCode {
        let (code, words) = match self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return ExitCode::SUCCESS;
            }
            Self::Output(error) => (1, error.to_string()),
            Self::Other(error) => (1, format!("{error:#}")),
            Self::Unreachable(words) => (3, words.clone()),
            Self::Status(status) => match meaning(status) {
                Meaning::Rejected => (4, status.message().to_owned()),
                Meaning::Unavailable | Meaning::Unknown => (3, status.message().to_owned()),
                Meaning::Failed => (1, status.message().to_owned()),
            },
        };
        let _ = writeln!(io::stderr(), "merlin: {words}");
        ExitCode::from(code)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}
