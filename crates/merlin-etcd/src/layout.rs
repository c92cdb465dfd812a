//! Where records are kept: the keys under the prefix.
//!
//! ```text
//! <prefix>/services/<id>                    a virtual service
//! <prefix>/servers/<id>/<address>:<port>    one of its real servers; IPv6 as [address]:port
//! <prefix>/v1/requests/<request id>         the answer to a request, for ten minutes
//! <prefix>/v1/deleted                       what was deleted last, for its revision
//! ```
//!
//! The first two are the earlier system's, and its nodes may be reading and writing them too, so
//! nothing else is ever put there. What is ours alone lives under `v1`, where nobody misses it.

use std::fmt;

use merlin_model::{Invalid, RealServerKey, RequestId, ServiceId};

/// The prefix of all keys: a leading slash, no trailing one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    prefix: String,
}

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Service(ServiceId),
    /// A server of the service. The name is the key's last segment as it is: whoever wrote it may
    /// spell addresses differently.
    Server {
        service: ServiceId,
        name: String,
    },
    /// Among the records, but no record belongs there.
    Misplaced {
        reason: String,
    },
}

impl Layout {
    /// Where the earlier system keeps its records unless told otherwise.
    pub const DEFAULT_PREFIX: &str = "/merlin";

    pub fn new(prefix: &str) -> Result<Self, Invalid> {
        let prefix = prefix.trim_matches('/');
        if prefix.is_empty()
            || prefix
                .split('/')
                .any(|segment| matches!(segment, "" | "." | ".."))
        {
            let reason = format!("{prefix:?} is not a path such as /merlin");
            return Err(Invalid::new("prefix", reason));
        }
        Ok(Self {
            prefix: format!("/{prefix}"),
        })
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Below which all services are. Ends in a slash, as every directory here: without it,
    /// `servers/web` would take in the servers of `web2`.
    pub fn services(&self) -> String {
        format!("{}/services/", self.prefix)
    }

    pub fn service(&self, id: &ServiceId) -> String {
        format!("{}/services/{id}", self.prefix)
    }

    /// Below which the servers of all services are.
    pub fn servers(&self) -> String {
        format!("{}/servers/", self.prefix)
    }

    /// Below which the servers of one service are.
    pub fn servers_of(&self, service: &ServiceId) -> String {
        format!("{}/servers/{service}/", self.prefix)
    }

    /// Where a new server goes.
    pub fn server(&self, service: &ServiceId, key: &RealServerKey) -> String {
        self.named_server(service, &key.to_string())
    }

    pub fn named_server(&self, service: &ServiceId, name: &str) -> String {
        format!("{}/servers/{service}/{name}", self.prefix)
    }

    /// The answer to a request.
    pub fn request(&self, id: &RequestId) -> String {
        // Ids are printable ASCII; a slash in one would be a directory in etcd 2.
        format!(
            "{}/v1/requests/{}",
            self.prefix,
            id.as_str().replace('/', "%2F")
        )
    }

    /// Put by every deletion of ours, in its transaction. A record that is gone has no revision: without
    /// this, a list tells what was deleted, but not when.
    pub fn deleted(&self) -> String {
        format!("{}/v1/deleted", self.prefix)
    }

    /// The one range that holds all records: `servers/` and `services/` are neighbours. The end is
    /// the first key after it.
    pub fn records(&self) -> (String, String) {
        (self.servers(), format!("{}/services0", self.prefix))
    }

    /// What a key stands for; nothing when it is not among the records.
    pub fn place(&self, key: &[u8]) -> Option<Place> {
        let rest = key.strip_prefix(self.prefix.as_bytes())?;
        let (rest, is_service) = match rest.strip_prefix(b"/services/") {
            Some(rest) => (rest, true),
            None => (rest.strip_prefix(b"/servers/")?, false),
        };
        Some(place(rest, is_service).unwrap_or_else(|reason| Place::Misplaced { reason }))
    }
}

fn place(rest: &[u8], is_service: bool) -> Result<Place, String> {
    let rest = std::str::from_utf8(rest).map_err(|_| "the key is not UTF-8".to_owned())?;
    let service = |id: &str| {
        ServiceId::new(id)
            .map_err(|invalid| format!("{id:?} is no service id: it {}", invalid.reason))
    };
    if is_service {
        return Ok(Place::Service(service(rest)?));
    }
    match rest.split_once('/') {
        Some((id, name)) if !name.is_empty() && !name.contains('/') => Ok(Place::Server {
            service: service(id)?,
            name: name.to_owned(),
        }),
        _ => Err("a server's key ends in SERVICE/ADDRESS:PORT".to_owned()),
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            prefix: Self::DEFAULT_PREFIX.to_owned(),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: &str) -> ServiceId {
        ServiceId::new(id).unwrap()
    }

    #[test]
    fn prefixes_get_their_slash_and_lose_what_trails() {
        for given in ["/merlin", "merlin", "merlin/", "//merlin//"] {
            assert_eq!(Layout::new(given).unwrap().prefix(), "/merlin");
        }
        assert_eq!(Layout::new("/a/b").unwrap().prefix(), "/a/b");
        for bad in ["", "/", "a//b", "a/../b"] {
            assert_eq!(Layout::new(bad).unwrap_err().field, "prefix");
        }
    }

    #[test]
    fn keys_are_the_earlier_systems() {
        let layout = Layout::default();
        let at = |text: &str| RealServerKey::from(text.parse::<std::net::SocketAddr>().unwrap());
        assert_eq!(layout.service(&id("web")), "/merlin/services/web");
        assert_eq!(
            layout.server(&id("web"), &at("10.0.0.1:80")),
            "/merlin/servers/web/10.0.0.1:80"
        );
        assert_eq!(
            layout.server(&id("web"), &at("[fd00::1]:80")),
            "/merlin/servers/web/[fd00::1]:80"
        );
    }

    #[test]
    fn every_record_is_in_the_range_and_places_name_it_again() {
        let layout = Layout::new("/a/b").unwrap();
        let (start, end) = layout.records();
        let service = layout.service(&id("web"));
        let server = layout.named_server(&id("web"), "10.0.0.1:80");
        for key in [&service, &server] {
            assert!(*key >= start && *key < end, "{key}");
        }
        assert_eq!(
            layout.place(service.as_bytes()),
            Some(Place::Service(id("web")))
        );
        assert_eq!(
            layout.place(server.as_bytes()),
            Some(Place::Server {
                service: id("web"),
                name: "10.0.0.1:80".into()
            })
        );
    }

    #[test]
    fn what_is_not_a_record_is_told_from_what_is_misplaced() {
        let layout = Layout::default();
        for other in [
            "/merlin",
            "/merlin/v1/requests/x",
            "/merlin/v1/deleted",
            "/merlin/services",
            "/merlin/servers0",
            "/merlin2/services/web",
            "/other",
        ] {
            assert_eq!(layout.place(other.as_bytes()), None, "{other}");
        }
        for bad in [
            &b"/merlin/services/"[..],
            b"/merlin/services/a/b",
            b"/merlin/services/\xff",
            b"/merlin/servers/web",
            b"/merlin/servers/web/",
            b"/merlin/servers//10.0.0.1:80",
            b"/merlin/servers/web/a/b",
        ] {
            let place = layout.place(bad);
            assert!(matches!(place, Some(Place::Misplaced { .. })), "{place:?}");
        }
    }

    #[test]
    fn the_servers_of_one_service_are_not_below_those_of_another() {
        let layout = Layout::default();
        let other = layout.named_server(&id("web2"), "10.0.0.1:80");
        assert!(!other.starts_with(&layout.servers_of(&id("web"))));
    }
}
