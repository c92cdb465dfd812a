//! What a run came to, in words, files and a picture.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::checker::Judgement;
use crate::ops::{History, Moment, Outcome, Revision};
use crate::recorder::Fault;
use crate::run::Plan;
use crate::timeline;

#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub history: History,
    pub faults: Vec<Fault>,
    pub judgement: Judgement,
    /// The revisions of the store, where they were counted anew for the judgement, from 1 on.
    pub revisions: Vec<Revision>,
    /// Why this program could not do what it was to do.
    pub failure: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Clean,
    /// merlin broke a promise.
    Broken,
    /// This program failed, and nothing is proved.
    HarnessFailed,
}

impl Report {
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if !self.judgement.violations.is_empty() {
            Verdict::Broken
        } else if self.failure.is_some() {
            Verdict::HarnessFailed
        } else {
            Verdict::Clean
        }
    }

    /// A run in which nothing happened proves nothing.
    pub(crate) fn check_harness(&self, plan: &Plan) -> Result<()> {
        let done = self.done().count();
        ensure!(
            done > 0 || !self.judgement.violations.is_empty() || self.failure.is_some(),
            "no write was acknowledged in {:?}",
            plan.time
        );
        Ok(())
    }

    /// When writes were acknowledged.
    fn done(&self) -> impl Iterator<Item = Moment> + '_ {
        let writes = self.history.writes.iter();
        writes
            .filter(|record| matches!(record.outcome, Outcome::Done { .. }))
            .map(|record| record.end)
    }

    /// For each kind of fault: how often, and the longest time in which no write was acknowledged.
    /// What two faults did that were there together belongs to both of them, and to neither alone.
    fn unavailability(&self) -> BTreeMap<String, (usize, Duration, usize)> {
        let mut done: Vec<_> = self.done().collect();
        done.sort_unstable();
        let mut kinds: BTreeMap<String, (usize, Duration, usize)> = BTreeMap::new();
        for fault in &self.faults {
            let end = fault.recovered.unwrap_or(fault.to);
            let from = done
                .partition_point(|at| *at < fault.from)
                .saturating_sub(1);
            let gaps = done[from..].windows(2).take_while(|pair| pair[0] < end);
            let longest = gaps.map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
            let kind = kinds.entry(fault.title()).or_default();
            kind.1 = kind.1.max(Duration::from_micros(longest));
            // Two that belong together are one, and count once.
            if fault
                .beside
                .as_ref()
                .is_some_and(|other| *other < fault.name)
            {
                continue;
            }
            kind.0 += 1;
            let window = done
                .iter()
                .filter(|at| (fault.from..fault.to).contains(*at));
            kind.2 += window.count();
        }
        kinds
    }

    /// Writes logs' companions: history, faults, picture and summary.
    pub fn save(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        lines(folder, "writes.jsonl", &self.history.writes)?;
        lines(folder, "watches.jsonl", &self.history.watches)?;
        lines(folder, "leaders.jsonl", &self.history.led)?;
        lines(folder, "faults.jsonl", &self.faults)?;
        // Large, and only of use to find out what went wrong.
        if self.verdict() != Verdict::Clean {
            lines(folder, "reads.jsonl", &self.history.reads)?;
            lines(folder, "samples.jsonl", &self.history.samples)?;
            let revisions = (1_u64..).zip(&self.revisions);
            let revisions: Vec<_> = revisions.collect();
            if !revisions.is_empty() {
                lines(folder, "revisions.jsonl", &revisions)?;
            }
        }
        let picture = timeline::draw(&self.history, &self.faults);
        fs::write(folder.join("timeline.svg"), picture)?;
        fs::write(folder.join("summary.txt"), self.to_string())?;
        Ok(())
    }
}

fn lines<T: serde::Serialize>(folder: &Path, name: &str, items: &[T]) -> Result<()> {
    let mut file = std::io::BufWriter::new(fs::File::create(folder.join(name))?);
    for item in items {
        serde_json::to_writer(&mut file, item)?;
        writeln!(file)?;
    }
    file.flush()?;
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
        for record in &self.history.writes {
            let outcome = match record.outcome {
                Outcome::Done { .. } => "done",
                Outcome::Refused(_) => "refused",
                Outcome::Nothing => "not accepted",
                Outcome::Unknown => "of unknown outcome",
            };
            *outcomes.entry(outcome).or_default() += 1;
        }
        let mut words = String::new();
        for (outcome, count) in outcomes {
            write!(words, ", {count} {outcome}")?;
        }
        let History {
            writes,
            reads,
            watches,
            samples,
            ..
        } = &self.history;
        writeln!(f, "seed {}", self.seed)?;
        writeln!(f, "writes: {}{words}", writes.len())?;
        let frames: usize = watches.iter().map(|watch| watch.frames.len()).sum();
        writeln!(
            f,
            "reads: {}; watches: {} with {frames} frames; tables: {}; revisions: {}",
            reads.len(),
            watches.len(),
            samples.len(),
            self.judgement.revisions
        )?;
        let Judgement {
            happened,
            unverified,
            searches_given_up,
            ..
        } = self.judgement;
        writeln!(
            f,
            "{happened} unknown writes happened; {unverified} revisions unverified; \
             {searches_given_up} searches given up"
        )?;
        writeln!(f, "faults: {}", self.faults.len())?;
        for (kind, (times, longest, accepted)) in self.unavailability() {
            writeln!(
                f,
                "  {kind:36} {times:3} x   longest without a write {:6.2} s, {accepted} writes \
                 meanwhile",
                longest.as_secs_f64()
            )?;
        }
        for violation in &self.judgement.violations {
            writeln!(f, "BROKEN: {violation}")?;
        }
        if !self.judgement.violations.is_empty() && !self.revisions.is_empty() {
            writeln!(
                f,
                "(revisions are counted without gaps here; revisions.jsonl has those of the store)"
            )?;
        }
        if let Some(failure) = &self.failure {
            writeln!(f, "the harness failed: {failure}")?;
        }
        f.write_str(match self.verdict() {
            Verdict::Clean => "clean: merlin kept every promise",
            Verdict::Broken => "BROKEN: merlin broke a promise",
            Verdict::HarnessFailed => "NOTHING PROVED: the harness failed, not merlin",
        })
    }
}
