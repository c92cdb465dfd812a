//! Nodes that are not where the members know them to be, yet.

use std::collections::HashMap;

use crate::peers::Target;
use crate::typ::NodeId;

#[derive(Debug, Default)]
pub(crate) struct Detours(HashMap<NodeId, Detour>);

#[derive(Debug)]
struct Detour {
    known: String,
    found: String,
}

impl Detours {
    pub(crate) fn find(&mut self, node: NodeId, known: &str, found: &str) {
        if known == found {
            self.0.remove(&node);
            return;
        }
        let detour = Detour {
            known: known.to_owned(),
            found: found.to_owned(),
        };
        self.0.insert(node, detour);
    }

    /// Forgets those that have become known, or the node could never come back to its old address.
    pub(crate) fn settle(&mut self, members: &[Target]) {
        self.0.retain(|id, detour| {
            let known = members.iter().find(|member| member.id == *id);
            known.is_some_and(|known| known.addr == detour.known)
        });
    }

    /// Where a node is, if it is elsewhere.
    pub(crate) fn way(&self, target: &Target) -> Option<Target> {
        let detour = self.0.get(&target.id)?;
        (detour.known == target.addr).then(|| Target {
            id: target.id,
            addr: detour.found.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(addr: &str) -> Target {
        Target {
            id: 2,
            addr: addr.to_owned(),
        }
    }

    #[test]
    fn a_node_is_called_where_it_was_found_until_that_is_known() {
        let mut detours = Detours::default();
        assert_eq!(detours.way(&node("old")), None);
        detours.find(2, "old", "new");
        detours.settle(&[node("old")]);
        assert_eq!(detours.way(&node("old")), Some(node("new")));
        assert_eq!(detours.way(&node("new")), None);
        detours.settle(&[node("new")]);
        assert_eq!(detours.way(&node("old")), None, "it may come back");
    }

    #[test]
    fn a_node_that_is_where_it_is_known_to_be_is_called_there() {
        let mut detours = Detours::default();
        detours.find(2, "old", "new");
        detours.find(2, "old", "old");
        assert_eq!(detours.way(&node("old")), None);
    }
}
