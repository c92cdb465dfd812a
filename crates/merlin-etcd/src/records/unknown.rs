//! Keeping what another version wrote.
//!
//! A record may carry fields of a later version. Generated code drops what it does not know, so a
//! rewrite goes through the message's descriptor, which keeps it: every unknown field of the
//! earlier bytes is put into the new ones, inside nested messages too. A nested message that is
//! gone from the new record takes its fields with it.

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, Value};

static DESCRIPTORS: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(merlin_proto::FILE_DESCRIPTORS).ok());

/// The bytes of a message, with the fields of `before` that this version does not know.
///
/// Bytes that cannot be read have no fields worth keeping.
pub fn merge_unknown<M: Message + Name>(message: &M, before: Option<&[u8]>) -> Vec<u8> {
    let plain = message.encode_to_vec();
    let merged = before.and_then(|before| merged::<M>(&plain, before));
    merged.unwrap_or(plain)
}

/// Nothing when there is nothing to keep: then the bytes are left as the generated code made them.
fn merged<M: Name>(plain: &[u8], before: &[u8]) -> Option<Vec<u8>> {
    let descriptor = DESCRIPTORS.as_ref()?.get_message_by_name(&M::full_name())?;
    let before = DynamicMessage::decode(descriptor.clone(), before).ok()?;
    let mut after = DynamicMessage::decode(descriptor, plain).ok()?;
    keep(&before, &mut after).then(|| after.encode_to_vec())
}

/// Moves unknown fields over; whether there were any.
fn keep(before: &DynamicMessage, after: &mut DynamicMessage) -> bool {
    let mut unknown = Vec::new();
    for field in before.unknown_fields() {
        field.encode(&mut unknown);
    }
    // Whatever decoded once decodes again.
    let mut kept = !unknown.is_empty() && after.merge(&*unknown).is_ok();
    for (field, value) in before.fields() {
        if let Value::Message(before) = value
            && after.has_field(&field)
            && let Value::Message(after) = after.get_field_mut(&field)
        {
            kept |= keep(before, after);
        }
    }
    kept
}
