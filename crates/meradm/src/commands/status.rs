//! `meradm status`.

use merlin_proto::json::Json;

use crate::cli::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::{output, table};

pub(super) async fn run(global: &Global) -> Result<(), Failure> {
    let client = Client::connect(global).await?;
    let status = client.status().await?;
    output::print(
        global.output,
        || table::status(&status),
        &Json::full(&status),
    )?;
    Ok(())
}
