//! Messages in the JSON of protocol buffers, for programs that print them.
//!
//! Names are the JSON names of the fields and enumerations go by name. Unlike the canonical form,
//! 64-bit integers are numbers: revisions and counters are far below what a double holds exactly,
//! and `jq` should not have to convert them.

use std::sync::LazyLock;

use prost::Name;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::FILE_DESCRIPTORS;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(FILE_DESCRIPTORS).expect("the build compiled these descriptors")
});

fn descriptor<M: Name>() -> MessageDescriptor {
    POOL.get_message_by_name(&M::full_name())
        .expect("messages are generated from these descriptors")
}

/// A message that serializes as JSON, or as anything of that shape.
#[derive(Clone, Debug)]
pub struct Json {
    message: DynamicMessage,
    options: SerializeOptions,
}

impl Json {
    /// Leaves out fields that have their default: what is declared, as it is declared.
    pub fn terse<M: Name>(message: &M) -> Self {
        Self::new(message, true)
    }

    /// Has every field: what is observed, where 0 is an observation.
    pub fn full<M: Name>(message: &M) -> Self {
        Self::new(message, false)
    }

    fn new<M: Name>(message: &M, skip_defaults: bool) -> Self {
        let mut dynamic = DynamicMessage::new(descriptor::<M>());
        dynamic
            .transcode_from(message)
            .expect("a message has the encoding that its descriptor describes");
        Self {
            message: dynamic,
            options: SerializeOptions::new()
                .stringify_64_bit_integers(false)
                .skip_default_fields(skip_defaults),
        }
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.message
            .serialize_with_options(serializer, &self.options)
    }
}

/// A message read from JSON, or from anything of that shape. Fields that it does not have are
/// refused: a misspelt name must not pass for an absent field.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FromJson<M>(pub M);

impl<'de, M: Name + Default> Deserialize<'de> for FromJson<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let dynamic = DynamicMessage::deserialize(descriptor::<M>(), deserializer)?;
        dynamic.transcode_to().map(Self).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::real_server::{Config, HealthCheck, Key};
    use crate::types::{ForwardMethod, RealServer};

    #[test]
    fn names_numbers_wrappers_and_durations_are_those_of_protocol_buffers() {
        let server = RealServer {
            service_id: "web".into(),
            key: Some(Key {
                ip: "10.1.0.1".into(),
                port: 80,
            }),
            config: Some(Config {
                weight: Some(0),
                forward: ForwardMethod::Masq.into(),
                ..Default::default()
            }),
            health_check: Some(HealthCheck {
                endpoint: Some("http://:80/".into()),
                period: Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 500_000_000,
                }),
                ..Default::default()
            }),
            created_revision: 7,
            ..Default::default()
        };
        assert_eq!(
            serde_json::to_string(&Json::terse(&server)).unwrap(),
            concat!(
                r#"{"serviceID":"web","key":{"ip":"10.1.0.1","port":80},"#,
                r#""config":{"weight":0,"forward":"MASQ"},"#,
                r#""healthCheck":{"endpoint":"http://:80/","period":"1.500s"},"#,
                r#""createdRevision":7}"#
            )
        );
        let text = serde_json::to_string(&Json::terse(&server)).unwrap();
        assert_eq!(
            serde_json::from_str::<FromJson<RealServer>>(&text).unwrap(),
            FromJson(server.clone())
        );
        let full = serde_json::to_value(Json::full(&server)).unwrap();
        assert_eq!(full["changedRevision"], 0);
        assert_eq!(full["healthCheck"]["upThreshold"], 0);
    }

    #[test]
    fn a_field_that_does_not_exist_is_refused() {
        let text = r#"{"serviceID": "web", "wieght": 1}"#;
        let error = serde_json::from_str::<FromJson<RealServer>>(text).unwrap_err();
        assert!(error.to_string().contains("wieght"), "{error}");
    }
}
