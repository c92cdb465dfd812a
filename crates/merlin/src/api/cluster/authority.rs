//! Replacing the certificate authority.

use merlin_proto::status::ToStatus;
use merlin_proto::v1::{RotateAuthorityRequest, RotateAuthorityResponse};
use merlin_raft::{RaftStore, RotateError};
use tonic::{Request, Status};

use crate::api::access::Caller;
use crate::api::metadata::timeout;

pub(super) async fn rotate(
    raft: &RaftStore,
    request: Request<RotateAuthorityRequest>,
) -> Result<RotateAuthorityResponse, Status> {
    let timeout = timeout(request.metadata());
    let by = Caller::of(&request)?.actor;
    let finish = request.get_ref().finish;
    let rotated = raft.rotate_authority(finish, by, timeout).await;
    let rotated = rotated.map_err(|error| match error {
        RotateError::Store(error) => error.to_status(),
        RotateError::NothingToFinish | RotateError::NotYet => {
            Status::failed_precondition(error.to_string())
        }
        RotateError::Waiting(_) => Status::unavailable(error.to_string()),
        RotateError::Create(_) => Status::internal(error.to_string()),
    })?;
    Ok(RotateAuthorityResponse {
        authority: rotated.authority.to_string(),
        former: rotated
            .former
            .map(|former| former.to_string())
            .unwrap_or_default(),
    })
}
