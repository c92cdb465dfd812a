//! A cluster begins anew with what one node or one copy knows of it.
//!
//! ```text
//! stays    cluster id, authority, catalog with the revisions of its objects, clients, audit trail
//! anew     incarnation + 1: every call between nodes names it, so no old member is ever heard
//!          revision + 1,000,000: beyond whatever the lost part may have handed out
//!          one member, under a number that nobody had: [`NODE_NUMBERS`]
//! gone     the other members and all join tokens
//! ```
//! Pure; [`crate::restore`] and [`crate::recover`] write it to a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use merlin_model::{Actor, Timestamp};

use crate::datadir::NodeFile;
use crate::state::State;
use crate::typ::{Membership, MerlinNode, NodeId, StoredMembership};

/// More commands than a cluster takes between the copy and its end. Whoever remembers a revision
/// from then finds it compacted, not taken by something else.
const REVISIONS: u64 = 1_000_000;

/// Numbers are handed out in blocks of so many for each life of a cluster, as nobody knows which
/// ones were handed out after the copy was made.
const NODE_NUMBERS: NodeId = 100;

/// There is no cluster that could begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it holds no cluster")]
pub(crate) struct NoCluster;

/// Why a cluster begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Restored,
    Recovered,
}

/// The state of the cluster's next life, with `this` as its only member, and which node that is.
pub(crate) fn reborn(
    state: &State,
    this: MerlinNode,
    at: Timestamp,
    cause: Cause,
) -> Result<(State, NodeFile), NoCluster> {
    let mut cluster = (*state.cluster).clone();
    let founding = cluster.founding.as_mut().ok_or(NoCluster)?;
    founding.incarnation += 1;
    let enrollment = &mut cluster.enrollment;
    let known = state.membership.membership().nodes().map(|(id, _)| *id);
    let highest = known.max().unwrap_or(0).max(enrollment.next_node - 1);
    let node = highest.next_multiple_of(NODE_NUMBERS) + 1;
    let file = NodeFile {
        cluster: founding.cluster,
        node,
        incarnation: founding.incarnation,
    };
    enrollment.next_node = node + 1;
    enrollment.nodes.clear();
    enrollment.tokens.clear();
    // About nodes that nobody hears any more.
    enrollment.roles.clear();
    enrollment.removed.clear();
    let members = Membership::new(vec![BTreeSet::from([node])], BTreeMap::from([(node, this)]));
    let mut catalog = state.catalog.clone();
    catalog.skip_revisions(REVISIONS);
    let mut audit = state.audit.clone();
    let from = match cause {
        Cause::Restored => "from a snapshot",
        Cause::Recovered => "from what one node had",
    };
    let what = format!("begin incarnation {} {from}", file.incarnation);
    audit.push(at, Actor::Node(node), what, catalog.revision());
    let state = State {
        applied: state.applied,
        // As if the last entry had said so: consensus looks for later ones only.
        membership: StoredMembership::new(state.applied, members),
        cluster: Arc::new(cluster),
        catalog,
        audit,
    };
    Ok((state, file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::populated;

    fn again(state: &State) -> Result<(State, NodeFile), NoCluster> {
        let this = MerlinNode {
            name: "n".into(),
            addr: "192.0.2.9:4284".into(),
        };
        reborn(state, this, Timestamp(9), Cause::Restored)
    }

    #[test]
    fn the_next_life_keeps_the_catalog_and_nobody_who_was_in_it() {
        let before = populated();
        let (after, file) = again(&before).unwrap();
        let (old, new) = (&before.cluster, &after.cluster);
        let (old, new) = (
            old.founding.as_ref().unwrap(),
            new.founding.as_ref().unwrap(),
        );
        assert_eq!((new.cluster, &new.ca), (old.cluster, &old.ca));
        assert_eq!(new.incarnation, old.incarnation + 1);
        assert_eq!((file.node, file.incarnation), (101, new.incarnation));
        assert_eq!(
            after.catalog.revision().0,
            before.catalog.revision().0 + REVISIONS
        );
        assert!(after.catalog.services().eq(before.catalog.services()));
        let members = after.membership.membership();
        assert_eq!(
            members.nodes().map(|(id, _)| *id).collect::<Vec<_>>(),
            [101]
        );
        assert!(after.cluster.enrollment.nodes.is_empty());
        // Entries that are in a log yet do not speak of members again.
        assert_eq!(*after.membership.log_id(), before.applied);
    }

    #[test]
    fn every_life_has_node_numbers_of_its_own() {
        let (second, _) = again(&populated()).unwrap();
        let (_, file) = again(&second).unwrap();
        assert_eq!((file.node, file.incarnation), (201, 3));
    }

    #[test]
    fn nothing_begins_anew_that_never_began() {
        assert_eq!(again(&State::default()), Err(NoCluster));
    }
}
