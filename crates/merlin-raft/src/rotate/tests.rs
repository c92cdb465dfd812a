//! Whole nodes in one process, as in `join`'s tests: real stores and TLS over the loopback interface.

use super::*;
use crate::identity::{NodeKey, Role, SigningRequest};
use crate::join::tests::{Node, PATIENCE};
use crate::state::tests::create;
use crate::{JoinError, NewClient};

async fn three() -> [Node; 3] {
    let one = Node::founder().await;
    let mut others = Vec::new();
    for number in [2, 3] {
        let mut node = Node::new().await;
        node.join(&one.token(Role::Voter).await).await.unwrap();
        node.start().await.unwrap();
        one.sees(number, true).await;
        others.push(node);
    }
    let three = others.pop().unwrap();
    [one, others.pop().unwrap(), three]
}

fn shown(node: &Node) -> CaFingerprint {
    node.store().tls().unwrap().identity().ca_fingerprint()
}

async fn rotate(node: &Node, finish: bool, patience: Duration) -> Result<Rotated, RotateError> {
    let by = Actor::Unknown;
    node.store().rotate_authority(finish, by, patience).await
}

/// Has a write accepted, and every node apply it.
async fn agree(nodes: &[&Node], service: u64) {
    let command = create(service);
    let deadline = Instant::now() + PATIENCE;
    let reply = loop {
        match nodes[0].store().propose(command.clone(), PATIENCE).await {
            Ok(reply) => break reply,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(PAUSE).await;
    };
    for node in nodes {
        node.applied(reply.revision.0).await;
    }
}

#[tokio::test]
async fn every_member_goes_over_to_the_new_authority_and_nobody_is_lost() {
    let [mut one, mut two, three] = three().await;
    let former = shown(&one);
    let before = one.token(Role::Voter).await;
    let rotated = rotate(&two, false, PATIENCE).await.unwrap();
    assert_eq!(rotated.former, Some(former));
    assert_ne!(rotated.authority, former);
    for node in [&one, &two, &three] {
        assert_eq!(shown(node), rotated.authority);
        assert!(node.store().rotation_under_way().is_some());
    }
    agree(&[&one, &two, &three], 1).await;
    // Again it is what it was.
    assert_eq!(rotate(&one, false, PATIENCE).await.unwrap(), rotated);

    // Who starts again finds on its disk what it needs.
    two.stop().await;
    two.start().await.unwrap();
    assert_eq!(shown(&two), rotated.authority);
    agree(&[&two, &one, &three], 2).await;

    // Who comes in the middle is one of them.
    let mut four = Node::new().await;
    four.join(&two.token(Role::Voter).await).await.unwrap();
    four.start().await.unwrap();
    one.sees(4, true).await;
    assert_eq!(shown(&four), rotated.authority);

    let finished = rotate(&three, true, PATIENCE).await.unwrap();
    assert_eq!(
        (finished.authority, finished.former),
        (rotated.authority, None)
    );
    for node in [&one, &two, &three, &four] {
        assert_eq!(node.store().rotation_under_way(), None);
    }
    one.stop().await;
    one.start().await.unwrap();
    agree(&[&one, &two, &three, &four], 3).await;
    let error = rotate(&one, true, PATIENCE).await.unwrap_err();
    assert!(matches!(error, RotateError::NothingToFinish), "{error}");

    // What somebody took down of the former authority lets nobody in any more.
    let late = Node::new().await;
    let refused = late.join(&before).await.unwrap_err();
    assert!(matches!(refused, JoinError::Enroll(_)), "{refused}");

    // And the next one works the same.
    let again = rotate(&four, false, PATIENCE).await.unwrap();
    assert_eq!(again.former, Some(rotated.authority));
    rotate(&four, true, PATIENCE).await.unwrap();
    agree(&[&four, &one, &two, &three], 4).await;
    for node in [one, two, three, four] {
        node.store().shutdown().await;
    }
}

#[tokio::test]
async fn who_is_away_holds_it_up_and_is_waited_for() {
    let [one, two, mut three] = three().await;
    let former = shown(&one);
    three.stop().await;
    let waiting = rotate(&one, false, Duration::from_secs(3)).await;
    let waiting = waiting.unwrap_err();
    assert!(
        matches!(&waiting, RotateError::Waiting(nodes) if nodes.len() == 1),
        "{waiting}"
    );
    assert!(waiting.to_string().contains("node 3"), "{waiting}");
    let not_yet = rotate(&one, true, PATIENCE).await.unwrap_err();
    assert!(matches!(not_yet, RotateError::NotYet), "{not_yet}");
    // Nothing has changed for anybody.
    assert_eq!((shown(&one), shown(&two)), (former, former));
    agree(&[&one, &two], 1).await;

    three.start().await.unwrap();
    let rotated = rotate(&two, false, PATIENCE).await.unwrap();
    assert_eq!(shown(&three), rotated.authority);

    // And so it is at the end.
    three.stop().await;
    let waiting = rotate(&one, true, Duration::from_secs(3)).await;
    assert!(matches!(waiting, Err(RotateError::Waiting(_))));
    agree(&[&one, &two], 2).await;
    three.start().await.unwrap();
    rotate(&one, true, PATIENCE).await.unwrap();
    agree(&[&three, &one, &two], 3).await;
    for node in [one, two, three] {
        node.store().shutdown().await;
    }
}

#[tokio::test]
async fn a_client_made_in_between_knows_both() {
    let one = Node::founder().await;
    let client = async |name: &str| {
        let key = NodeKey::generate().unwrap();
        let new = NewClient {
            name: name.into(),
            role: merlin_model::Role::Admin,
            lifetime: Duration::from_secs(3600),
            request: SigningRequest::from_der(&key.signing_request().unwrap()).unwrap(),
        };
        let made = one.store().create_client(new, Actor::Unknown, PATIENCE);
        made.await.unwrap()
    };
    let first = client("ana").await;
    assert!(first.also_trusted.is_empty());
    rotate(&one, false, PATIENCE).await.unwrap();
    let second = client("ben").await;
    assert_eq!(second.also_trusted, [first.ca_certificate]);
    rotate(&one, true, PATIENCE).await.unwrap();
    let third = client("cem").await;
    assert_eq!(third.ca_certificate, second.ca_certificate);
    assert!(third.also_trusted.is_empty());
    one.store().shutdown().await;
}
