//! The v2 keys API without its transport: what is asked, and what an answer means.
//!
//! Everything here was seen on etcd 3.4 with `--enable-v2=true`. What is easily missed:
//!
//! * Keys that have a segment beginning with `_` are hidden: no listing has them, no watch tells of
//!   them.
//! * A directory is deleted by one event, which does not name what was in it.
//! * The index counts every change of the whole store, not only those below one key.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Header that has the store's index.
pub(super) const INDEX_HEADER: &str = "x-etcd-index";

/// Header that has the cluster's id: another one, when etcd was restored.
pub(super) const CLUSTER_HEADER: &str = "x-etcd-cluster-id";

/// Number of a change of the whole store.
pub(super) type Index = u64;

/// What to ask, as far as it does not depend on whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) verb: Verb,
    /// Path and query.
    pub(super) target: String,
    /// Form fields; empty for none.
    pub(super) form: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Put,
    Delete,
}

impl Ask {
    /// Everything at and below a key, through the quorum.
    pub(super) fn list(key: &str) -> Self {
        Self::new(Verb::Get, key, "?recursive=true&quorum=true", String::new())
    }

    /// The next change at or below a key, from an index on.
    pub(super) fn wait(key: &str, from: Index) -> Self {
        let query = format!("?wait=true&recursive=true&waitIndex={from}");
        Self::new(Verb::Get, key, &query, String::new())
    }

    /// Makes a directory unless something is there.
    pub(super) fn make_directory(key: &str) -> Self {
        Self::new(Verb::Put, key, "", "dir=true&prevExist=false".to_owned())
    }

    /// Deletes a directory that is empty.
    pub(super) fn remove_directory(key: &str) -> Self {
        Self::new(Verb::Delete, key, "?dir=true", String::new())
    }

    /// Puts a value where there is none.
    pub(super) fn create(key: &str, value: &[u8]) -> Self {
        let form = format!("value={}&prevExist=false", encoded(&STANDARD.encode(value)));
        Self::new(Verb::Put, key, "", form)
    }

    /// Puts a value where there is none, for some seconds.
    pub(super) fn create_for(key: &str, value: &[u8], seconds: u64) -> Self {
        let create = Self::create(key, value);
        Self {
            form: format!("{}&ttl={seconds}", create.form),
            ..create
        }
    }

    /// Puts a value, whatever was there, for some seconds.
    pub(super) fn put_for(key: &str, value: &[u8], seconds: u64) -> Self {
        let form = format!("value={}&ttl={seconds}", encoded(&STANDARD.encode(value)));
        Self::new(Verb::Put, key, "", form)
    }

    /// Puts a value in place of the one that was put at an index.
    pub(super) fn swap(key: &str, value: &[u8], at: Index) -> Self {
        let form = format!("value={}&prevIndex={at}", encoded(&STANDARD.encode(value)));
        Self::new(Verb::Put, key, "", form)
    }

    /// Deletes the value that was put at an index.
    pub(super) fn delete(key: &str, at: Index) -> Self {
        Self::new(
            Verb::Delete,
            key,
            &format!("?prevIndex={at}"),
            String::new(),
        )
    }

    /// Deletes a value if it is this one.
    pub(super) fn delete_value(key: &str, value: &[u8]) -> Self {
        let value = encoded(&STANDARD.encode(value));
        Self::new(
            Verb::Delete,
            key,
            &format!("?prevValue={value}"),
            String::new(),
        )
    }

    fn new(verb: Verb, key: &str, query: &str, form: String) -> Self {
        let path: Vec<_> = key.split('/').map(encoded).collect();
        Self {
            verb,
            target: format!("/v2/keys{}{query}", path.join("/")),
            form,
        }
    }
}

/// A path segment or form value: everything but unreserved characters is escaped (RFC 3986).
fn encoded(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

/// What is kept under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) key: String,
    /// The text as it is when it is not base64: then nobody who knows the format wrote it, and
    /// whoever reads the record will say so.
    pub(super) value: Vec<u8>,
    pub(super) created: Index,
    pub(super) modified: Index,
}

/// Everything below a key at one index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) index: Index,
    pub(super) records: Vec<Record>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Put(Record),
    /// With everything below it, if it was a directory.
    Deleted {
        key: String,
        index: Index,
    },
    /// A directory was made, which is nothing to know of: there is nothing in it.
    Directory {
        index: Index,
    },
}

impl Event {
    pub(super) fn index(&self) -> Index {
        match self {
            Self::Put(record) => record.modified,
            Self::Deleted { index, .. } | Self::Directory { index } => *index,
        }
    }
}

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("there is no such key")]
    NotFound { index: Index },
    #[error("the key exists already")]
    Exists,
    #[error("the key has changed")]
    Changed,
    #[error("the directory is not empty")]
    NotEmpty,
    /// Events from the index that was asked for are no longer kept.
    #[error("the events asked for are no longer kept")]
    Cleared,
    #[error("etcd refuses this user: check the user and the password")]
    Unauthorized,
    /// It may have been done all the same.
    #[error("etcd failed: {0}")]
    Failed(String),
    #[error("etcd refused: {0}")]
    Other(String),
}

/// An answer is not one that the v2 API gives.
#[derive(Debug, thiserror::Error)]
pub(super) enum Garbled {
    #[error("the v2 API is not served")]
    NotServed,
    #[error("the answer cannot be understood")]
    Malformed(#[source] serde_json::Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Success {
    action: String,
    node: Node,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    #[serde(default)]
    key: String,
    #[serde(default)]
    dir: bool,
    #[serde(default)]
    value: String,
    #[serde(default)]
    nodes: Vec<Node>,
    #[serde(default)]
    created_index: Index,
    #[serde(default)]
    modified_index: Index,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Failure {
    #[serde(default)]
    error_code: u32,
    #[serde(default)]
    message: String,
    #[serde(default)]
    cause: String,
    #[serde(default)]
    index: Index,
}

impl Node {
    fn record(self) -> Record {
        Record {
            value: STANDARD
                .decode(&self.value)
                .unwrap_or_else(|_| self.value.into_bytes()),
            key: self.key,
            created: self.created_index,
            modified: self.modified_index,
        }
    }

    fn collect(self, records: &mut Vec<Record>) {
        if self.dir {
            self.nodes
                .into_iter()
                .for_each(|node| node.collect(records));
        } else {
            records.push(self.record());
        }
    }
}

/// Reads an answer to [`Ask::list`]. Nothing there is an empty listing.
pub(super) fn listing(
    status: u16,
    index: Index,
    body: &[u8],
) -> Result<Result<Listing, Refusal>, Garbled> {
    match node(status, body)? {
        Ok((_, node)) => {
            let mut records = Vec::new();
            node.collect(&mut records);
            Ok(Ok(Listing { index, records }))
        }
        Err(Refusal::NotFound { index }) => Ok(Ok(Listing {
            index,
            records: Vec::new(),
        })),
        Err(refusal) => Ok(Err(refusal)),
    }
}

/// Reads an answer to [`Ask::wait`] or to a change.
pub(super) fn event(status: u16, body: &[u8]) -> Result<Result<Event, Refusal>, Garbled> {
    Ok(
        node(status, body)?.map(|(action, node)| match action.as_str() {
            "delete" | "compareAndDelete" | "expire" => Event::Deleted {
                index: node.modified_index,
                key: node.key,
            },
            _ if node.dir => Event::Directory {
                index: node.modified_index,
            },
            _ => Event::Put(node.record()),
        }),
    )
}

fn node(status: u16, body: &[u8]) -> Result<Result<(String, Node), Refusal>, Garbled> {
    if (200..300).contains(&status) {
        let success: Success = serde_json::from_slice(body).map_err(Garbled::Malformed)?;
        return Ok(Ok((success.action, success.node)));
    }
    let failure = serde_json::from_slice::<Failure>(body).map_err(|error| match status {
        // In plain words, as of any page that is not there.
        404 => Garbled::NotServed,
        _ => Garbled::Malformed(error),
    })?;
    Ok(Err(failure.refusal(status)))
}

impl Failure {
    /// Codes of <https://etcd.io/docs/v2.3/errorcode/>.
    fn refusal(self, status: u16) -> Refusal {
        let words = match self.cause.as_str() {
            "" => self.message,
            cause => format!("{}: {cause}", self.message),
        };
        match self.error_code {
            100 => Refusal::NotFound { index: self.index },
            101 => Refusal::Changed,
            105 => Refusal::Exists,
            108 => Refusal::NotEmpty,
            110 => Refusal::Unauthorized,
            401 => Refusal::Cleared,
            0 if matches!(status, 401 | 403) => Refusal::Unauthorized,
            _ if status >= 500 => Refusal::Failed(words),
            _ => Refusal::Other(words),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_escaped() {
        let ask = Ask::create("/merlin/services/a b%é?#", &[0xfb, 0xff]);
        assert_eq!(ask.target, "/v2/keys/merlin/services/a%20b%25%C3%A9%3F%23");
        assert_eq!(ask.form, "value=%2B%2F8%3D&prevExist=false");
        let ask = Ask::delete("/merlin/servers/web/[fd00::1]:80", 7);
        assert_eq!(
            ask.target,
            "/v2/keys/merlin/servers/web/%5Bfd00%3A%3A1%5D%3A80?prevIndex=7"
        );
    }

    #[test]
    fn a_listing_has_the_values_of_all_directories() {
        let body = br#"{"action":"get","node":{"key":"/m","dir":true,"nodes":[
            {"key":"/m/services","dir":true,"nodes":[
                {"key":"/m/services/web","value":"AAE=","modifiedIndex":6,"createdIndex":5},
                {"key":"/m/services/odd","value":"not base64","modifiedIndex":8,"createdIndex":8}],
             "modifiedIndex":5,"createdIndex":5},
            {"key":"/m/servers","dir":true,"modifiedIndex":4,"createdIndex":4}],
            "modifiedIndex":4,"createdIndex":4}}"#;
        let listing = listing(200, 9, body).unwrap().unwrap();
        let record = |key: &str, value: &[u8], created, modified| Record {
            key: key.to_owned(),
            value: value.to_owned(),
            created,
            modified,
        };
        assert_eq!(
            listing.records,
            [
                record("/m/services/web", &[0, 1], 5, 6),
                record("/m/services/odd", b"not base64", 8, 8),
            ]
        );
        assert_eq!(listing.index, 9);
    }

    #[test]
    fn nothing_there_is_an_empty_listing_at_its_index() {
        let body = br#"{"errorCode":100,"message":"Key not found","cause":"/m","index":3}"#;
        let empty = Listing {
            index: 3,
            records: vec![],
        };
        assert_eq!(listing(404, 0, body).unwrap(), Ok(empty));
    }

    #[test]
    fn refusals_are_told_apart() {
        let refusal = |status, body: &str| event(status, body.as_bytes()).unwrap().unwrap_err();
        let coded = |status, code: u32| {
            refusal(status, &format!(r#"{{"errorCode":{code},"message":"m"}}"#))
        };
        assert_eq!(coded(412, 101), Refusal::Changed);
        assert_eq!(coded(412, 105), Refusal::Exists);
        assert_eq!(coded(403, 108), Refusal::NotEmpty);
        assert_eq!(coded(400, 401), Refusal::Cleared);
        assert_eq!(coded(401, 110), Refusal::Unauthorized);
        assert_eq!(coded(500, 300), Refusal::Failed("m".into()));
        assert_eq!(
            refusal(401, r#"{"message":"Insufficient credentials"}"#),
            Refusal::Unauthorized
        );
        assert_eq!(
            refusal(500, r#"{"message":"Internal Server Error"}"#),
            Refusal::Failed("Internal Server Error".into())
        );
        assert!(event(200, b"<html>").is_err());
        assert!(event(404, b"404 page not found").is_err());
    }

    #[test]
    fn events_are_puts_and_deletions() {
        let put = br#"{"action":"compareAndSwap","node":{"key":"/m/a","value":"AA==","modifiedIndex":6,"createdIndex":5}}"#;
        assert_eq!(event(200, put).unwrap().unwrap().index(), 6);
        let gone = br#"{"action":"delete","node":{"key":"/m/servers/web","dir":true,"modifiedIndex":10,"createdIndex":9}}"#;
        assert_eq!(
            event(200, gone).unwrap(),
            Ok(Event::Deleted {
                key: "/m/servers/web".into(),
                index: 10
            })
        );
    }
}
