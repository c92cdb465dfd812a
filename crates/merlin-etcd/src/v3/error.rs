//! What a failed call means.

use std::time::Duration;

use etcd_client::Error;
use tonic::Code;

/// A call to etcd did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// It had no effect and will have none.
    #[error("{0}")]
    Refused(String),
    /// The member did not take it on: it is not up, or has no leader. Another one may.
    #[error("{0}")]
    NotTaken(String),
    /// The revision asked for is gone.
    #[error("{0}")]
    Compacted(String),
    /// A lease that was thought to run has ended.
    #[error("{0}")]
    NoLease(String),
    /// It may have had its effect, or may still have it.
    #[error("{0}")]
    Unknown(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        let status = match error {
            Error::GRpcStatus(status) => status,
            Error::InvalidArgs(reason) => return Self::Refused(reason),
            Error::InvalidUri(error) => return Self::Refused(error.to_string()),
            Error::TransportError(error) => return Self::Unknown(chain(&error)),
            other => return Self::Unknown(other.to_string()),
        };
        let message = message(&status);
        match status.code() {
            Code::OutOfRange if message.contains("compacted") => Self::Compacted(message),
            Code::NotFound if message.contains("lease not found") => Self::NoLease(message),
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::ResourceExhausted
            | Code::Unimplemented
            | Code::OutOfRange => Self::Refused(message),
            // Before the call was taken on; "leader changed" and "timed out" come after.
            Code::Unavailable
                if message.contains("no leader") || message.contains("connect error") =>
            {
                Self::NotTaken(message)
            }
            _ => Self::Unknown(message),
        }
    }
}

impl CallError {
    /// The user may not do that to those keys.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Self::Refused(reason) if reason.contains("permission denied"))
    }

    /// For calls that change nothing, whose outcome is never in doubt.
    pub(super) fn is_compacted(&self) -> bool {
        matches!(self, Self::Compacted(_))
    }
}

fn message(status: &tonic::Status) -> String {
    use std::error::Error as _;

    let own = status.message();
    let transport = status.source().map(chain).unwrap_or_default();
    // What the transport has to say is more than that there was an error.
    let transport = transport.trim_start_matches("transport error: ");
    match (own, transport) {
        ("", "") => status.code().to_string(),
        (own, "") => own.to_owned(),
        (own, transport) if transport.contains(own) => transport.to_owned(),
        (own, transport) => format!("{own}: {transport}"),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}
