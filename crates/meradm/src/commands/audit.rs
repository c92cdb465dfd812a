//! `meradm audit`.

use merlin_proto::json::Json;
use merlin_proto::v1::AuditRequest;

use crate::cli::{Audit, Global};
use crate::client::Client;
use crate::failure::Failure;
use crate::{output, table};

pub(super) async fn run(global: &Global, args: &Audit) -> Result<(), Failure> {
    let client = Client::connect(global).await?;
    let request = AuditRequest {
        limit: args.number,
        since: args.since.map(Into::into),
    };
    let answer = client.audit(request).await?;
    output::print(
        global.output,
        || table::audit(&answer),
        &Json::full(&answer),
    )?;
    Ok(())
}
