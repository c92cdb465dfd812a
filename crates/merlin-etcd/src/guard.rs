//! Holds back a catalog that would take away too much at once. Pure.
//!
//! An etcd that was wiped, restored from an old copy, or is looked at under the wrong prefix answers
//! quickly, truthfully and with nothing, and obeying it would empty every kernel of the fleet. So a
//! catalog that removes more than half of the services (when there are more than ten), or all of
//! them without naming them, is not obeyed before
//!
//! 1. a second, linearizable read has confirmed it, and
//! 2. `--max-removal` allows that much, or an operator has accepted this very catalog.
//!
//! Until then the node goes on with the catalog it has, and half of the services coming back is no
//! reason to do without the others: what is held is let go when nothing is missing any more.
//!
//! ```text
//!                 removes little                    removes nothing
//!             ┌───────────────────┐     ┌──────────────────────────────────────┐
//!             ▼                   │     ▼                                      │
//!   ──▶ obeyed ── removes much ──▶ suspect ── confirmed ──▶ allowed? ── no ──▶ held
//!             ▲                                                │                │
//!             └─────────────────────── yes ◀───────────────────┘◀── accepted ───┘
//! ```

use std::fmt;

use merlin_model::{Catalog, Revision};

/// Up to this many services, only the loss of all of them is suspicious.
const FEW: usize = 10;
/// Percentage of the services whose removal is suspicious when it is exceeded.
const SUSPICIOUS: usize = 50;

/// Decides which catalogs are obeyed.
#[derive(Clone, Debug)]
pub struct Guard {
    limit: MaxRemoval,
    accepted: Option<Revision>,
    holding: bool,
}

/// Largest part of the services, in percent, that is removed without asking anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxRemoval(u8);

/// How a catalog came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// By changes that name what they remove.
    Watched,
    /// As a list, in which what is removed is merely absent.
    Listed,
    /// As a linearizable list that was asked for to confirm another answer.
    Confirmed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Obey,
    /// It has to be read again, linearizably.
    Confirm(Removal),
    /// Somebody has to say that it is meant.
    Hold(Removal),
}

/// How much a catalog removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Of the catalog that would remove.
    pub revision: Revision,
    /// Services that would go.
    pub services: usize,
    /// Services there are.
    pub of: usize,
}

/// What an operator accepts is not, or no longer, what is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    #[error("no removal is held back")]
    NothingHeld,
    #[error("the catalog that is held back is at revision {0} now: look at it again")]
    Moved(Revision),
}

impl Guard {
    pub fn new(limit: MaxRemoval) -> Self {
        Self {
            limit,
            accepted: None,
            holding: false,
        }
    }

    /// Whether `next` may take the place of `current`.
    pub fn judge(&mut self, current: &Catalog, next: &Catalog, origin: Origin) -> Verdict {
        let removal = Removal::between(current, next);
        let is_suspicious = match self.holding {
            true => removal.services > 0,
            false => removal.is_suspicious(origin, self.limit),
        };
        if is_suspicious && origin != Origin::Confirmed {
            return Verdict::Confirm(removal);
        }
        let is_meant = self.limit.allows(removal) || self.accepted == Some(removal.revision);
        self.holding = is_suspicious && !is_meant;
        if self.holding {
            return Verdict::Hold(removal);
        }
        self.accepted = None;
        Verdict::Obey
    }

    /// An operator says that what is held back is meant. It is judged once more before it is obeyed.
    pub fn accept(
        &mut self,
        held: Option<Removal>,
        revision: Option<Revision>,
    ) -> Result<Removal, AcceptError> {
        let held = held.ok_or(AcceptError::NothingHeld)?;
        if revision.is_some_and(|revision| revision != held.revision) {
            return Err(AcceptError::Moved(held.revision));
        }
        self.accepted = Some(held.revision);
        Ok(held)
    }
}

impl MaxRemoval {
    /// Everything, once it is confirmed.
    pub const ALL: Self = Self(100);

    /// `None` when it is more than everything.
    pub fn new(percent: u8) -> Option<Self> {
        (percent <= 100).then_some(Self(percent))
    }

    /// Whether a removal that is suspicious is allowed. The default allows none.
    fn allows(self, removal: Removal) -> bool {
        usize::from(self.0) > SUSPICIOUS
            && removal.services * 100 <= removal.of * usize::from(self.0)
    }
}

impl Default for MaxRemoval {
    fn default() -> Self {
        Self(50)
    }
}

impl fmt::Display for MaxRemoval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl Removal {
    fn between(current: &Catalog, next: &Catalog) -> Self {
        let kept = |id| next.service(id).is_some();
        Self {
            revision: next.revision(),
            services: current.services().filter(|s| !kept(&s.id)).count(),
            of: current.services().len(),
        }
    }

    fn is_suspicious(self, origin: Origin, limit: MaxRemoval) -> bool {
        let all = self.services == self.of && self.of > 0;
        // Whoever deletes the last service by its name means it.
        let unnamed = origin != Origin::Watched || self.services > 1;
        let much = self.services * 100 > self.of * SUSPICIOUS.min(usize::from(limit.0));
        (all && unnamed) || (self.of > FEW && much)
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            services,
            of,
            revision,
        } = self;
        write!(
            f,
            "{services} of {of} services are gone from the store at revision {revision}"
        )
    }
}

#[cfg(test)]
mod tests {
    use merlin_model::command::{Command, Mutation, Timestamp};
    use merlin_model::{Protocol, Scheduler, ServiceConfig, ServiceId, ServiceKey};

    use super::*;

    fn id(n: u16) -> ServiceId {
        ServiceId::new(&format!("s{n}")).unwrap()
    }

    fn create(n: u16) -> Mutation {
        Mutation::CreateService {
            id: id(n),
            key: ServiceKey::Address {
                address: [10, 0, 0, 1].into(),
                port: n,
                protocol: Protocol::Tcp,
            },
            config: ServiceConfig::new(Scheduler::Rr),
        }
    }

    fn with(count: u16) -> Catalog {
        let mut catalog = Catalog::default();
        for n in 1..=count {
            let command = Command::new(Timestamp::default(), create(n));
            catalog.apply(&command).unwrap();
        }
        catalog
    }

    fn without(mut catalog: Catalog, removed: u16) -> Catalog {
        for n in 1..=removed {
            let mutation = Mutation::DeleteService { id: id(n) };
            let command = Command::new(Timestamp::default(), mutation);
            catalog.apply(&command).unwrap();
        }
        catalog
    }

    fn verdict(limit: u8, of: u16, removed: u16, origin: Origin) -> Verdict {
        let current = with(of);
        let next = without(current.clone(), removed);
        Guard::new(MaxRemoval::new(limit).unwrap()).judge(&current, &next, origin)
    }

    #[test]
    fn removals_are_obeyed_confirmed_or_held() {
        use Origin::{Confirmed, Listed, Watched};

        let obey = |v| matches!(v, Verdict::Obey);
        let confirm = |v| matches!(v, Verdict::Confirm(_));
        let hold = |v| matches!(v, Verdict::Hold(_));
        type Is = fn(Verdict) -> bool;
        let table: [(u8, u16, u16, [Is; 3]); 14] = [
            // limit, services, removed: watched, listed, confirmed
            (50, 0, 0, [obey, obey, obey]),
            (50, 20, 0, [obey, obey, obey]),
            (50, 20, 10, [obey, obey, obey]),
            (50, 20, 11, [confirm, confirm, hold]),
            (50, 20, 20, [confirm, confirm, hold]),
            (50, 11, 6, [confirm, confirm, hold]),
            // Few services: only the loss of all counts.
            (50, 10, 9, [obey, obey, obey]),
            (50, 10, 10, [confirm, confirm, hold]),
            // The last one, deleted by name, or just gone.
            (50, 1, 1, [obey, confirm, hold]),
            // More is allowed, once it is confirmed.
            (80, 20, 16, [confirm, confirm, obey]),
            (80, 20, 17, [confirm, confirm, hold]),
            (100, 20, 20, [confirm, confirm, obey]),
            (100, 1, 1, [obey, confirm, obey]),
            // Less is allowed.
            (10, 20, 3, [confirm, confirm, hold]),
        ];
        for (limit, of, removed, is) in table {
            for (origin, is) in [Watched, Listed, Confirmed].into_iter().zip(is) {
                let verdict = verdict(limit, of, removed, origin);
                assert!(
                    is(verdict.clone()),
                    "{limit} {of} {removed} {origin:?}: {verdict:?}"
                );
            }
        }
    }

    #[test]
    fn an_operator_accepts_what_was_seen_and_nothing_else() {
        let mut guard = Guard::new(MaxRemoval::default());
        let current = with(20);
        let next = without(current.clone(), 15);
        assert_eq!(guard.accept(None, None), Err(AcceptError::NothingHeld));
        let Verdict::Hold(held) = guard.judge(&current, &next, Origin::Confirmed) else {
            panic!("it is held")
        };
        assert_eq!(
            held.to_string(),
            "15 of 20 services are gone from the store at revision 35"
        );
        let other = Some(Revision(34));
        assert_eq!(
            guard.accept(Some(held), other),
            Err(AcceptError::Moved(held.revision))
        );
        guard.accept(Some(held), Some(held.revision)).unwrap();
        let more = without(current.clone(), 16);
        assert!(matches!(
            guard.judge(&current, &more, Origin::Confirmed),
            Verdict::Hold(_)
        ));
        assert_eq!(
            guard.judge(&current, &next, Origin::Confirmed),
            Verdict::Obey
        );
        // It was accepted once.
        assert!(matches!(
            guard.judge(&current, &next, Origin::Confirmed),
            Verdict::Hold(_)
        ));
    }

    #[test]
    fn services_that_come_back_need_nobody() {
        let mut guard = Guard::new(MaxRemoval::default());
        let current = with(20);
        let empty = Catalog::default();
        assert!(matches!(
            guard.judge(&current, &empty, Origin::Confirmed),
            Verdict::Hold(_)
        ));
        // Some of them are not enough.
        let some = without(current.clone(), 1);
        assert!(matches!(
            guard.judge(&current, &some, Origin::Confirmed),
            Verdict::Hold(_)
        ));
        assert_eq!(
            guard.judge(&current, &with(21), Origin::Listed),
            Verdict::Obey
        );
        assert_eq!(guard.judge(&current, &some, Origin::Listed), Verdict::Obey);
    }
}
