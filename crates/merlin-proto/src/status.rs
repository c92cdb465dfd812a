//! gRPC status codes for everything that can be refused or fail, and what they mean to a client.
//!
//! The distinction that matters: `UNAVAILABLE` promises that nothing happened, `UNKNOWN` and
//! `DEADLINE_EXCEEDED` promise nothing.

use merlin_model::Invalid;
use merlin_model::command::Rejection;
use merlin_model::store::{Compacted, ProposeError, ReadError};
use tonic::{Code, Status};

use crate::server::UpdateServerError;

/// The one place that decides which status an error becomes.
pub trait ToStatus {
    fn to_status(&self) -> Status;
}

impl ToStatus for Invalid {
    fn to_status(&self) -> Status {
        Status::invalid_argument(self.to_string())
    }
}

impl ToStatus for UpdateServerError {
    fn to_status(&self) -> Status {
        match self {
            Self::Invalid(invalid) => invalid.to_status(),
            Self::Unnamed(_) => Status::not_found(self.to_string()),
        }
    }
}

impl ToStatus for Rejection {
    fn to_status(&self) -> Status {
        let code = match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::ServiceExists(_) | Self::KeyTaken { .. } | Self::ServerExists { .. } => {
                Code::AlreadyExists
            }
            Self::ServiceNotFound(_) | Self::ServerNotFound { .. } => Code::NotFound,
            Self::Conflict { .. } => Code::Aborted,
        };
        Status::new(code, self.to_string())
    }
}

impl ToStatus for ProposeError {
    fn to_status(&self) -> Status {
        match self {
            Self::Rejected(rejection) => rejection.to_status(),
            Self::Unavailable { .. } => Status::unavailable(self.to_string()),
            Self::Outdated { .. } => Status::failed_precondition(self.to_string()),
            Self::Unknown { reason } => Status::unknown(format!(
                "the change may or may not have been applied: {reason}"
            )),
            Self::TooLarge { .. } => Status::resource_exhausted(self.to_string()),
        }
    }
}

impl ToStatus for ReadError {
    fn to_status(&self) -> Status {
        match self {
            Self::Unavailable { .. } => Status::unavailable(self.to_string()),
            Self::Timeout(_) => Status::deadline_exceeded(self.to_string()),
        }
    }
}

impl ToStatus for Compacted {
    fn to_status(&self) -> Status {
        Status::out_of_range(self.to_string())
    }
}

/// What a status tells whoever sent the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Refused for good: it changed nothing, and the same request would be refused again.
    Rejected,
    /// It changed nothing, and a retry may succeed.
    Unavailable,
    /// A mutation may or may not have been applied; a retry with the same request id is safe.
    Unknown,
    /// Something is broken.
    Failed,
}

pub fn meaning(status: &Status) -> Meaning {
    match status.code() {
        Code::InvalidArgument
        | Code::AlreadyExists
        | Code::NotFound
        | Code::Aborted
        | Code::OutOfRange
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::PermissionDenied
        | Code::Unauthenticated => Meaning::Rejected,
        Code::Unavailable => Meaning::Unavailable,
        Code::Unknown | Code::DeadlineExceeded | Code::Cancelled => Meaning::Unknown,
        Code::Ok | Code::Unimplemented | Code::Internal | Code::DataLoss => Meaning::Failed,
    }
}
