//! openraft's own suite for storage, on the real log and the real state machine.

use std::sync::Arc;

use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::LogStore;
use crate::snapshot::Snapshots;
use crate::state::{State, StateMachine};
use crate::typ::{StorageError, TypeConfig};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let store = LogStore::open(&dir.path().join("log")).unwrap();
        let snapshots = Snapshots::open(dir.path().join("snapshots")).unwrap();
        let (machine, _) = StateMachine::new(State::default(), Arc::new(snapshots));
        Ok((dir, store, machine))
    }
}

#[test]
fn the_log_passes_the_suite_of_openraft() {
    Suite::test_all(Builder).unwrap();
}
