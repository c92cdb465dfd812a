//! Consensus's messages to other nodes, as openraft sends them.

use std::time::Duration;

use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};

use crate::aside::Silence;
use crate::log::LogStore;
use crate::peers::wire::{AppendAnswer, AppendRequest};
use crate::peers::{CallError, Peers, Target};
use crate::typ::{MerlinNode, NodeId, Snapshot, TypeConfig, Vote};

/// Bytes of entries in one message, but at least one entry. A message has to arrive and be written
/// to the other disk within the time of a heartbeat.
const MESSAGE: usize = 1 << 20;

type RpcError = RPCError<NodeId, MerlinNode, RaftError<NodeId>>;

#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) peers: Peers,
    pub(crate) log: LogStore,
    /// While it is kept, nothing is sent that only a leader sends.
    pub(crate) silence: Silence,
    /// How long to leave a node alone that could not be reached.
    pub(crate) pause: Duration,
}

/// The way to one node.
#[derive(Debug)]
pub(crate) struct Connection {
    peers: Peers,
    log: LogStore,
    target: Target,
    silence: Silence,
    pause: Duration,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    /// Must not wait for anything: consensus stands still meanwhile.
    async fn new_client(&mut self, target: NodeId, node: &MerlinNode) -> Connection {
        Connection {
            peers: self.peers.clone(),
            log: self.log.clone(),
            target: Target::new(target, node),
            silence: self.silence.clone(),
            pause: self.pause,
        }
    }
}

impl RaftNetwork<TypeConfig> for Connection {
    async fn append_entries(
        &mut self,
        mut rpc: AppendRequest,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RpcError> {
        if self.silence.is_kept() {
            return Err(Unreachable::new(&SteppedAside).into());
        }
        // Nobody applies what this node may yet lose.
        if let Some(committed) = &rpc.leader_commit {
            let settled = self.log.settled(committed.index).await;
            settled.map_err(|error| Unreachable::new(&error))?;
        }
        let last = shorten(&mut rpc);
        let answer = self
            .peers
            .append(&self.target, &rpc, option.hard_ttl())
            .await?;
        Ok(match (answer, last) {
            (AppendAnswer::Success, Some(last)) => AppendAnswer::PartialSuccess(Some(last)),
            (answer, _) => answer,
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RpcError> {
        Ok(self
            .peers
            .vote(&self.target, &rpc, option.hard_ttl())
            .await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<TypeConfig, Fatal<NodeId>>> {
        if self.silence.is_kept() {
            return Err(Unreachable::new(&SteppedAside).into());
        }
        let data = *snapshot.snapshot;
        let sent = self
            .peers
            .install_snapshot(&self.target, &vote, data, option.hard_ttl());
        tokio::select! {
            sent = sent => sent.map_err(|error| match error {
                CallError::NotSent { .. } => Unreachable::new(&error).into(),
                CallError::NoAnswer { .. } => NetworkError::new(&error).into(),
            }),
            closed = cancel => Err(closed.into()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.pause))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("this node has stepped aside")]
struct SteppedAside;

/// Takes entries away until the rest fits into a message, and gives the last of those that stay.
fn shorten(rpc: &mut AppendRequest) -> Option<crate::typ::LogId> {
    let mut bytes = 0;
    let fits = rpc.entries.iter().take_while(|entry| {
        bytes += size(entry);
        bytes <= MESSAGE
    });
    let keep = fits.count().max(1);
    if keep >= rpc.entries.len() {
        return None;
    }
    rpc.entries.truncate(keep);
    rpc.entries.last().map(|entry| entry.log_id)
}

fn size(entry: &crate::typ::Entry) -> usize {
    match &entry.payload {
        crate::typ::EntryPayload::Normal(proposal) => proposal.0.len(),
        _ => 0,
    }
}

impl From<CallError> for RpcError {
    /// Either way the node is left alone for a while: whatever went wrong takes longer to pass
    /// than the next attempt.
    fn from(error: CallError) -> Self {
        Unreachable::new(&error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::{at, entry};
    use crate::typ::{Entry, EntryPayload, Proposal};

    fn request(entries: Vec<Entry>) -> AppendRequest {
        AppendRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: None,
            entries,
            leader_commit: None,
        }
    }

    fn large(index: u64) -> Entry {
        Entry {
            log_id: at(index),
            payload: EntryPayload::Normal(Proposal(vec![0; MESSAGE * 2 / 3].into())),
        }
    }

    #[test]
    fn a_message_is_shortened_to_what_arrives_in_time() {
        let mut rpc = request(vec![entry(1), large(2), large(3), entry(4)]);
        assert_eq!(shorten(&mut rpc), Some(at(2)));
        assert_eq!(rpc.entries.len(), 2);
    }

    #[test]
    fn one_entry_is_sent_however_large_and_small_messages_stay_whole() {
        let mut rpc = request(vec![Entry {
            payload: EntryPayload::Normal(Proposal(vec![0; MESSAGE * 2].into())),
            ..large(1)
        }]);
        assert_eq!(shorten(&mut rpc), None);
        let mut rpc = request((1..9).map(entry).collect());
        assert_eq!(shorten(&mut rpc), None);
        assert_eq!(shorten(&mut request(Vec::new())), None);
    }
}
