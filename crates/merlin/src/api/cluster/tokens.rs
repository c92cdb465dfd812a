//! Tokens, which let new nodes in.

use std::time::Duration;

use merlin_model::Invalid;
use merlin_proto::status::ToStatus;
use merlin_proto::v1::{
    CreateTokenRequest, CreateTokenResponse, JoinToken, ListTokensResponse, RevokeTokenRequest,
    RevokeTokenResponse,
};
use merlin_raft::identity::{EnrollmentAnswer, EnrollmentCommand, Role, TokenId, TokenRecord};
use merlin_raft::{NewToken, RaftStore};
use tonic::{Request, Status};

use crate::api::access::Caller;
use crate::api::metadata::timeout;
use crate::clock::wire_time;

const MAX_TTL: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const MAX_USES: u32 = 1000;
const MAX_NAME: usize = 255;

pub(super) async fn create(
    raft: &RaftStore,
    request: Request<CreateTokenRequest>,
) -> Result<CreateTokenResponse, Status> {
    let timeout = timeout(request.metadata());
    let by = Caller::of(&request)?.actor;
    let wanted = parse(request.into_inner()).map_err(|invalid| invalid.to_status())?;
    let created = raft.create_token(wanted, by, timeout).await;
    let token = created.map_err(|error| error.to_status())?;
    Ok(CreateTokenResponse {
        id: token.id.to_string(),
        token: token.to_string(),
    })
}

pub(super) fn list(raft: &RaftStore) -> ListTokensResponse {
    let tokens = raft.enrollment().tokens;
    let token = |(id, record): (TokenId, TokenRecord)| JoinToken {
        id: id.to_string(),
        name: record.name,
        role: record.role.to_string(),
        expires: Some(wire_time(record.expires)),
        uses_left: record.uses_left,
        revoked: record.revoked,
    };
    let tokens = tokens.into_iter().map(token).collect();
    ListTokensResponse { tokens }
}

pub(super) async fn revoke(
    raft: &RaftStore,
    request: Request<RevokeTokenRequest>,
) -> Result<RevokeTokenResponse, Status> {
    let timeout = timeout(request.metadata());
    let by = Caller::of(&request)?.actor;
    let id = &request.get_ref().id;
    let id = id.parse().map_err(|_| {
        Invalid::new("id", format!("{id:?} is not a token's id: see token list")).to_status()
    })?;
    let command = EnrollmentCommand::RevokeToken(id);
    let answer = raft.enroll(command, by, timeout).await;
    if let EnrollmentAnswer::Refused(error) = answer.map_err(|error| error.to_status())? {
        return Err(Status::not_found(error.to_string()));
    }
    Ok(RevokeTokenResponse {})
}

fn parse(request: CreateTokenRequest) -> Result<NewToken, Invalid> {
    let role = match request.role.as_str() {
        "" | "voter" => Role::Voter,
        "learner" => Role::Learner,
        other => {
            let reason = format!("unknown role {other:?}: voter or learner");
            return Err(Invalid::new("role", reason));
        }
    };
    let NewToken { lifetime, .. } = NewToken::default();
    let ttl = match request.ttl {
        None => lifetime,
        Some(ttl) => Duration::try_from(ttl).unwrap_or_default(),
    };
    if ttl.is_zero() || ttl > MAX_TTL {
        return Err(Invalid::new(
            "ttl",
            "must be longer than 0s and at most 30 days",
        ));
    }
    if request.uses > MAX_USES {
        return Err(Invalid::new("uses", format!("must be at most {MAX_USES}")));
    }
    if request.name.len() > MAX_NAME || request.name.chars().any(char::is_control) {
        let reason = "must be at most 255 bytes without control characters";
        return Err(Invalid::new("name", reason));
    }
    Ok(NewToken {
        name: request.name,
        role,
        lifetime: ttl,
        uses: request.uses.max(1),
    })
}
