//! A cluster of an earlier version that is upgraded node by node.
//!
//! The earlier version is this one, told to do no more than that one could. What is new since is
//! refused until the last node is upgraded, in words that say so, and accepted from then on.

use anyhow::{Result, anyhow};

use super::members::insist;
use super::{Begun, Kind, Nemesis};
use crate::checker::Law;
use crate::ops::Node;

impl Nemesis {
    pub(super) fn upgrade_in_turn(&mut self, kind: Kind) -> Result<Begun> {
        let begun = self.begin(kind, "one after the other", []);
        for node in self.nodes() {
            insist(|| self.is_refused(node))?;
            self.machine(node).upgrade();
            self.restart(node)?;
        }
        let last = self.any();
        if let Err(error) = insist(|| self.use_what_is_new(last)) {
            let what = format!("every node is upgraded, and n{last} says: {error:#}");
            self.shared.recorder.violation(Law::UpgradesWait, what);
        }
        Ok(begun)
    }

    /// Something that the earlier version does not know.
    fn use_what_is_new(&self, at: Node) -> Result<()> {
        let name = format!("probe-{}", self.now());
        let create = ["client", "create", &name, "--role", "viewer", "--out", "-"];
        self.machine(at).cluster(&create).map(drop)
    }

    /// An error when it was refused for another reason.
    fn is_refused(&self, at: Node) -> Result<()> {
        match self.use_what_is_new(at) {
            Ok(()) => {
                let what = format!("n{at} took what n{at} could not apply");
                self.shared.recorder.violation(Law::UpgradesWait, what);
                Ok(())
            }
            Err(error) if error.to_string().contains("upgrade") => Ok(()),
            Err(error) => Err(anyhow!("the refusal says nothing of an upgrade: {error:#}")),
        }
    }
}
