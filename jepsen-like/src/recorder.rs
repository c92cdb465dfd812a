//! Takes down everything that is observed, by one clock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::checker::{Law, Violation};
use crate::lab::Clock;
use crate::model::{Catalog, Table};
use crate::ops::{
    History, Hurt, Led, Moment, Node, Outcome, ReadRecord, Revision, Sample, Watch, WriteRecord,
};

/// A fault, from when it was there to when it was gone.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Fault {
    pub name: String,
    /// What was done to whom.
    pub detail: String,
    pub from: Moment,
    pub to: Moment,
    /// When writes and every node were fine again.
    pub recovered: Option<Moment>,
    /// The other fault that was there at the same time.
    pub beside: Option<String>,
}

impl Fault {
    /// Its name, or those of two that were there together, in one order.
    pub(crate) fn title(&self) -> String {
        match &self.beside {
            None => self.name.clone(),
            Some(other) if *other < self.name => format!("{other} + {}", self.name),
            Some(other) => format!("{} + {other}", self.name),
        }
    }
}

#[derive(Debug)]
pub struct Recorder {
    pub clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    history: History,
    violations: Vec<Violation>,
    faults: Vec<Fault>,
    /// The newest catalog anybody saw. What is read again is not kept twice.
    newest: (Revision, Arc<Catalog>),
    tables: BTreeMap<Node, Arc<Table>>,
    failed_reads: u64,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub done: usize,
    pub refused: usize,
    pub nothing: usize,
    pub unknown: usize,
    pub reads: usize,
    pub failed_reads: u64,
    pub faults: usize,
    pub revision: Revision,
}

impl Recorder {
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self, record: WriteRecord) {
        self.state().history.writes.push(record);
    }

    pub fn read(&self, mut record: ReadRecord) {
        let mut state = self.state();
        let (newest, catalog) = &state.newest;
        if record.revision == *newest && record.content == *catalog {
            record.content = Arc::clone(catalog);
        } else if record.revision > *newest {
            state.newest = (record.revision, Arc::clone(&record.content));
        }
        state.history.reads.push(record);
    }

    pub fn failed_read(&self) {
        self.state().failed_reads += 1;
    }

    /// The newest catalog anybody saw.
    #[must_use]
    pub fn newest(&self) -> Arc<Catalog> {
        Arc::clone(&self.state().newest.1)
    }

    pub fn watch(&self, watch: Watch) {
        if !watch.frames.is_empty() {
            self.state().history.watches.push(watch);
        }
    }

    pub fn sample(&self, mut sample: Sample) {
        let mut state = self.state();
        match state.tables.get(&sample.node) {
            Some(known) if *known == sample.table => sample.table = Arc::clone(known),
            _ => _ = state.tables.insert(sample.node, Arc::clone(&sample.table)),
        }
        state.history.samples.push(sample);
    }

    /// Only news.
    pub fn led(&self, led: Led) {
        let mut state = self.state();
        let mut known = state.history.led.iter().rev();
        let known = known.find(|known| known.node == led.node);
        if known.is_none_or(|known| (known.term, known.leader) != (led.term, led.leader)) {
            state.history.led.push(led);
        }
    }

    pub fn logged(&self, led: Led) {
        self.state().history.logged.push(led);
    }

    pub fn hurt(&self, hurt: Hurt) {
        self.state().history.hurts.push(hurt);
    }

    pub fn violation(&self, law: Law, what: impl Into<String>) {
        self.state().violations.push(Violation::new(law, what));
    }

    /// Returns a number by which the fault's recovery can be noted.
    pub fn fault(&self, fault: Fault) -> usize {
        let mut state = self.state();
        state.faults.push(fault);
        state.faults.len() - 1
    }

    pub fn recovered(&self, fault: usize) {
        let now = self.clock.now();
        if let Some(fault) = self.state().faults.get_mut(fault) {
            fault.recovered = Some(now);
        }
    }

    /// When the last write was acknowledged.
    #[must_use]
    pub fn last_done(&self) -> Option<WriteRecord> {
        let state = self.state();
        let mut writes = state.history.writes.iter().rev();
        let done = |record: &&WriteRecord| matches!(record.outcome, Outcome::Done { .. });
        writes.find(done).copied()
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        let state = self.state();
        let mut counts = Counts {
            reads: state.history.reads.len(),
            failed_reads: state.failed_reads,
            faults: state.faults.len(),
            revision: state.newest.0,
            ..Counts::default()
        };
        for record in &state.history.writes {
            match record.outcome {
                Outcome::Done { .. } => counts.done += 1,
                Outcome::Refused(_) => counts.refused += 1,
                Outcome::Nothing => counts.nothing += 1,
                Outcome::Unknown => counts.unknown += 1,
            }
        }
        counts
    }

    /// Everything, for judging it.
    #[must_use]
    pub fn take(&self) -> (History, Vec<Fault>, Vec<Violation>) {
        let mut state = self.state();
        let history = std::mem::take(&mut state.history);
        let faults = std::mem::take(&mut state.faults);
        (history, faults, std::mem::take(&mut state.violations))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_faults_that_were_there_together_have_one_title() {
        let fault = |name: &str, beside: Option<&str>| Fault {
            name: name.to_owned(),
            detail: String::new(),
            from: 0,
            to: 1,
            recovered: None,
            beside: beside.map(str::to_owned),
        };
        assert_eq!(fault("kill", None).title(), "kill");
        let titles = [
            fault("pause", Some("kill")).title(),
            fault("kill", Some("pause")).title(),
        ];
        assert_eq!(titles, ["kill + pause", "kill + pause"]);
    }
}
