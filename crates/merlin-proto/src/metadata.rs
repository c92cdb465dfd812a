//! Conditions and options that travel beside a request, and what travels beside its answer.

use merlin_model::Invalid;
use merlin_model::catalog::Revision;
use merlin_model::command::{Reply, RequestId};
use merlin_model::store::Consistency;
use tonic::metadata::{MetadataMap, MetadataValue};

/// The object must have last changed at this revision; 0: must not exist.
pub const EXPECTED_REVISION: &str = "merlin-expected-revision";
/// A retry with the same id is answered as the first try was.
pub const REQUEST_ID: &str = "merlin-request-id";
/// `stale` lets a read be answered from the node's own copy.
pub const CONSISTENCY: &str = "merlin-consistency";
/// In answers to mutations: revision of the catalog that holds the effect.
pub const REVISION: &str = "merlin-revision";
/// In answers to mutations: `false` when there was nothing to change.
pub const CHANGED: &str = "merlin-changed";

const STALE: &str = "stale";
const LINEARIZABLE: &str = "linearizable";

/// What a client attaches to a mutation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    pub expected_revision: Option<Revision>,
    pub request_id: Option<RequestId>,
}

impl Conditions {
    pub fn read(metadata: &MetadataMap) -> Result<Self, Invalid> {
        let expected_revision = match text(metadata, EXPECTED_REVISION)? {
            Some(number) => Some(number.parse().map(Revision).map_err(|_| {
                Invalid::new(
                    EXPECTED_REVISION,
                    format!("{number:?} is not a revision: a number, 0 for none"),
                )
            })?),
            None => None,
        };
        Ok(Self {
            expected_revision,
            request_id: text(metadata, REQUEST_ID)?
                .map(RequestId::new)
                .transpose()?,
        })
    }

    pub fn write(&self, metadata: &mut MetadataMap) {
        if let Some(Revision(revision)) = self.expected_revision {
            metadata.insert(EXPECTED_REVISION, revision.into());
        }
        if let Some(id) = &self.request_id {
            // Request ids are printable ASCII, which is what metadata takes.
            if let Ok(value) = MetadataValue::try_from(id.as_str()) {
                metadata.insert(REQUEST_ID, value);
            }
        }
    }
}

/// How fresh the client wants a read to be.
pub fn read_consistency(metadata: &MetadataMap) -> Result<Consistency, Invalid> {
    match text(metadata, CONSISTENCY)? {
        None | Some(LINEARIZABLE) => Ok(Consistency::Linearizable),
        Some(STALE) => Ok(Consistency::Stale),
        Some(other) => Err(Invalid::new(
            CONSISTENCY,
            format!("unknown consistency {other:?}: one of {LINEARIZABLE}, {STALE}"),
        )),
    }
}

pub fn write_consistency(consistency: Consistency, metadata: &mut MetadataMap) {
    let value = match consistency {
        Consistency::Linearizable => LINEARIZABLE,
        Consistency::Stale => STALE,
    };
    metadata.insert(CONSISTENCY, MetadataValue::from_static(value));
}

/// The reply in an answer's metadata; `None` from servers that know no revisions.
pub fn read_reply(metadata: &MetadataMap) -> Option<Reply> {
    let text = |name| metadata.get(name)?.to_str().ok();
    Some(Reply {
        revision: Revision(text(REVISION)?.parse().ok()?),
        changed: text(CHANGED)?.parse().ok()?,
    })
}

pub fn write_reply(reply: &Reply, metadata: &mut MetadataMap) {
    let changed = if reply.changed { "true" } else { "false" };
    metadata.insert(REVISION, reply.revision.0.into());
    metadata.insert(CHANGED, MetadataValue::from_static(changed));
}

fn text<'a>(metadata: &'a MetadataMap, name: &str) -> Result<Option<&'a str>, Invalid> {
    let parse = |value: &'a MetadataValue<_>| {
        value
            .to_str()
            .map_err(|_| Invalid::new(name, "must be printable ASCII"))
    };
    metadata.get(name).map(parse).transpose()
}
