//! `meradm import`: a file, the difference, and the changes that make it go away.

use std::io::Read;
use std::path::Path;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use merlin_model::Catalog;
use merlin_model::difference::{Action, Difference, Extra, Step, difference};
use merlin_model::store::Consistency;
use serde_json::{Value, json};
use tonic::Status;

use crate::cli::{Condition, Form, Global, Import};
use crate::client::{Change, Client};
use crate::failure::{Failure, in_words, say};
use crate::{document, output};

/// Changes on their way at the same time: enough for the node to write many at once.
const IN_FLIGHT: usize = 64;

pub(super) async fn run(global: &Global, args: &Import) -> Result<(), Failure> {
    let name = args.file.display();
    let text = read(&args.file).map_err(|error| Failure::Local(format!("{name}: {error}")))?;
    let wanted = document::read(&text);
    let wanted = wanted.map_err(|error| Failure::Rejected(format!("{name}: {error}")))?;
    let client = Client::connect(global).await?;
    let listing = client.list(Consistency::Linearizable).await?;
    let present = Catalog::try_from(listing).map_err(|error| {
        let words =
            crate::failure::chain("the node lists what this version cannot read", Some(&error));
        Failure::Local(words)
    })?;
    let extra = match args.prune {
        true => Extra::Remove,
        false => Extra::Keep,
    };
    let difference = difference(&present, &wanted, extra);
    let difference = difference.map_err(|error| Failure::Rejected(format!("{name}: {error}")))?;
    if global.output == Form::Table {
        output::write(&steps(&difference))?;
    }
    if !args.dry_run {
        if present.services().len() == 0 && !difference.is_empty() {
            nothing_is_programmed_yet(&client).await?;
        }
        apply(&client, &difference).await?;
    }
    output::print(
        global.output,
        || summary(&difference, args.dry_run),
        &value(&difference, args.dry_run),
    )?;
    if !difference.kept.is_empty() {
        let count = difference.kept.len();
        say(&format!(
            "meradm: not in the file and kept: {count}; --prune removes them"
        ));
    }
    Ok(())
}

fn read(file: &Path) -> std::io::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(file)
}

/// Refuses to fill an empty catalog while a kernel holds more than that: with the first service the
/// node would take away everything that has not come yet.
async fn nothing_is_programmed_yet(client: &Client) -> Result<(), Failure> {
    let nodes = match client.again().status().await {
        Ok(status) => status.nodes,
        // Nodes of earlier versions have no status.
        Err(status) if status.code() == tonic::Code::Unimplemented => return Ok(()),
        Err(status) => return Err(status.into()),
    };
    for node in nodes {
        let foreign = node.drift.unwrap_or_default().foreign_services;
        if node.reconciling && foreign > 0 {
            return Err(Failure::Rejected(format!(
                "the kernel of {} holds {foreign} services that the empty catalog does not have, and \
                 would lose them before all are imported: start merlin there with \
                 --reconcile=false, import, and start it again without; nothing was changed",
                node.name
            )));
        }
    }
    Ok(())
}

/// Makes the changes, stage by stage. The first that fails is the last that is begun.
async fn apply(client: &Client, difference: &Difference) -> Result<(), Failure> {
    let mut made = 0;
    for stage in difference.stages() {
        let mut waiting = stage.iter();
        let mut under_way = FuturesUnordered::new();
        let mut failed = None;
        loop {
            while failed.is_none() && under_way.len() < IN_FLIGHT {
                let Some(step) = waiting.next() else { break };
                under_way.push(make(client.again(), step));
            }
            match under_way.next().await {
                None => break,
                Some(Ok(())) => made += 1,
                Some(Err(failure)) => failed = failed.or(Some(failure)),
            }
        }
        if let Some((step, status)) = failed {
            let (all, words) = (difference.steps.len(), in_words(&status));
            return Err(Failure::Status(Status::new(
                status.code(),
                format!(
                    "{}: {words} ({made} of {all} changes made; import again)",
                    step.object
                ),
            )));
        }
    }
    Ok(())
}

/// Makes one change, unless somebody else changed the object meanwhile.
async fn make(client: Client, step: &Step) -> Result<(), (&Step, Status)> {
    // Nodes of earlier versions know no revisions; nothing can be expected of them.
    let known = step.action() == Action::Add || step.expected.0 != 0;
    let condition = Condition {
        expect_revision: known.then_some(step.expected.0),
    };
    let change = Change::from(&step.mutation);
    let made = client.change(&change, condition).await;
    made.map(drop).map_err(|status| (step, status))
}

fn steps(difference: &Difference) -> String {
    let lines = difference.steps.iter().map(|step| format!("{step}\n"));
    lines.collect()
}

fn summary(difference: &Difference, dry_run: bool) -> String {
    if difference.is_empty() {
        return "nothing to do\n".to_owned();
    }
    let [added, edited, removed] =
        [Action::Add, Action::Edit, Action::Remove].map(|action| difference.count(action));
    let words = format!("{added} added, {edited} edited, {removed} removed");
    match dry_run {
        true => format!("{words} (dry run: nothing was done)\n"),
        false => format!("{words}\n"),
    }
}

fn value(difference: &Difference, dry_run: bool) -> Value {
    let steps = difference.steps.iter().map(|step| {
        let fields = step.fields.iter().map(
            |field| json!({"field": field.name, "before": field.before, "after": field.after}),
        );
        json!({
            "action": step.action().name(),
            "service": step.object.service.as_str(),
            "server": step.object.server.map(|key| key.to_string()),
            "fields": fields.collect::<Vec<_>>(),
        })
    });
    json!({
        "dryRun": dry_run,
        "added": difference.count(Action::Add),
        "edited": difference.count(Action::Edit),
        "removed": difference.count(Action::Remove),
        "kept": difference.kept.len(),
        "changes": steps.collect::<Vec<_>>(),
    })
}
