//! What the commands do.

mod audit;
mod contexts;
mod export;
mod generate;
mod import;
mod list;
mod server;
mod service;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod watch;

use crate::cli::{Cli, Command, Condition, Form, Global};
use crate::client::{Change, Client};
use crate::failure::{Failure, say};
use crate::output;

pub(crate) use contexts::Listed;

pub(crate) async fn run(cli: Cli) -> Result<(), Failure> {
    let global = cli.global;
    match cli.command {
        Command::List(args) => list::run(&global, &args).await,
        Command::Export(args) => export::run(&global, &args).await,
        Command::Import(args) => import::run(&global, &args).await,
        Command::Status => status::run(&global).await,
        Command::Watch(args) => watch::run(&global, &args).await,
        Command::Service(command) => {
            let (change, condition) = service::change(&command)?;
            make(&global, &change, condition).await
        }
        Command::Server(command) => {
            let (change, condition) = server::change(&command);
            make(&global, &change, condition).await
        }
        Command::Audit(args) => audit::run(&global, &args).await,
        Command::Login(args) => contexts::login(&args),
        Command::Logout { name } => contexts::logout(name),
        Command::Contexts { choose } => contexts::list(&global, choose.as_deref()),
        Command::Store(command) => store::run(&global, &command).await,
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { out_dir } => generate::man(out_dir.as_deref()),
    }
}

/// Makes a change. It is silent unless asked for a form that has something to say.
async fn make(global: &Global, change: &Change, condition: Condition) -> Result<(), Failure> {
    let client = Client::connect(global).await?;
    let Some(reply) = client.change(change, condition).await? else {
        return Ok(());
    };
    if !reply.changed {
        say("meradm: there was nothing to delete");
    }
    if global.output != Form::Table {
        let value = serde_json::json!({
            "revision": reply.revision.0,
            "changed": reply.changed,
        });
        output::print(global.output, String::new, &value)?;
    }
    Ok(())
}
