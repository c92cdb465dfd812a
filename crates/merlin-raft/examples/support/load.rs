//! A load of which every byte can be predicted, for tests that kill the process or the machine
//! under the log: [`write`] says what was acknowledged, [`check`] says whether it is still there.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use merlin_raft::log::{Ballot, LogEngine, Position, Record};

/// One purge for this many entries.
const PURGE_EVERY: u64 = 64;
/// Entries that a purge leaves.
const KEEP: u64 = 100;
/// One vote for this many entries.
const VOTE_EVERY: u64 = 10;

/// What a log of this load holds at the given place.
pub(crate) fn record(index: u64) -> Record {
    let size = match index % 8 {
        // More than one batch of the database, now and then.
        7 if index.is_multiple_of(5) => 200_000 + index % 800_001,
        7 => 20_000 + index % 40_001,
        3 => 2_000 + index % 7_001,
        _ => 300 + index % 701,
    };
    let mut state = index.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let bytes = (0..size).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    });
    Record {
        position: position(index),
        bytes: bytes.collect(),
    }
}

fn position(index: u64) -> Position {
    let term = 1 + index / 50;
    Position { term, index }
}

fn vote(index: u64) -> Ballot {
    Ballot {
        term: 1000 + index / VOTE_EVERY,
        node: index % 3,
        committed: index.is_multiple_of(2),
    }
}

/// What an operator would see of it.
pub(crate) fn report(result: Result<(), Box<dyn Error>>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    // The exit code says it as well.
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::FAILURE
}

/// Appends until it is killed or `until` is there, and prints every index once it is acknowledged.
pub(crate) fn write(dir: &Path, until: u64, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let log = LogEngine::open(dir)?;
    let mut next = log.last().map_or(0, |last| last.index + 1);
    if let Some(last) = log.last() {
        // The entries may have been there when the last process was killed, and their vote not yet.
        let index = last.index - last.index % VOTE_EVERY;
        log.save_vote(vote(index)).wait()?;
    }
    while next < until {
        // Several changes under way at once, as many as consensus may batch.
        let batch = 1 + next % 3;
        let ack = log.append((next..next + batch).map(record).collect());
        let last = next + batch - 1;
        log.save_committed(Some(position(last.saturating_sub(5))))?;
        ack.wait()?;
        if (next..=last).any(|index| index.is_multiple_of(VOTE_EVERY)) {
            log.save_vote(vote(last - last % VOTE_EVERY)).wait()?;
        }
        if (next..=last).any(|index| index.is_multiple_of(PURGE_EVERY)) && last > KEEP {
            log.purge(position(last - KEEP)).wait()?;
        }
        if last % 37 < batch {
            // A follower that had to take back its last entry.
            log.truncate(last).wait()?;
            log.append(vec![record(last)]).wait()?;
        }
        writeln!(out, "{last}")?;
        out.flush()?;
        next = last + 1;
    }
    Ok(())
}

/// Verifies that everything up to `acknowledged` is there and everything that is there is right;
/// gives the last index.
pub(crate) fn check(dir: &Path, acknowledged: Option<u64>) -> Result<Option<u64>, Box<dyn Error>> {
    let log = LogEngine::open(dir)?;
    let last = log.last().map(|last| last.index);
    if last < acknowledged {
        return Err(format!("the log ends at {last:?}, {acknowledged:?} was acknowledged").into());
    }
    if let Some(acknowledged) = acknowledged
        && log.vote() < Some(vote(acknowledged - acknowledged % VOTE_EVERY))
    {
        return Err(format!("the vote is {:?} at {acknowledged}", log.vote()).into());
    }
    let first = log.purged().map_or(0, |purged| purged.index + 1);
    let records = log.reader().read(first..u64::MAX, usize::MAX)?;
    let expected = (first..last.map_or(0, |last| last + 1)).map(record);
    if !expected.eq(records) {
        return Err("an entry is not what was written".into());
    }
    Ok(last)
}
