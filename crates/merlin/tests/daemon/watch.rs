//! Watching the catalog: no gap, no repeat, and a clear word where that cannot be promised.

use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::v1::event::Change;
use merlin_proto::v1::{WatchRequest, WatchResponse};
use tonic::{Code, Streaming};

use crate::support::requests::{numbered_server, refused, service, weight};
use crate::support::{AMPLE, Daemon, Setup};

/// A watch from a revision of the catalog's, or from now on, that has told where it stands.
async fn watch(daemon: &Daemon, from: Option<u64>) -> (WatchResponse, Streaming<WatchResponse>) {
    let request = WatchRequest {
        from_revision: from,
        ..Default::default()
    };
    let mut node = daemon.node().await;
    // A stream has no deadline of its own.
    let mut stream = node.watch(request).await.unwrap().into_inner();
    (next(&mut stream).await, stream)
}

async fn next(stream: &mut Streaming<WatchResponse>) -> WatchResponse {
    let message = tokio::time::timeout(AMPLE, stream.message()).await;
    message
        .expect("the stream is silent")
        .unwrap()
        .expect("the stream has ended")
}

/// Every change until a revision is reached, each with its revision.
async fn changes(stream: &mut Streaming<WatchResponse>, until: u64) -> Vec<(u64, Change)> {
    let mut changes = Vec::new();
    let mut reached = 0;
    while reached < until {
        let message = next(stream).await;
        assert!(
            message.revision >= reached,
            "back from {reached} to {message:?}"
        );
        reached = message.revision;
        let events = message.events.into_iter();
        changes.extend(events.map(|event| (reached, event.change.unwrap())));
    }
    changes
}

#[tokio::test]
async fn a_watch_tells_every_change_once_and_in_order() {
    const WRITERS: u16 = 8;
    const WRITES: u32 = 50;
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    for number in 1..=WRITERS {
        merlin
            .create_server(numbered_server("web", number))
            .await
            .unwrap();
    }
    let before = merlin.list(()).await.unwrap().into_inner().revision;
    let (greeting, mut live) = watch(&daemon, None).await;
    assert_eq!((greeting.revision, greeting.events.len()), (before, 0));

    let channel = daemon.channel().await;
    let mut writers = tokio::task::JoinSet::new();
    for number in 1..=WRITERS {
        let mut merlin = MerlinClient::new(channel.clone());
        writers.spawn(async move {
            for value in 1..=WRITES {
                merlin
                    .update_server(weight("web", number, value + 1))
                    .await
                    .unwrap();
            }
        });
    }
    let total = u64::from(WRITERS) * u64::from(WRITES);
    let (seen, _) = tokio::join!(changes(&mut live, before + total), writers.join_all());

    let revisions: Vec<_> = seen.iter().map(|(revision, _)| *revision).collect();
    assert_eq!(revisions, (before + 1..=before + total).collect::<Vec<_>>());
    let mut weights = vec![1; usize::from(WRITERS) + 1];
    for (revision, change) in &seen {
        let Change::ServerPut(server) = change else {
            panic!("{revision}: {change:?}");
        };
        assert_eq!(server.changed_revision, *revision);
        let number = usize::try_from(server.key.as_ref().unwrap().port).unwrap();
        weights[number] += 1;
        assert_eq!(
            server.config.as_ref().unwrap().weight,
            Some(weights[number])
        );
    }

    // From anywhere in between, the rest is the same.
    let middle = before + total / 2;
    let (_, mut resumed) = watch(&daemon, Some(middle)).await;
    let rest = changes(&mut resumed, before + total).await;
    assert_eq!(rest[..], seen[seen.len() - rest.len()..]);
    assert_eq!(rest[0].0, middle + 1);
}

#[tokio::test]
async fn what_one_command_changes_comes_in_one_message() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    merlin
        .create_server(numbered_server("web", 1))
        .await
        .unwrap();
    merlin
        .create_server(numbered_server("web", 2))
        .await
        .unwrap();
    let (_, mut stream) = watch(&daemon, None).await;
    merlin.delete_service("web".to_owned()).await.unwrap();
    let events = next(&mut stream).await.events;
    let (mut services, mut servers) = (0, 0);
    for event in &events {
        match event.change.as_ref().unwrap() {
            Change::ServiceDeleted(service) if service.id == "web" => services += 1,
            Change::ServerDeleted(server) if server.service_id == "web" => servers += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((services, servers), (1, 2));
}

#[tokio::test]
async fn a_quiet_watch_says_how_far_it_has_come() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let (greeting, mut stream) = watch(&daemon, None).await;
    let notice = next(&mut stream).await;
    assert_eq!(notice, greeting);
}

#[tokio::test]
async fn a_watch_from_what_is_no_longer_known_is_out_of_range() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    for number in 1..=3 {
        merlin
            .create_service(service(&format!("web{number}"), number))
            .await
            .unwrap();
    }
    let (greeting, _) = watch(&daemon, None).await;
    drop(daemon);

    let daemon = setup.start().await;
    let revision = daemon
        .merlin()
        .await
        .list(())
        .await
        .unwrap()
        .into_inner()
        .revision;
    let incarnation = &greeting.incarnation;
    for (from_revision, incarnation, words) in [
        // Of another cluster, or of this one before it was restored from a copy.
        (revision, "elsewhere/1", "incarnation"),
        (revision, &format!("{incarnation}7") as &str, "incarnation"),
    ] {
        let request = WatchRequest {
            from_revision: Some(from_revision),
            incarnation: incarnation.to_owned(),
        };
        let answer = daemon.node().await.watch(request).await;
        refused(answer.map(drop), Code::OutOfRange, words);
    }
    // The same history goes on after a restart.
    let request = WatchRequest {
        from_revision: Some(revision),
        incarnation: incarnation.clone(),
    };
    let mut stream = daemon
        .node()
        .await
        .watch(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut stream).await.revision, revision);
}

/// More changes than are kept: the client is told, instead of being told less.
#[tokio::test]
async fn a_watch_from_before_the_kept_changes_is_out_of_range() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    let channel = daemon.channel().await;
    let writers = (1..=100_u16).map(|number| {
        let mut merlin = MerlinClient::new(channel.clone());
        async move {
            merlin
                .create_server(numbered_server("web", number))
                .await
                .unwrap();
            for value in 1..=101 {
                merlin
                    .update_server(weight("web", number, value + 1))
                    .await
                    .unwrap();
            }
        }
    });
    futures::future::join_all(writers).await;
    let request = WatchRequest {
        from_revision: Some(1),
        ..Default::default()
    };
    let answer = match daemon.node().await.watch(request).await {
        Ok(stream) => stream.into_inner().message().await,
        Err(status) => Err(status),
    };
    refused(answer, Code::OutOfRange, "revision");
}
