//! The catalog as a file, which export writes and import reads.
//!
//! ```yaml
//! format: merlin-catalog/1        # may be left out
//! revision: 7                     # of the catalog that was exported; import does not need it
//! items:
//! - service:                      # types.VirtualService in the JSON of protocol buffers
//!     id: web
//!     key: {ip: 10.0.0.1, port: 80, protocol: TCP}
//!     config: {scheduler: wrr, flags: [flag-1]}
//!   servers:                      # types.RealServer; serviceID may be left out
//!   - key: {ip: 10.1.0.1, port: 8080}
//!     config: {weight: 1, forward: MASQ}
//!     healthCheck: {endpoint: "http://:8080/health", period: 5s, timeout: 1s, upThreshold: 2, downThreshold: 1}
//! ```
//!
//! Services are sorted by id and servers by address, and nothing depends on when the export was
//! made but `revision`. JSON has the same shape, and so has what `list -o json` prints. A field that
//! does not exist is an error, and so is everything that the API would refuse.

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;

use merlin_model::catalog::Catalog;
use merlin_model::command::{Command, Mutation, Timestamp};
use merlin_model::difference::Object;
use merlin_proto::json::{FromJson, Json};
use merlin_proto::types::{ListResponse, RealServer, VirtualService};
use merlin_proto::{server, service};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

const FORMAT: &str = "merlin-catalog/1";

// === writing ===

/// A listing in the file's form.
#[derive(Serialize)]
pub(crate) struct Export {
    format: &'static str,
    revision: u64,
    items: Vec<ExportItem>,
}

#[derive(Serialize)]
struct ExportItem {
    service: Json,
    servers: Vec<Json>,
}

impl From<ListResponse> for Export {
    fn from(listing: ListResponse) -> Self {
        let mut items: Vec<_> = listing
            .items
            .into_iter()
            .map(|item| (item.service.unwrap_or_default(), item.servers))
            .collect();
        // Nodes of earlier versions list in no order.
        items.sort_by(|(a, _), (b, _)| a.id.cmp(&b.id));
        let items = items.into_iter().map(|(service, mut servers)| {
            servers.sort_by_key(order);
            let service = VirtualService {
                created_revision: 0,
                changed_revision: 0,
                ..service
            };
            ExportItem {
                service: Json::terse(&service),
                servers: servers
                    .into_iter()
                    .map(|it| Json::terse(&plain(it)))
                    .collect(),
            }
        });
        Self {
            format: FORMAT,
            revision: listing.revision,
            items: items.collect(),
        }
    }
}

fn order(server: &RealServer) -> (Option<IpAddr>, String, u32) {
    let key = server.key.clone().unwrap_or_default();
    (key.ip.parse().ok(), key.ip, key.port)
}

/// A server without what goes without saying.
fn plain(server: RealServer) -> RealServer {
    let is_set = |check: &_| *check != Default::default();
    RealServer {
        service_id: String::new(),
        created_revision: 0,
        changed_revision: 0,
        health_check: server.health_check.filter(is_set),
        ..server
    }
}

// === reading ===

/// A file is not one that can be imported. Says which object and field, and where they are.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unreadable(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    format: Option<String>,
    #[serde(default, rename = "revision")]
    _revision: Option<u64>,
    items: Vec<Of<Item>>,
    /// `list --live` prints them; they are not declared.
    #[serde(default, rename = "nodes")]
    _nodes: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawItem {
    service: Of<Service>,
    #[serde(default)]
    servers: Vec<Of<Server>>,
}

/// A service and its servers, each as the request to create it.
struct Item(Vec<Mutation>);

struct Service(Mutation);

struct Server(RealServer);

/// Reads a whole catalog. Its revisions mean nothing.
pub(crate) fn read(text: &str) -> Result<Catalog, Unreadable> {
    // JSON is YAML, but its own reader knows better what is wrong with it.
    let file: Result<File, _> = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text).map_err(|error| Unreadable(error.to_string())),
        false => serde_norway::from_str(text).map_err(|error| Unreadable(error.to_string())),
    };
    let file = file?;
    if let Some(format) = file.format.filter(|format| format != FORMAT) {
        return Err(Unreadable(format!(
            "format: {format:?} is not known: this version reads {FORMAT:?}"
        )));
    }
    let mut catalog = Catalog::default();
    for (index, Of(Item(mutations))) in file.items.into_iter().enumerate() {
        for mutation in mutations {
            let object = object(&mutation);
            let command = Command::new(Timestamp::default(), mutation);
            catalog.apply(&command).map_err(|rejection| {
                Unreadable(format!("items[{index}]: {object}: {rejection}"))
            })?;
        }
    }
    Ok(catalog)
}

fn object(mutation: &Mutation) -> Object {
    match mutation {
        Mutation::CreateService { id, .. }
        | Mutation::UpdateService { id, .. }
        | Mutation::DeleteService { id } => Object::service(id),
        Mutation::CreateServer { service, key, .. }
        | Mutation::UpdateServer { service, key, .. }
        | Mutation::DeleteServer { service, key } => Object::server(service, key),
    }
}

/// Something that is made of a mapping. What is wrong with it is found while the reader is still at
/// the mapping, so that the error says on which line.
trait Entry: Sized {
    type Raw: for<'de> Deserialize<'de>;
    const EXPECTING: &'static str;

    fn read(raw: Self::Raw) -> Result<Self, String>;
}

struct Of<T>(T);

impl<'de, T: Entry> Deserialize<'de> for Of<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntryVisitor(PhantomData))
    }
}

struct EntryVisitor<T>(PhantomData<T>);

impl<'de, T: Entry> Visitor<'de> for EntryVisitor<T> {
    type Value = Of<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTING)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Of<T>, A::Error> {
        let raw = T::Raw::deserialize(MapAccessDeserializer::new(map))?;
        T::read(raw).map(Of).map_err(A::Error::custom)
    }
}

impl Entry for Service {
    type Raw = FromJson<VirtualService>;
    const EXPECTING: &'static str = "a service: a mapping with id, key and config";

    fn read(FromJson(message): Self::Raw) -> Result<Self, String> {
        let mutation = service::create(&message);
        mutation
            .map(Self)
            .map_err(|invalid| format!("service {}: {invalid}", message.id))
    }
}

impl Entry for Server {
    type Raw = FromJson<RealServer>;
    const EXPECTING: &'static str = "a real server: a mapping with key, config and healthCheck";

    fn read(FromJson(message): Self::Raw) -> Result<Self, String> {
        // Which service it belongs to is known further out.
        let named = RealServer {
            service_id: "any".to_owned(),
            ..message.clone()
        };
        match server::create(&named) {
            Ok(_) => Ok(Self(message)),
            Err(invalid) => {
                let key = message.key.unwrap_or_default();
                Err(format!("server {} port {}: {invalid}", key.ip, key.port))
            }
        }
    }
}

impl Entry for Item {
    type Raw = RawItem;
    const EXPECTING: &'static str = "an item: a mapping with service and servers";

    fn read(raw: RawItem) -> Result<Self, String> {
        let Of(Service(service)) = raw.service;
        let id = object(&service).service;
        let mut mutations = vec![service];
        for Of(Server(mut message)) in raw.servers {
            let said = std::mem::replace(&mut message.service_id, id.to_string());
            let mutation = server::create(&message);
            let mutation = mutation.map_err(|invalid| format!("service {id}: {invalid}"))?;
            if !said.is_empty() && said != id.as_str() {
                let server = object(&mutation);
                return Err(format!(
                    "{server}: serviceID: {said} is not the service above it"
                ));
            }
            mutations.push(mutation);
        }
        Ok(Self(mutations))
    }
}
