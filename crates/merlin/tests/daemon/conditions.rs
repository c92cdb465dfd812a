//! What travels beside requests and answers: expected revisions, request ids, consistency.

use tonic::Code;

use crate::support::Setup;
use crate::support::requests::{
    beside, ids, numbered_server, refused, revision, said, service, weight,
};

const EXPECT: &str = "merlin-expected-revision";
const REQUEST_ID: &str = "merlin-request-id";
const CONSISTENCY: &str = "merlin-consistency";

#[tokio::test]
async fn answers_tell_the_revision_and_whether_anything_changed() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    let created = merlin.create_service(service("web", 80)).await.unwrap();
    assert_eq!(said(&created, "merlin-changed"), "true");
    let deleted = merlin.delete_service("nobody".to_owned()).await.unwrap();
    assert_eq!(said(&deleted, "merlin-changed"), "false");
    let list = merlin.list(()).await.unwrap().into_inner();
    let stored = list.items[0].service.as_ref().unwrap();
    assert_eq!(stored.created_revision, revision(&created));
    assert_eq!(stored.changed_revision, revision(&created));
    assert_eq!(list.revision, revision(&deleted));
}

#[tokio::test]
async fn a_write_that_expects_another_revision_is_aborted_and_changes_nothing() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    // 0: must not exist.
    let created = beside(service("web", 80), &[(EXPECT, "0")]);
    let created = revision(&merlin.create_service(created).await.unwrap());
    let mut edited = service("web", 80);
    edited.config.as_mut().unwrap().scheduler = "rr".to_owned();
    let stale = beside(edited.clone(), &[(EXPECT, &(created + 1).to_string())]);
    refused(
        merlin.update_service(stale).await,
        Code::Aborted,
        "revision 1",
    );
    let list = merlin.list(()).await.unwrap().into_inner();
    let config = list.items[0].service.as_ref().unwrap().config.as_ref();
    assert_eq!(config.unwrap().scheduler, "wrr");
    let fresh = beside(edited, &[(EXPECT, &created.to_string())]);
    merlin.update_service(fresh).await.unwrap();
    let gone = beside("web".to_owned(), &[(EXPECT, &created.to_string())]);
    refused(
        merlin.delete_service(gone).await,
        Code::Aborted,
        "revision 2",
    );
}

#[tokio::test]
async fn a_retry_with_the_same_request_id_gets_the_first_answer() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    let create = || beside(service("web", 80), &[(REQUEST_ID, "create-web")]);
    let first = merlin.create_service(create()).await.unwrap();
    // Something else happens in between.
    merlin.create_service(service("mail", 25)).await.unwrap();
    let again = merlin.create_service(create()).await.unwrap();
    assert_eq!(revision(&again), revision(&first));
    assert_eq!(said(&again, "merlin-changed"), "true");
    // A refusal is an answer too, whatever has become of the reason.
    let orphan = || beside(numbered_server("late", 1), &[(REQUEST_ID, "orphan")]);
    refused(merlin.create_server(orphan()).await, Code::NotFound, "late");
    merlin.create_service(service("late", 1)).await.unwrap();
    refused(merlin.create_server(orphan()).await, Code::NotFound, "late");
}

#[tokio::test]
async fn a_stale_read_is_answered_from_the_nodes_copy_and_says_its_revision() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    let created = merlin.create_service(service("web", 80)).await.unwrap();
    for consistency in ["stale", "linearizable"] {
        let request = beside((), &[(CONSISTENCY, consistency)]);
        let list = merlin.list(request).await.unwrap().into_inner();
        // The only node has applied what it acknowledged.
        assert_eq!(list.revision, revision(&created));
        assert_eq!(ids(&list), [("web".to_owned(), 0)]);
    }
}

#[tokio::test]
async fn conditions_that_make_no_sense_are_refused_by_name() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    for (name, value) in [(EXPECT, "soon"), (EXPECT, "-1"), (REQUEST_ID, "two words")] {
        let request = beside(service("web", 80), &[(name, value)]);
        let answer = merlin.create_service(request).await;
        refused(answer, Code::InvalidArgument, "re");
    }
    let list = merlin.list(beside((), &[(CONSISTENCY, "perhaps")])).await;
    refused(list, Code::InvalidArgument, CONSISTENCY);
    assert!(merlin.list(()).await.unwrap().into_inner().items.is_empty());
}

/// Read, then write, is how the earlier system lost updates.
#[tokio::test]
async fn of_clients_that_race_for_a_revision_one_wins_each_time() {
    const CLIENTS: u32 = 8;
    const RAISES: u32 = 10;
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    let created = merlin
        .create_server(weight_full("web", 1, 0))
        .await
        .unwrap();
    let _ = revision(&created);
    let channel = daemon.channel().await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let mut merlin = merlin_proto::types::merlin_client::MerlinClient::new(channel.clone());
        clients.spawn(async move {
            let mut raises = 0;
            while raises < RAISES {
                let list = merlin.list(()).await.unwrap().into_inner();
                let server = &list.items[0].servers[0];
                let now = server.config.as_ref().unwrap().weight.unwrap();
                let expected = server.changed_revision.to_string();
                let raise = beside(weight("web", 1, now + 1), &[(EXPECT, &expected)]);
                match merlin.update_server(raise).await {
                    Ok(_) => raises += 1,
                    Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
                }
            }
        });
    }
    clients.join_all().await;
    let list = merlin.list(()).await.unwrap().into_inner();
    let config = list.items[0].servers[0].config.as_ref().unwrap();
    assert_eq!(config.weight, Some(CLIENTS * RAISES));
}

fn weight_full(service: &str, number: u16, weight: u32) -> merlin_proto::types::RealServer {
    let mut server = numbered_server(service, number);
    server.config.as_mut().unwrap().weight = Some(weight);
    server
}
