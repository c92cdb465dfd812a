//! `meradm store ...`.

use merlin_proto::json::Json;

use crate::cli::{Global, Store};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

pub(super) async fn run(global: &Global, command: &Store) -> Result<(), Failure> {
    let Store::AcceptRemoval { revision } = command;
    let client = Client::connect(global).await?;
    let response = client.accept_removal(revision.unwrap_or_default()).await?;
    let accepted = response.accepted.unwrap_or_default();
    output::print(
        global.output,
        || {
            format!(
                "removed {} of {} services\n",
                accepted.services, accepted.of
            )
        },
        &Json::full(&accepted),
    )?;
    Ok(())
}
