//! The recent history of the catalog, for watches.

use std::sync::Arc;

use imbl::Vector;

use crate::catalog::{Change, Revision};
use crate::store::Compacted;

/// Everything one command changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventGroup {
    pub revision: Revision,
    pub changes: Arc<[Change]>,
}

/// The last groups of changes, contiguous and in order. Cheap to clone, so it is published whole
/// and a watcher takes what it has not seen: it can be slow, but it cannot lose or repeat.
#[derive(Clone, Debug, Default)]
pub struct EventRing {
    groups: Vector<EventGroup>,
    /// A watch can begin after this revision or any later one.
    oldest: Revision,
    newest: Revision,
    changes: usize,
}

impl EventRing {
    /// Bounds memory: some 8 MiB of ordinary changes.
    pub const MAX_CHANGES: usize = 10_000;

    /// A ring that knows nothing from before `revision`, as after a start or a snapshot.
    pub fn starting_at(revision: Revision) -> Self {
        Self {
            oldest: revision,
            newest: revision,
            ..Self::default()
        }
    }

    pub fn newest(&self) -> Revision {
        self.newest
    }

    /// Adds the changes of the next revision. A gap means the ring lost its history: it starts
    /// anew, so that no watcher is told of a step that skipped something.
    pub fn push(&mut self, revision: Revision, changes: Vec<Change>) {
        if revision != self.newest.next() {
            *self = Self::starting_at(revision);
            return;
        }
        self.push_later(revision, changes);
    }

    /// Adds the changes of a later revision of a store that counts more than catalog changes. The
    /// caller vouches that the catalog did not change in between.
    pub fn push_later(&mut self, revision: Revision, changes: Vec<Change>) {
        debug_assert!(revision > self.newest, "history only grows");
        self.newest = revision;
        self.changes += changes.len();
        self.groups.push_back(EventGroup {
            revision,
            changes: changes.into(),
        });
        // The last group stays whatever its size: a watcher that keeps up must not be cut off.
        while self.changes > Self::MAX_CHANGES && self.groups.len() > 1 {
            if let Some(dropped) = self.groups.pop_front() {
                self.changes -= dropped.changes.len();
                self.oldest = dropped.revision;
            }
        }
    }

    /// Groups after `revision`, oldest first. A revision not reached yet has none.
    pub fn after(
        &self,
        revision: Revision,
    ) -> Result<impl Iterator<Item = &EventGroup>, Compacted> {
        if revision < self.oldest {
            return Err(Compacted {
                oldest: self.oldest,
            });
        }
        let seen = self.groups.binary_search_by_key(&revision, |g| g.revision);
        let skip = seen.map_or_else(|unseen| unseen, |last| last + 1);
        Ok(self.groups.iter().skip(skip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::ServiceId;

    fn change() -> Change {
        Change::ServerDeleted {
            service: ServiceId::new("web").unwrap(),
            key: "10.0.0.1:80"
                .parse::<std::net::SocketAddr>()
                .unwrap()
                .into(),
        }
    }

    fn after(ring: &EventRing, revision: u64) -> Result<Vec<u64>, Compacted> {
        Ok(ring
            .after(Revision(revision))?
            .map(|group| group.revision.0)
            .collect())
    }

    #[test]
    fn a_watcher_gets_exactly_what_it_has_not_seen() {
        let mut ring = EventRing::starting_at(Revision(5));
        for revision in 6..=8 {
            ring.push(Revision(revision), vec![change()]);
        }
        assert_eq!(after(&ring, 5), Ok(vec![6, 7, 8]));
        assert_eq!(after(&ring, 7), Ok(vec![8]));
        assert_eq!(after(&ring, 8), Ok(vec![]));
        assert_eq!(after(&ring, 99), Ok(vec![]));
        assert_eq!(
            after(&ring, 4),
            Err(Compacted {
                oldest: Revision(5)
            })
        );
    }

    #[test]
    fn revisions_may_be_sparse_where_the_store_counts_other_things_too() {
        let mut ring = EventRing::starting_at(Revision(5));
        for revision in [8, 9, 20] {
            ring.push_later(Revision(revision), vec![change()]);
        }
        assert_eq!(after(&ring, 5), Ok(vec![8, 9, 20]));
        assert_eq!(after(&ring, 7), Ok(vec![8, 9, 20]));
        assert_eq!(after(&ring, 8), Ok(vec![9, 20]));
        assert_eq!(after(&ring, 19), Ok(vec![20]));
        assert_eq!(after(&ring, 20), Ok(vec![]));
    }

    #[test]
    fn old_groups_make_room_and_their_watchers_are_told() {
        let mut ring = EventRing::default();
        for revision in 1..=EventRing::MAX_CHANGES as u64 + 3 {
            ring.push(Revision(revision), vec![change()]);
        }
        assert_eq!(
            after(&ring, 2),
            Err(Compacted {
                oldest: Revision(3)
            })
        );
        assert_eq!(after(&ring, 3).unwrap().len(), EventRing::MAX_CHANGES);
    }

    #[test]
    fn one_command_larger_than_the_ring_still_reaches_a_watcher_that_keeps_up() {
        let mut ring = EventRing::default();
        ring.push(Revision(1), vec![change(); EventRing::MAX_CHANGES + 1]);
        assert_eq!(after(&ring, 0), Ok(vec![1]));
    }

    #[test]
    fn a_gap_starts_the_ring_anew() {
        let mut ring = EventRing::default();
        ring.push(Revision(1), vec![change()]);
        ring.push(Revision(9), vec![change()]);
        assert_eq!(
            after(&ring, 1),
            Err(Compacted {
                oldest: Revision(9)
            })
        );
        assert_eq!(after(&ring, 9), Ok(vec![]));
    }
}
