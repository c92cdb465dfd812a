//! `meradm export`.

use merlin_model::store::Consistency;

use crate::cli::{self, Form, Global};
use crate::client::Client;
use crate::document::Export;
use crate::failure::Failure;
use crate::output;

const HEADER: &str =
    "# The catalog of a merlin cluster. `meradm import` makes a cluster hold it.\n";

pub(super) async fn run(global: &Global, args: &cli::Export) -> Result<(), Failure> {
    let client = Client::connect(global).await?;
    let consistency = match args.stale {
        true => Consistency::Stale,
        false => Consistency::Linearizable,
    };
    let export = Export::from(client.list(consistency).await?);
    match global.output {
        Form::Json => output::print(Form::Json, String::new, &export)?,
        // A table is for people; who exports wants a file.
        Form::Table | Form::Yaml => output::write(&(HEADER.to_owned() + &output::yaml(&export)?))?,
    }
    Ok(())
}
