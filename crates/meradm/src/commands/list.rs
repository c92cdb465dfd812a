//! `meradm list`.

use merlin_model::store::Consistency;
use merlin_proto::json::Json;
use merlin_proto::types::ListResponse;
use merlin_proto::v1::LiveResponse;
use serde::Serialize;

use crate::cli::{Form, Global, List};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;
use crate::table::{self, Live};

pub(super) async fn run(global: &Global, args: &List) -> Result<(), Failure> {
    let client = Client::connect(global).await?;
    let consistency = match args.stale {
        true => Consistency::Stale,
        false => Consistency::Linearizable,
    };
    let listing = client.list(consistency).await?;
    let live = match args.live {
        true => Some(client.live().await?),
        false => None,
    };
    let value = Listing::new(&listing, live.as_ref());
    output::print(
        global.output,
        || {
            let live = live.as_ref().map(Live::new);
            let mut text = table::catalog(&listing.items, live.as_ref());
            if args.stale && global.output == Form::Table {
                text += &format!("as of revision {}\n", listing.revision);
            }
            text
        },
        &value,
    )?;
    Ok(())
}

/// The catalog for programs: every list is there, also when it is empty.
#[derive(Serialize)]
struct Listing {
    revision: u64,
    items: Vec<Item>,
    /// What every node's kernel holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<Vec<Json>>,
}

#[derive(Serialize)]
struct Item {
    service: Json,
    servers: Vec<Json>,
}

impl Listing {
    fn new(listing: &ListResponse, live: Option<&LiveResponse>) -> Self {
        let items = listing.items.iter().map(|item| Item {
            service: Json::terse(&item.service.clone().unwrap_or_default()),
            servers: item.servers.iter().map(Json::terse).collect(),
        });
        Self {
            revision: listing.revision,
            items: items.collect(),
            nodes: live.map(|live| live.nodes.iter().map(Json::full).collect()),
        }
    }
}
