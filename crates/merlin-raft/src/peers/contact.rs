//! Who answered this node's calls when, and what is wrong with those who do not.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::typ::NodeId;

/// What the calls to one node came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contact {
    answered: Option<Instant>,
    /// Of the last call, if it failed.
    trouble: Option<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Contacts(Mutex<BTreeMap<NodeId, Contact>>);

impl Contacts {
    pub(crate) fn answered(&self, node: NodeId) {
        self.edit(node, |contact| {
            contact.answered = Some(Instant::now());
            contact.trouble = None;
        });
    }

    pub(crate) fn failed(&self, node: NodeId, reason: &str) {
        self.edit(node, |contact| {
            if contact.trouble.as_deref() != Some(reason) {
                contact.trouble = Some(reason.to_owned());
            }
        });
    }

    /// How long ago a node answered last.
    pub(crate) fn silence(&self, node: NodeId) -> Option<Duration> {
        let contacts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        contacts.get(&node)?.answered.map(|at| at.elapsed())
    }

    pub(crate) fn trouble(&self, node: NodeId) -> Option<String> {
        let contacts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        contacts.get(&node)?.trouble.clone()
    }

    fn edit(&self, node: NodeId, change: impl FnOnce(&mut Contact)) {
        let mut contacts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(contacts.entry(node).or_default());
    }
}
