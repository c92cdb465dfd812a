//! Copies of the whole state.

use std::pin::Pin;

use futures::Stream;
use merlin_model::store::Consistency;
use merlin_proto::status::ToStatus;
use merlin_proto::v1::{SaveSnapshotRequest, SnapshotPart};
use merlin_raft::{Keys, RaftStore};
use tonic::{Request, Status};

use crate::api::metadata::timeout;

/// Far below what a client takes in one message.
const PIECE: usize = 256 << 10;

pub(super) type Parts = Pin<Box<dyn Stream<Item = Result<SnapshotPart, Status>> + Send>>;

pub(super) async fn save(
    store: &RaftStore,
    request: Request<SaveSnapshotRequest>,
) -> Result<Parts, Status> {
    let timeout = timeout(request.metadata());
    let consistency = if request.get_ref().local {
        Consistency::Stale
    } else {
        Consistency::Linearizable
    };
    let keys = match request.get_ref().without_authority {
        true => Keys::LeftOut,
        false => Keys::Kept,
    };
    let copy = store.copy(consistency, keys, timeout).await;
    let copy = copy.map_err(|error| error.to_status())?;
    let pieces = (0..copy.len()).step_by(PIECE).map(move |at| {
        let data = copy.slice(at..copy.len().min(at + PIECE)).into();
        Ok(SnapshotPart { data })
    });
    Ok(Box::pin(futures::stream::iter(pieces)))
}
