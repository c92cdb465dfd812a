//! Faults: what a kernel may do to its caller on a bad day.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use merlin_model::table::Operation;
use nix::errno::Errno;

use crate::{Call, DataplaneError};

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails as a whole with an error number.
    Fail(i32),
    /// It does not return before the fault is healed; then it goes on.
    Hang,
    /// It panics.
    Panic,
}

/// The faults of a [`MemoryTable`](super::MemoryTable); clones share them.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    active: Mutex<Active>,
    healed: Condvar,
}

#[derive(Default)]
struct Active {
    calls: BTreeMap<Call, Fault>,
    refuse: Option<Refuse>,
}

/// The error number for an operation to refuse.
type Refuse = Box<dyn Fn(&Operation) -> Option<i32> + Send>;

impl Faults {
    /// Makes every such call meet the fault until [`Faults::heal`].
    pub fn inject(&self, call: Call, fault: Fault) {
        self.active().calls.insert(call, fault);
    }

    /// Makes operations fail one by one, until [`Faults::heal`]: those for which `refuse` gives an
    /// error number.
    pub fn refuse(&self, refuse: impl Fn(&Operation) -> Option<i32> + Send + 'static) {
        self.active().refuse = Some(Box::new(refuse));
    }

    /// Removes all faults and lets hanging calls go on.
    pub fn heal(&self) {
        *self.active() = Active::default();
        self.0.healed.notify_all();
    }

    /// Lets the fault of a call happen, if there is one.
    pub(super) fn strike(&self, call: Call) -> Result<(), DataplaneError> {
        let mut active = self.active();
        loop {
            match active.calls.get(&call) {
                None => return Ok(()),
                Some(Fault::Fail(errno)) => {
                    return Err(super::refused(call, Errno::from_raw(*errno)));
                }
                Some(Fault::Panic) => panic!("an injected fault while {call}"),
                Some(Fault::Hang) => {
                    let healed = self.0.healed.wait(active);
                    active = healed.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    pub(super) fn refusal(&self, operation: &Operation) -> Option<i32> {
        self.active().refuse.as_ref()?(operation)
    }

    fn active(&self) -> MutexGuard<'_, Active> {
        self.0.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Active")
            .field("calls", &self.calls)
            .field("refuse", &self.refuse.is_some())
            .finish()
    }
}
