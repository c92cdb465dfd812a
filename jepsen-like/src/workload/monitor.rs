//! Looks at one node again and again: what it says of itself, what its table holds, who leads.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::{sleep, timeout};

use super::Shared;
use crate::client::{Client, describe};
use crate::ops::{Led, Node, Sample};

const PERIOD: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) async fn run(shared: Arc<Shared>, node: Node) -> Result<()> {
    let machine = Arc::clone(shared.lab.machine(node));
    let mut client = Client::new(&machine);
    while !shared.stop.is_cancelled() {
        match timeout(PATIENCE, sample(&shared, &client, node)).await {
            Ok(Some(sample)) => shared.recorder.sample(sample),
            Ok(None) => {}
            Err(_) => client = Client::new(&machine),
        }
        if let Ok(description) = describe(&machine, PATIENCE).await
            && description.leader != 0
        {
            shared.recorder.led(Led {
                at: shared.recorder.clock.now(),
                node,
                term: description.term,
                leader: description.leader,
            });
        }
        tokio::select! {
            () = sleep(PERIOD) => {}
            () = shared.stop.cancelled() => {}
        }
    }
    Ok(())
}

/// Looks once; nothing when the node does not answer, or another process answers than began to.
pub async fn sample(shared: &Shared, client: &Client, node: Node) -> Option<Sample> {
    let machine = shared.lab.machine(node);
    let life = machine.life();
    let start = shared.recorder.clock.now();
    let status = client.status(PATIENCE).await.ok()?;
    let table = client.table(PATIENCE).await.ok()?;
    let end = shared.recorder.clock.now();
    let has_etcd = machine.member.is_some();
    let away = has_etcd && status.store.is_some_and(|store| !store.available);
    (machine.life() == life).then(|| Sample {
        start,
        end,
        node,
        life,
        catalog: status.catalog_revision,
        programmed: status.programmed_revision,
        unconfirmed: away && status.programmed_revision == 0,
        table: Arc::new(table),
    })
}
