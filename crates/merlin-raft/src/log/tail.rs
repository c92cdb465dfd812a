//! The latest entries in memory. Each one is read soon after it was written, once to apply it and
//! once for each follower; only a follower that lags makes the log read its file.

use std::collections::VecDeque;
use std::ops::Range;

/// Entries with consecutive indices, up to the last one of the log.
#[derive(Debug)]
pub(super) struct Tail<E> {
    /// Index of the first one kept.
    first: u64,
    /// Each with the bytes it counts for.
    entries: VecDeque<(E, usize)>,
    bytes: usize,
    limit: usize,
}

impl<E: Clone> Tail<E> {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            first: 0,
            entries: VecDeque::new(),
            bytes: 0,
            limit,
        }
    }

    /// Adds the entry after the last one of the log.
    pub(super) fn push(&mut self, index: u64, entry: E, bytes: usize) {
        if self.end() != index {
            self.clear();
            self.first = index;
        }
        self.entries.push_back((entry, bytes));
        self.bytes += bytes;
        while self.bytes > self.limit {
            self.pop_front();
        }
    }

    pub(super) fn truncate(&mut self, from: u64) {
        while self.end() > from
            && let Some((_, bytes)) = self.entries.pop_back()
        {
            self.bytes -= bytes;
        }
    }

    pub(super) fn purge(&mut self, upto: u64) {
        while self.first <= upto && !self.entries.is_empty() {
            self.pop_front();
        }
    }

    /// All of these entries, with the bytes limited as when reading the log, or none.
    pub(super) fn read(&self, indices: Range<u64>, limit: usize) -> Option<Vec<E>> {
        let from = usize::try_from(indices.start.checked_sub(self.first)?).ok()?;
        let to = usize::try_from(indices.end.checked_sub(self.first)?).ok()?;
        if from >= to || to > self.entries.len() {
            return None;
        }
        let mut bytes = 0;
        let fits = |(position, (_, size)): &(usize, &(E, usize))| {
            bytes += size;
            *position == 0 || bytes <= limit
        };
        let wanted = self.entries.range(from..to).enumerate();
        Some(
            wanted
                .take_while(fits)
                .map(|(_, (entry, _))| entry.clone())
                .collect(),
        )
    }

    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    fn pop_front(&mut self) {
        if let Some((_, bytes)) = self.entries.pop_front() {
            self.bytes -= bytes;
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(indices: Range<u64>) -> Tail<u64> {
        let mut tail = Tail::new(100);
        for index in indices {
            tail.push(index, index, 10);
        }
        tail
    }

    #[test]
    fn it_holds_the_latest_entries_that_fit() {
        let tail = tail(3..20);
        assert_eq!(tail.read(9..20, 1000), None);
        assert_eq!(tail.read(10..20, 1000), Some((10..20).collect()));
    }

    #[test]
    fn it_answers_only_for_what_it_holds() {
        let tail = tail(3..8);
        for range in [0..3, 2..5, 5..9, 8..9, 5..5] {
            assert_eq!(tail.read(range, 1000), None);
        }
    }

    #[test]
    fn a_read_stops_at_the_limit_but_gives_one_entry() {
        let tail = tail(0..8);
        assert_eq!(tail.read(2..8, 25), Some(vec![2, 3]));
        assert_eq!(tail.read(2..8, 1), Some(vec![2]));
    }

    #[test]
    fn it_follows_truncation_and_purge() {
        let mut tail = tail(0..8);
        tail.truncate(6);
        tail.purge(1);
        assert_eq!(tail.read(2..6, 1000), Some(vec![2, 3, 4, 5]));
        assert_eq!(tail.read(5..7, 1000), None);
        tail.push(6, 66, 10);
        assert_eq!(tail.read(5..7, 1000), Some(vec![5, 66]));
        tail.purge(50);
        assert_eq!(tail.read(5..7, 1000), None);
        tail.push(51, 51, 10);
        assert_eq!(tail.read(51..52, 1000), Some(vec![51]));
    }
}
