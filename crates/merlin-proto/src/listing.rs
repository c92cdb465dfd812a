//! The catalog as the API shows it: listings whole, and watches change by change.

use merlin_model::catalog::{Catalog, Change, VirtualService};
use merlin_model::events::EventGroup;

use crate::command::DecodeError;
use crate::types::list_response::Item;
use crate::{log, server, service, types, v1};

impl From<&Catalog> for types::ListResponse {
    /// Services in the order of their ids, real servers in the order of their addresses.
    fn from(catalog: &Catalog) -> Self {
        Self {
            items: catalog
                .services()
                .map(|service| (&**service).into())
                .collect(),
            revision: catalog.revision().0,
        }
    }
}

impl TryFrom<types::ListResponse> for Catalog {
    type Error = DecodeError;

    fn try_from(listing: types::ListResponse) -> Result<Self, DecodeError> {
        (&log::Catalog {
            revision: listing.revision,
            items: listing.items,
            requests: Vec::new(),
        })
            .try_into()
    }
}

impl From<&VirtualService> for Item {
    fn from(service: &VirtualService) -> Self {
        let servers = service.servers.values();
        Self {
            service: Some(service.into()),
            servers: servers
                .map(|server| server::record(&service.id, server))
                .collect(),
        }
    }
}

impl From<&Change> for v1::Event {
    fn from(change: &Change) -> Self {
        use v1::event::Change as Wire;

        let change = match change {
            Change::ServicePut(service) => Wire::ServicePut((&**service).into()),
            Change::ServiceDeleted { id, key } => {
                Wire::ServiceDeleted(service::identified(id, key))
            }
            Change::ServerPut { service, server } => {
                Wire::ServerPut(server::record(service, server))
            }
            Change::ServerDeleted { service, key } => {
                Wire::ServerDeleted(server::identified(service, key))
            }
        };
        Self {
            change: Some(change),
        }
    }
}

/// What a watch sends for everything that one command changed.
pub fn watch_response(group: &EventGroup, incarnation: &str) -> v1::WatchResponse {
    v1::WatchResponse {
        revision: group.revision.0,
        incarnation: incarnation.to_owned(),
        events: group.changes.iter().map(Into::into).collect(),
    }
}
