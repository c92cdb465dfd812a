use openraft::storage::RaftLogStorageExt;
use tokio::sync::oneshot;
use tokio::time::{Duration, timeout};

use super::*;
use crate::state::tests::{at, entry};

const ME: NodeId = 1;
const OTHER: NodeId = 2;

/// A disk that is done with a change when it is told so.
#[derive(Debug, Default)]
struct SlowDisk {
    waiting: Mutex<VecDeque<oneshot::Sender<Result<(), WriteError>>>>,
    vote: Mutex<Option<Ballot>>,
    committed: Mutex<Option<Position>>,
}

impl SlowDisk {
    fn wait(&self) -> Ack {
        let (done, ack) = oneshot::channel();
        self.waiting.lock().unwrap().push_back(done);
        Ack::of(ack)
    }

    /// Ends the change that waits longest.
    fn end(&self, with: Result<(), WriteError>) {
        let done = self.waiting.lock().unwrap().pop_front().unwrap();
        done.send(with).unwrap();
    }
}

impl Engine for Arc<SlowDisk> {
    fn append(&self, _: Vec<Record>) -> Ack {
        self.wait()
    }

    fn truncate(&self, _: u64) -> Ack {
        self.wait()
    }

    fn purge(&self, _: Position) -> Ack {
        self.wait()
    }

    fn save_vote(&self, vote: Ballot) -> Ack {
        *self.vote.lock().unwrap() = Some(vote);
        self.wait()
    }

    fn save_committed(&self, committed: Option<Position>) -> Result<(), WriteError> {
        *self.committed.lock().unwrap() = committed;
        Ok(())
    }

    fn last(&self) -> Option<Position> {
        None
    }

    fn purged(&self) -> Option<Position> {
        None
    }

    fn committed(&self) -> Option<Position> {
        *self.committed.lock().unwrap()
    }

    fn vote(&self) -> Option<Ballot> {
        *self.vote.lock().unwrap()
    }

    fn read(&self, _: Range<u64>, _: usize) -> Result<Vec<Record>, ReadError> {
        Ok(Vec::new())
    }

    fn close(&self) {}
}

/// The log of this node in a term that a node leads.
async fn led_by(leader: NodeId) -> (Arc<SlowDisk>, LogStore) {
    let disk = Arc::new(SlowDisk::default());
    let mut log = LogStore::on(Arc::clone(&disk)).of(ME);
    begin(&disk, &mut log, 3, leader).await;
    (disk, log)
}

async fn begin(disk: &SlowDisk, log: &mut LogStore, term: u64, leader: NodeId) {
    let vote = Vote::new_committed(term, leader);
    let (saved, ()) = tokio::join!(log.save_vote(&vote), async { disk.end(Ok(())) });
    saved.unwrap();
}

async fn is_waiting<T>(work: impl Future<Output = T>) -> bool {
    timeout(Duration::from_millis(20), work).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn what_the_leader_appends_is_sent_at_once_and_committed_when_its_disk_has_it() {
    let (disk, mut log) = led_by(ME).await;
    log.blocking_append([entry(1), entry(2)]).await.unwrap();
    log.blocking_append([entry(3)]).await.unwrap();
    let read = log.try_get_log_entries(1..4).await.unwrap();
    assert_eq!(read.len(), 3);
    assert!(is_waiting(log.save_committed(Some(at(2)))).await);
    assert_eq!(disk.committed(), None);
    assert!(is_waiting(log.settled(1)).await);

    disk.end(Ok(()));
    log.settled(1).await.unwrap();
    log.save_committed(Some(at(2))).await.unwrap();
    assert_eq!(disk.committed(), Some(position(&at(2))));
    assert!(is_waiting(log.save_committed(Some(at(3)))).await);
    disk.end(Ok(()));
    log.save_committed(Some(at(3))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_another_leader_sent_is_confirmed_when_the_disk_has_it() {
    let (disk, mut log) = led_by(OTHER).await;
    let append = log.blocking_append([entry(1)]);
    tokio::pin!(append);
    assert!(is_waiting(&mut append).await);
    disk.end(Ok(()));
    append.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_log_that_no_longer_knows_whose_it_is_waits_for_the_disk() {
    let (disk, log) = led_by(ME).await;
    let mut log = LogStore { node: None, ..log };
    assert!(is_waiting(log.blocking_append([entry(1)])).await);
    drop(disk);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_is_told_before_anything_comes_of_the_entry() {
    let (disk, mut log) = led_by(ME).await;
    log.blocking_append([entry(1)]).await.unwrap();
    disk.end(Err(WriteError::Removed));
    log.settled(1).await.unwrap_err();
    log.save_committed(Some(at(1))).await.unwrap_err();
    log.save_committed(Some(at(1))).await.unwrap_err();
    assert_eq!(disk.committed(), None);
}

#[tokio::test(start_paused = true)]
async fn a_later_term_waits_for_its_own_entries() {
    let (disk, mut log) = led_by(ME).await;
    log.blocking_append([entry(1), entry(2)]).await.unwrap();
    disk.end(Ok(()));
    begin(&disk, &mut log, 4, OTHER).await;
    let (truncated, ()) = tokio::join!(log.truncate(at(2)), async { disk.end(Ok(())) });
    truncated.unwrap();
    begin(&disk, &mut log, 5, ME).await;
    let own = Entry {
        log_id: codec::log_id(5, 2),
        ..entry(2)
    };
    log.blocking_append([own]).await.unwrap();
    assert!(is_waiting(log.settled(2)).await);
    disk.end(Ok(()));
    log.settled(2).await.unwrap();
}
