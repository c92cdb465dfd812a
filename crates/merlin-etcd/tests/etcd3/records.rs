//! Records that others write.

use super::*;
use crate::support::{Etcd, names};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_old_nodes_are_read_and_ours_are_theirs_byte_for_byte() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    let mut old_node = etcd.client().await;
    let (key, value) = record(1);
    old_node
        .put(key.as_str(), value.clone(), None)
        .await
        .unwrap();
    eventually("the record is known", || holds(&store, 1)).await;
    accepted(&store, create(2)).await;
    let (key, value) = record(2);
    let ours = old_node.get(key, None).await.unwrap();
    assert_eq!(ours.kvs()[0].value(), value);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_newer_node_wrote_survives_an_update() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    let mut newer = etcd.client().await;
    accepted(&store, create(1)).await;
    accepted(&store, create_server(1, "10.1.0.1:80")).await;
    let path = "/merlin/servers/s1/10.1.0.1:80";
    let mut value = newer.get(path, None).await.unwrap().kvs()[0]
        .value()
        .to_vec();
    // Field 1000, length-delimited: "new".
    let unknown = b"\xc2\x3e\x03new";
    value.extend(unknown);
    let put = newer.put(path, value, None).await.unwrap();
    let put = u64::try_from(put.header().unwrap().revision()).unwrap();
    eventually("the record is known", || {
        store.catalog().borrow().revision().0 >= put
    })
    .await;
    accepted(&store, set_weight(1, "10.1.0.1:80", 5)).await;
    let after = newer.get(path, None).await.unwrap().kvs()[0]
        .value()
        .to_vec();
    assert!(after.windows(unknown.len()).any(|part| part == unknown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_makes_no_sense_is_reported_and_can_be_deleted() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    let mut somebody = etcd.client().await;
    accepted(&store, create(1)).await;
    for key in [
        "/merlin/services/s2",
        "/merlin/servers/s1/nonsense",
        "/merlin/services/a/b",
    ] {
        somebody.put(key, "\u{1}garbage", None).await.unwrap();
    }
    accepted(&store, create(3)).await;
    eventually("all three are reported", || {
        store.status().problems.len() == 3
    })
    .await;
    assert_eq!(names(&store), ["s1", "s3"]);
    // A fresh node says the same.
    let fresh = etcd.store().await;
    assert_eq!(fresh.status().problems, store.status().problems);
    accepted(&store, delete(2)).await;
    accepted(&store, delete(1)).await;
    eventually("one is left", || store.status().problems.len() == 1).await;
    accepted(&store, create(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_beside_the_records_do_not_matter() {
    let etcd = Etcd::start().await;
    let mut somebody = etcd.client().await;
    for key in [
        "/merlin",
        "/merlin/servers0",
        "/merlin2/services/x",
        "/other",
        "/merlin/v1/x",
    ] {
        somebody.put(key, "1", None).await.unwrap();
    }
    let store = etcd.store().await;
    assert!(store.catalog().borrow().is_pristine());
    assert!(store.replica().borrow().is_empty());
    accepted(&store, create(1)).await;
    somebody.put("/merlin/v1/x", "2", None).await.unwrap();
    let read = store
        .read(Consistency::Linearizable, DEADLINE)
        .await
        .unwrap();
    assert_eq!(read.services().len(), 1);
}

/// A list holds what is there, and not when the rest went.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_after_a_deletion_is_at_its_revision() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    accepted(&store, create(1)).await;
    accepted(&store, create(2)).await;
    accepted(&store, create_server(2, "10.1.0.1:80")).await;
    let deletions = [
        delete(1),
        command(Mutation::DeleteServer {
            service: id("s2"),
            key: at("10.1.0.1:80"),
        }),
        delete(2),
    ];
    for deletion in deletions {
        let deleted = accepted(&store, deletion).await;
        let later = etcd.store().await;
        assert_eq!(later.catalog().borrow().revision(), deleted);
        assert_eq!(store.catalog().borrow().revision(), deleted);
    }
    // Nothing but records counts, and another change does.
    let mut somebody = etcd.client().await;
    somebody.put("/merlin/v1/x", "1", None).await.unwrap();
    let created = accepted(&store, create(3)).await;
    let later = etcd.store().await;
    assert_eq!(later.catalog().borrow().revision(), created);
}

/// What changes nothing has no revision of its own: it is told one that nothing told before is ahead of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_of_nothing_is_not_answered_from_the_past() {
    let etcd = Etcd::start().await;
    let [one, other] = [etcd.store().await, etcd.store().await];
    for n in 0..100 {
        let created = accepted(&one, create(n)).await;
        let reply = other.propose(delete(1_000), DEADLINE).await.unwrap();
        assert!(!reply.changed);
        assert_eq!(reply.revision, created);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_requests_end_with_a_lease_and_nobody_misses_them() {
    let etcd = Etcd::start().await;
    let store = etcd.store().await;
    let mut somebody = etcd.client().await;
    let first = accepted(&store, named("one/1", create(1))).await;
    accepted(&store, named("two", create(2))).await;
    let options = etcd_client::GetOptions::new().with_prefix();
    let kept = somebody.get("/merlin/v1/", Some(options)).await.unwrap();
    assert_eq!(kept.kvs().len(), 2);
    let lease = kept.kvs()[0].lease();
    assert!(
        lease != 0 && kept.kvs().iter().all(|kv| kv.lease() == lease),
        "one lease for all"
    );
    let left = somebody
        .lease_time_to_live(lease, None)
        .await
        .unwrap()
        .ttl();
    assert!(left > 600, "{left}");
    assert_eq!(accepted(&store, named("one/1", create(1))).await, first);
    // Somebody tidies up; the next request gets a lease of its own.
    somebody.lease_revoke(lease).await.unwrap();
    accepted(&store, named("three", create(3))).await;
}
