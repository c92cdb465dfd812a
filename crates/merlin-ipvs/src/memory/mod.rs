//! An IPVS table in memory that answers as the kernel does.
//!
//! It serves `--dataplane memory`, and tests: clones share one table, so a test can look at it and
//! meddle with it while the code under test has it. [`Faults`] make calls fail, hang or panic.

mod faults;
mod rules;
#[cfg(test)]
mod tests;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use merlin_model::table::{Entry, Key, LiveService, LiveTable, Operation, Table};
use nix::errno::Errno;

use crate::{Call, Dataplane, DataplaneError, Fingerprint, Refusal, Timeouts};

pub use faults::{Fault, Faults};
pub use rules::Modules;

/// A table in memory; clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryTable {
    state: Arc<Mutex<State>>,
    faults: Faults,
}

#[derive(Debug)]
struct State {
    table: LiveTable,
    modules: Modules,
    timeouts: Timeouts,
    /// Operations carried out so far.
    applied: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            table: LiveTable::new(),
            modules: Modules::default(),
            // What a kernel starts with.
            timeouts: Timeouts {
                tcp: 15 * 60,
                tcp_fin: 2 * 60,
                udp: 5 * 60,
            },
            applied: 0,
        }
    }
}

impl MemoryTable {
    pub fn new() -> Self {
        Self::default()
    }

    /// What the table holds, without calling it: faults do not matter.
    pub fn table(&self) -> Table {
        strip(&self.state().table)
    }

    /// Changes the table behind the back of whoever calls it.
    pub fn meddle(&self, change: impl FnOnce(&mut LiveTable)) {
        change(&mut self.state().table);
    }

    /// Sets which schedulers and persistence engines there are.
    pub fn set_modules(&self, modules: Modules) {
        self.state().modules = modules;
    }

    /// How many operations were carried out so far, not counting those refused.
    pub fn applied(&self) -> u64 {
        self.state().applied
    }

    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a call, unless a fault is in the way.
    fn begin(&self, call: Call) -> Result<MutexGuard<'_, State>, DataplaneError> {
        self.faults.strike(call)?;
        Ok(self.state())
    }
}

impl Dataplane for MemoryTable {
    fn dump(&mut self) -> Result<Table, DataplaneError> {
        Ok(strip(&self.begin(Call::Dump)?.table))
    }

    fn keys(&mut self) -> Result<Vec<Key>, DataplaneError> {
        Ok(self.begin(Call::Keys)?.table.keys().copied().collect())
    }

    fn read(&mut self, keys: &[Key]) -> Result<Table, DataplaneError> {
        let state = self.begin(Call::Read)?;
        let found = keys.iter().filter_map(|key| {
            let service = state.table.get(key)?;
            Some((*key, entry(service)))
        });
        Ok(Table {
            services: found.collect(),
        })
    }

    fn apply(
        &mut self,
        operations: &[Operation],
    ) -> Result<Vec<Result<(), Refusal>>, DataplaneError> {
        let mut state = self.begin(Call::Apply)?;
        let State {
            table,
            modules,
            applied,
            ..
        } = &mut *state;
        let mut answers = Vec::with_capacity(operations.len());
        for operation in operations {
            let outcome = match self.faults.refusal(operation) {
                Some(errno) => Err(errno),
                None => rules::carry_out(table, operation, modules).map_err(|errno| errno as i32),
            };
            *applied += u64::from(outcome.is_ok());
            answers.push(outcome.map_err(|errno| Refusal::new(operation, errno)));
        }
        Ok(answers)
    }

    fn live(&mut self) -> Result<LiveTable, DataplaneError> {
        Ok(self.begin(Call::Live)?.table.clone())
    }

    fn fingerprint(&mut self) -> Result<Fingerprint, DataplaneError> {
        let state = self.begin(Call::Fingerprint)?;
        let mut hasher = DefaultHasher::new();
        for (
            key,
            LiveService {
                service,
                destinations,
                ..
            },
        ) in &state.table
        {
            (key, &service.scheduler, service.flags).hash(&mut hasher);
            (service.timeout, service.netmask).hash(&mut hasher);
            for (at, live) in destinations {
                let to = live.destination;
                (at, to.forward, to.weight).hash(&mut hasher);
            }
        }
        Ok(Fingerprint(hasher.finish()))
    }

    fn timeouts(&mut self) -> Result<Timeouts, DataplaneError> {
        Ok(self.begin(Call::Timeouts)?.timeouts)
    }

    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), DataplaneError> {
        let mut state = self.begin(Call::SetTimeouts)?;
        state.timeouts = rules::merged(state.timeouts, timeouts)
            .map_err(|errno| refused(Call::SetTimeouts, errno))?;
        Ok(())
    }
}

fn refused(call: Call, errno: Errno) -> DataplaneError {
    let source = io::Error::from_raw_os_error(errno as i32);
    DataplaneError::Refused { call, source }
}

/// The table without its counters.
fn strip(table: &LiveTable) -> Table {
    Table {
        services: table
            .iter()
            .map(|(key, live)| (*key, entry(live)))
            .collect(),
    }
}

fn entry(live: &LiveService) -> Entry {
    let destinations = live.destinations.iter();
    Entry {
        service: live.service.clone(),
        destinations: destinations
            .map(|(at, live)| (*at, live.destination))
            .collect(),
    }
}
