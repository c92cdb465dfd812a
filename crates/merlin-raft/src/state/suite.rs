//! openraft's own suite, on the log and the state machine that merlin runs.

use openraft::testing::{StoreBuilder, Suite};

use super::*;
use crate::log::LogStore;

struct OnDisk;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, Guard> for OnDisk {
    async fn build(&self) -> Result<(Guard, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let log = LogStore::open(&dir.path().join("log")).unwrap();
        let snapshots = Snapshots::open(dir.path().join("snapshots")).unwrap();
        let (machine, _views) =
            StateMachine::new(State::default(), Arc::new(snapshots), Level::LATEST);
        let guard = Guard {
            log: log.clone(),
            _dir: dir,
        };
        Ok((guard, log, machine))
    }
}

/// Closes the log before its directory goes.
struct Guard {
    log: LogStore,
    _dir: tempfile::TempDir,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.log.close();
    }
}

#[test]
fn the_log_and_the_state_machine_are_what_consensus_expects() {
    Suite::test_all(OnDisk).unwrap();
}
