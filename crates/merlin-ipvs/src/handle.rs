//! A [`Dataplane`] on a thread of its own, for asynchronous callers.
//!
//! ```text
//! Handle, Handle, ... --jobs--> thread: one Dataplane, one call at a time
//!        ^                        |
//!        +------- answers --------+
//! ```
//!
//! Netlink does the kernel's work inside the system call, so a call can block for as long as the
//! kernel likes. Invariants:
//!
//! * A call that has not returned within the time-out hangs. All who wait are told so, and so is
//!   at once whoever calls while it hangs: which call, and since when. When it returns after all,
//!   calls work again.
//! * A job whose caller has given up is not begun.
//! * If the thread dies, every call from then on fails with [`DataplaneError::Died`].

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use merlin_model::table::{Key, LiveTable, Operation, Table};
use tokio::sync::{mpsc, oneshot};

use crate::{Call, Dataplane, DataplaneError, Fingerprint, Refusal, Timeouts};

/// A call that a caller waits for. `dyn`, so that the type of the table ends at [`Handle::spawn`].
type Job = Box<dyn FnOnce(&mut dyn Dataplane) + Send>;

/// Calls a [`Dataplane`] that lives on another thread. Clones call the same one; the thread ends
/// with the last of them.
#[derive(Clone, Debug)]
pub struct Handle {
    jobs: mpsc::UnboundedSender<Job>,
    running: Arc<Mutex<Option<Running>>>,
    timeout: Duration,
}

/// The call the thread is in.
#[derive(Clone, Copy, Debug)]
struct Running {
    call: Call,
    since: Instant,
}

impl Handle {
    /// Far beyond what any call should take: a dump of 10,000 services takes a second.
    pub const TIMEOUT: Duration = Duration::from_secs(10);

    /// Operations given to the table in one call. Few enough that a slow kernel (adding next to
    /// thousands of just deleted destinations takes it a millisecond each) does not pass for a
    /// hung one, and that readers get their turn; many enough to fill batches.
    const OPERATIONS_PER_CALL: usize = 2048;

    pub fn spawn(dataplane: impl Dataplane) -> Self {
        Self::with_timeout(dataplane, Self::TIMEOUT)
    }

    pub fn with_timeout(mut dataplane: impl Dataplane, timeout: Duration) -> Self {
        // Unbounded, but callers wait for their answers: it is as long as there are callers.
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        thread::Builder::new()
            .name("ipvs".to_owned())
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    job(&mut dataplane);
                }
            })
            .expect("a thread can be started when the program starts");
        Self {
            jobs,
            running: Arc::default(),
            timeout,
        }
    }

    pub async fn dump(&self) -> Result<Table, DataplaneError> {
        self.call(Call::Dump, |table| table.dump()).await
    }

    pub async fn keys(&self) -> Result<Vec<Key>, DataplaneError> {
        self.call(Call::Keys, |table| table.keys()).await
    }

    pub async fn read(&self, keys: Vec<Key>) -> Result<Table, DataplaneError> {
        self.call(Call::Read, move |table| table.read(&keys)).await
    }

    /// As [`Dataplane::apply`], in several calls when there are many operations. They are shared
    /// rather than copied, so the caller can still tell which answer belongs to which.
    pub async fn apply(
        &self,
        operations: impl Into<Arc<Vec<Operation>>>,
    ) -> Result<Vec<Result<(), Refusal>>, DataplaneError> {
        let operations = operations.into();
        let mut answers = Vec::with_capacity(operations.len());
        while answers.len() < operations.len() {
            let operations = Arc::clone(&operations);
            let first = answers.len();
            let more = self.call(Call::Apply, move |table| {
                let end = operations.len().min(first + Self::OPERATIONS_PER_CALL);
                table.apply(&operations[first..end])
            });
            answers.append(&mut more.await?);
        }
        Ok(answers)
    }

    pub async fn live(&self) -> Result<LiveTable, DataplaneError> {
        self.call(Call::Live, |table| table.live()).await
    }

    pub async fn fingerprint(&self) -> Result<Fingerprint, DataplaneError> {
        self.call(Call::Fingerprint, |table| table.fingerprint())
            .await
    }

    pub async fn timeouts(&self) -> Result<Timeouts, DataplaneError> {
        self.call(Call::Timeouts, |table| table.timeouts()).await
    }

    pub async fn set_timeouts(&self, timeouts: Timeouts) -> Result<(), DataplaneError> {
        self.call(Call::SetTimeouts, move |table| table.set_timeouts(timeouts))
            .await
    }

    async fn call<T: Send + 'static>(
        &self,
        call: Call,
        work: impl FnOnce(&mut dyn Dataplane) -> Result<T, DataplaneError> + Send + 'static,
    ) -> Result<T, DataplaneError> {
        let mut patience = self.patience()?;
        let (answer, mut answered) = oneshot::channel();
        let running = Arc::clone(&self.running);
        let job = move |table: &mut dyn Dataplane| {
            if answer.is_closed() {
                return;
            }
            set(
                &running,
                Some(Running {
                    call,
                    since: Instant::now(),
                }),
            );
            let result = work(table);
            // Before the answer, so that whoever has it does not find the call still running.
            set(&running, None);
            // The caller may have given up meanwhile; what was done stays done.
            let _ = answer.send(result);
        };
        self.jobs
            .send(Box::new(job))
            .map_err(|_| DataplaneError::Died)?;
        loop {
            if let Ok(answer) = tokio::time::timeout(patience, &mut answered).await {
                return answer.unwrap_or(Err(DataplaneError::Died));
            }
            patience = self.patience()?;
        }
    }

    /// How long the call that is running now may still take; an error once it hangs. Waiting for
    /// other callers' calls, each within its time, is not hanging.
    fn patience(&self) -> Result<Duration, DataplaneError> {
        if self.jobs.is_closed() {
            return Err(DataplaneError::Died);
        }
        let running = *self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Running { call, since }) = running else {
            return Ok(self.timeout);
        };
        let elapsed = since.elapsed();
        match self.timeout.checked_sub(elapsed) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(DataplaneError::Hanging { call, elapsed }),
        }
    }
}

fn set(running: &Mutex<Option<Running>>, now: Option<Running>) {
    *running.lock().unwrap_or_else(PoisonError::into_inner) = now;
}

#[cfg(test)]
mod tests;
