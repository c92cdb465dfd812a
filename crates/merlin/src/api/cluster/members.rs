//! Changes of the members.

use merlin_model::{Invalid, Revision};
use merlin_proto::status::ToStatus;
use merlin_proto::v1::{
    JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, MembersResponse,
    RenewCertificateResponse,
};
use merlin_raft::identity::EnrollError;
use merlin_raft::{Application, Change, ChangeError, JoinError, LeaveError, RaftStore};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Status};

use crate::api::access::Caller;
use crate::api::metadata::timeout;
use crate::clock::wire_time;
use crate::node::Node;

pub(super) async fn change<T>(
    raft: &RaftStore,
    request: Request<T>,
    change: impl FnOnce(T) -> Change,
) -> Result<MembersResponse, Status> {
    let timeout = timeout(request.metadata());
    let by = Caller::of(&request)?.actor;
    let change = change(request.into_inner());
    let changed = raft.change(change, by, timeout).await.map_err(refused)?;
    Ok(MembersResponse {
        node_id: changed.node,
        name: changed.name,
        voters_before: changed.before.into_iter().collect(),
        voters_after: changed.after.into_iter().collect(),
        already: changed.already,
    })
}

pub(super) async fn join(
    node: &Node,
    raft: &RaftStore,
    request: Request<JoinRequest>,
) -> Result<JoinResponse, Status> {
    let JoinRequest {
        token,
        discard_local_state,
    } = request.into_inner();
    let token = token
        .parse()
        .map_err(|error| Invalid::new("token", format!("{error}")).to_status())?;
    let Some(applicant) = node.applicant() else {
        return Err(Status::unavailable(
            "this node is joining a cluster already",
        ));
    };
    let join = applicant.with(token, discard_local_state);
    match raft
        .apply_for(join)
        .await
        .map_err(|error| let_out(&error))?
    {
        Application::Already(name) => Ok(JoinResponse {
            node_id: name.node,
            role: String::new(),
            already: true,
        }),
        Application::Admitted(admitted) => {
            let response = JoinResponse {
                node_id: admitted.name().node,
                role: admitted.role().to_string(),
                already: false,
            };
            // Answered before the daemon begins anew, which lets open requests finish.
            applicant.is_admitted(*admitted);
            Ok(response)
        }
    }
}

fn let_out(error: &JoinError) -> Status {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    let words = format!("{error}{}", source.unwrap_or_default());
    match error {
        JoinError::InUse { .. }
        | JoinError::Unreadable { .. }
        | JoinError::Enroll(EnrollError::Refused { .. } | EnrollError::NoAddress) => {
            Status::failed_precondition(words)
        }
        JoinError::Enroll(EnrollError::NoAnswer(_)) => Status::unavailable(words),
        _ => Status::internal(words),
    }
}

pub(super) async fn leave(
    node: &Node,
    raft: &RaftStore,
    request: Request<LeaveRequest>,
) -> Result<LeaveResponse, Status> {
    let deadline = Instant::now() + timeout(request.metadata());
    let by = Caller::of(&request)?.actor;
    let left = deadline.saturating_duration_since(Instant::now());
    let archive = raft.leave(by, left).await.map_err(|error| match error {
        LeaveError::Change(error) => refused(error),
        LeaveError::Before => Status::failed_precondition(error.to_string()),
        LeaveError::DataDir(ref source) => Status::internal(format!(
            "{error}: {source}; run it again when that is mended"
        )),
        LeaveError::Interrupted => Status::internal(error.to_string()),
    })?;
    if request.get_ref().flush
        && let Some(empty) = raft.forget_catalog()
    {
        flushed(node, empty, deadline).await?;
    }
    Ok(LeaveResponse {
        archive: archive.display().to_string(),
    })
}

/// Waits until nothing of the catalog is in the kernel any more.
async fn flushed(node: &Node, empty: Revision, deadline: Instant) -> Result<(), Status> {
    let Some(mut status) = node.reconciler_status() else {
        return Ok(());
    };
    let done = status.wait_for(|status| status.programmed >= empty);
    match timeout_at(deadline, done).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Status::deadline_exceeded(
            "the node has left, but the kernel's table is not cleared yet; `meradm status` says why",
        )),
    }
}

pub(super) fn renew(raft: &RaftStore) -> Result<RenewCertificateResponse, Status> {
    let expires = raft.renew_certificate().map_err(|error| {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        Status::failed_precondition(format!("{error}{}", source.unwrap_or_default()))
    })?;
    Ok(RenewCertificateResponse {
        expires: Some(wire_time(expires)),
    })
}

fn refused(error: ChangeError) -> Status {
    match error {
        ChangeError::Refused(reason) => Status::failed_precondition(reason),
        ChangeError::Unavailable(reason) => Status::unavailable(reason),
        ChangeError::Unknown(reason) => Status::unknown(reason),
    }
}
