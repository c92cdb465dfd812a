//! `meradm watch`: every change once, in order, across restarts of the node that is asked.

use merlin_proto::json::Json;
use merlin_proto::status::{Meaning, meaning};
use merlin_proto::v1::{Event, WatchRequest, WatchResponse};
use serde::Serialize;
use tonic::{Status, Streaming};

use crate::cli::{Global, Watch};
use crate::client::Client;
use crate::failure::{Failure, in_words, say};
use crate::{output, table};

pub(super) async fn run(global: &Global, args: &Watch) -> Result<(), Failure> {
    let client = Client::connect(global).await?;
    let mut request = WatchRequest {
        from_revision: args.from,
        incarnation: String::new(),
    };
    loop {
        let mut stream = client.watch(&request).await?;
        let ended = follow(global, &mut stream, &mut request).await?;
        // What has been printed is in the request: the next stream goes on from there.
        if global.debug {
            say(&format!("meradm: watching again: {ended}"));
        }
    }
}

/// Prints changes until the stream ends in a way that watching again can mend, and says why.
async fn follow(
    global: &Global,
    stream: &mut Streaming<WatchResponse>,
    request: &mut WatchRequest,
) -> Result<String, Failure> {
    loop {
        let response = match stream.message().await {
            Ok(Some(response)) => response,
            Ok(None) => return Ok("the node ended the stream".to_owned()),
            Err(status) => return mendable(status),
        };
        for event in &response.events {
            print(global, response.revision, event)?;
        }
        request.from_revision = Some(response.revision);
        request.incarnation = response.incarnation;
    }
}

fn mendable(status: Status) -> Result<String, Failure> {
    match meaning(&status) {
        Meaning::Unavailable | Meaning::Unknown => Ok(in_words(&status)),
        Meaning::Rejected | Meaning::Failed => Err(status.into()),
    }
}

fn print(global: &Global, revision: u64, event: &Event) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Line {
        revision: u64,
        #[serde(flatten)]
        event: Json,
    }
    let Some(change) = &event.change else {
        return Ok(());
    };
    let line = Line {
        revision,
        event: Json::terse(event),
    };
    output::print_one(global.output, || table::event(revision, change), &line)?;
    Ok(())
}
