//! Who changed what.

use merlin_model::{AuditRecord, Timestamp};
use merlin_proto::metadata;
use merlin_proto::status::ToStatus;
use merlin_proto::v1::{AuditEntry, AuditRequest, AuditResponse};
use merlin_raft::RaftStore;
use tonic::{Request, Status};

use crate::api::metadata::timeout;
use crate::clock::wire_time;

const DEFAULT_LIMIT: usize = 100;

pub(super) async fn read(
    raft: &RaftStore,
    request: Request<AuditRequest>,
) -> Result<AuditResponse, Status> {
    let consistency = metadata::read_consistency(request.metadata()).map_err(|e| e.to_status())?;
    let patience = timeout(request.metadata());
    // The trail keeps pace with the catalog.
    let caught_up = raft.read(consistency, patience).await;
    caught_up.map_err(|error| error.to_status())?;
    let AuditRequest { limit, since } = request.into_inner();
    let limit = match usize::try_from(limit) {
        Ok(0) => DEFAULT_LIMIT,
        Ok(limit) => limit,
        Err(_) => usize::MAX,
    };
    let since = since.map_or(Timestamp(0), model_time);
    let trail = raft.audit();
    let entries = trail.records().take_while(|record| record.at >= since);
    Ok(AuditResponse {
        entries: entries.take(limit).map(|record| entry(record)).collect(),
    })
}

fn entry(record: &AuditRecord) -> AuditEntry {
    AuditEntry {
        number: record.number,
        time: Some(wire_time(record.at)),
        who: record.by.to_string(),
        what: record.what.clone(),
        revision: record.revision.0,
    }
}

fn model_time(at: prost_types::Timestamp) -> Timestamp {
    let seconds = u64::try_from(at.seconds).unwrap_or(0);
    let nanos = u64::try_from(at.nanos).unwrap_or(0);
    Timestamp(
        seconds
            .saturating_mul(1000)
            .saturating_add(nanos / 1_000_000),
    )
}
