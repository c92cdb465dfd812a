//! Members that die, freeze, forget or cannot be reached.

use std::time::Duration;

use merlin_etcd::EtcdStore;
use merlin_model::store::{Consistency, ProposeError, ReadError};
use tokio::time::Instant;

use super::*;
use crate::support::link::Link;
use crate::support::{Etcd, Options, connected, eventually, names};

const SHORT: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_dies_is_missed_and_followed_again_when_it_is_back() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store().await;
    accepted(&store, create(1)).await;
    etcd.member().kill();
    eventually("its death is noticed", || !store.status().is_connected()).await;
    let refused = store
        .propose(create(2), Duration::from_secs(60))
        .await
        .unwrap_err();
    assert!(
        matches!(refused, ProposeError::Unavailable { .. }),
        "{refused:?}"
    );
    let unread = store
        .read(Consistency::Linearizable, DEADLINE)
        .await
        .unwrap_err();
    assert!(matches!(unread, ReadError::Unavailable { .. }));
    let stale = store.read(Consistency::Stale, DEADLINE).await.unwrap();
    assert!(
        stale.service(&id("s1")).is_some(),
        "the last good state stays"
    );
    eventually("the lag grows", || store.status().lag() > SHORT).await;

    etcd.member().start();
    let mut old_node = etcd.client().await;
    let (key, value) = record(3);
    old_node.put(key, value, None).await.unwrap();
    connected(&store).await;
    accepted(&store, create(2)).await;
    eventually("what happened meanwhile is known", || holds(&store, 3)).await;
    assert_eq!(store.status().lag(), Duration::ZERO);
    assert_eq!(names(&store), ["s1", "s2", "s3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_not_there_yet_is_waited_for() {
    let mut etcd = Etcd::start().await;
    etcd.member().kill();
    let store = EtcdStore::open(etcd.config());
    eventually("it says what is wrong", || {
        let status = store.status();
        status
            .unavailable
            .is_some_and(|reason| reason.contains(&etcd.urls()[0]))
    })
    .await;
    let refused = store.propose(create(1), DEADLINE).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Unavailable { .. }));
    assert!(store.catalog().borrow().is_pristine());
    etcd.member().start();
    connected(&store).await;
    accepted(&store, create(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_member_is_left_within_seconds() {
    let mut etcd = Etcd::cluster(3, &Options::default()).await;
    let store = etcd.store().await;
    accepted(&store, create(1)).await;
    let frozen = store.status().endpoint;
    let at = etcd.urls().iter().position(|url| *url == frozen).unwrap();
    etcd.members[at].freeze();
    let began = Instant::now();
    // Idle: only the pings tell.
    eventually("another member is used", || {
        let status = store.status();
        status.is_connected() && status.endpoint != frozen
    })
    .await;
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    insist(&store, named("after", create(2))).await;
    etcd.members[at].thaw();
    insist(&store, named("thawed", create(3))).await;
    assert_eq!(names(&store), ["s1", "s2", "s3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_to_a_frozen_member_goes_to_another_if_it_can_be_repeated() {
    let mut etcd = Etcd::cluster(3, &Options::default()).await;
    let store = etcd.store().await;
    accepted(&store, create(1)).await;
    let frozen = store.status().endpoint;
    let at = etcd.urls().iter().position(|url| *url == frozen).unwrap();
    etcd.members[at].freeze();
    accepted(&store, named("once", create(2))).await;
    etcd.members[at].thaw();
    let again = store.propose(named("once", create(2)), DEADLINE).await;
    assert!(again.unwrap().changed, "the first answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_nobody_tells_is_unknown_and_a_retry_happens_once() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store().await;
    accepted(&store, create(1)).await;
    accepted(&store, create_server(1, "10.1.0.1:80")).await;
    etcd.member().freeze();
    let once = || named("once", set_weight(1, "10.1.0.1:80", 7));
    let patience = Duration::from_millis(1_500);
    let outcome = store
        .propose(set_weight(1, "10.1.0.1:80", 6), patience)
        .await;
    let outcome = outcome.unwrap_err();
    assert!(
        matches!(outcome, ProposeError::Unknown { .. }),
        "{outcome:?}"
    );
    // By now the member may be given up, and then nothing is sent.
    store.propose(once(), patience).await.unwrap_err();
    etcd.member().thaw();
    let first = insist(&store, once()).await;
    accepted(&store, set_weight(1, "10.1.0.1:80", 9)).await;
    assert_eq!(insist(&store, once()).await, first);
    let catalog = store
        .read(Consistency::Linearizable, DEADLINE)
        .await
        .unwrap();
    let service = catalog.service(&id("s1")).unwrap();
    assert_eq!(service.servers[&at("10.1.0.1:80")].config.weight.get(), 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_compacted_while_the_node_is_cut_off_is_listed_anew() {
    let etcd = Etcd::start().await;
    let link = Link::to(&etcd.urls()[0]).await;
    let mut config = etcd.config();
    config.endpoints = vec![link.url.clone()];
    let store = EtcdStore::open(config);
    connected(&store).await;
    accepted(&store, create(1)).await;
    accepted(&store, create(2)).await;
    let before = store.catalog().borrow().revision();

    link.cut();
    eventually("the cut is noticed", || !store.status().is_connected()).await;
    let mut old_node = etcd.client().await;
    let (key, _) = record(1);
    old_node.delete(key, None).await.unwrap();
    let mut last = 0;
    for n in 3..6 {
        let (key, value) = record(n);
        let put = old_node.put(key, value, None).await.unwrap();
        last = put.header().unwrap().revision();
    }
    old_node.compact(last, None).await.unwrap();
    link.mend();

    connected(&store).await;
    eventually("the catalog is etcd's again", || {
        names(&store) == ["s2", "s3", "s4", "s5"]
    })
    .await;
    let gap = store
        .events()
        .borrow()
        .after(before)
        .map(|_| ())
        .unwrap_err();
    assert!(
        gap.oldest > before,
        "watchers are told that they missed something"
    );
    accepted(&store, create(6)).await;
    assert_eq!(names(&store).len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_was_short_loses_nothing_and_watchers_do_not_notice() {
    let etcd = Etcd::start().await;
    let link = Link::to(&etcd.urls()[0]).await;
    let mut config = etcd.config();
    config.endpoints = vec![link.url.clone()];
    let store = EtcdStore::open(config);
    connected(&store).await;
    let start = accepted(&store, create(1)).await;
    let mut old_node = etcd.client().await;
    for n in 2..8 {
        link.cut();
        eventually("the cut is noticed", || !store.status().is_connected()).await;
        let (key, value) = record(n);
        old_node.put(key, value, None).await.unwrap();
        link.mend();
        eventually("the change is known", || holds(&store, n)).await;
    }
    let ring = store.events().borrow().clone();
    assert_eq!(ring.after(start).unwrap().count(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_restored_from_a_copy_begins_another_history() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store().await;
    accepted(&store, create(1)).await;
    accepted(&store, create(2)).await;
    etcd.member().kill();
    let (data, copy) = (etcd.data_dir(0), etcd.dir.path().join("copy"));
    copy_dir(&data, &copy);
    etcd.member().start();
    connected(&store).await;
    for n in 3..9 {
        insist(&store, named(&format!("request-{n}"), create(n))).await;
    }
    let history = store.status().history;
    let revision = store.replica().borrow().revision();

    etcd.member().kill();
    std::fs::remove_dir_all(&data).unwrap();
    copy_dir(&copy, &data);
    etcd.member().start();
    eventually("the restored records are known", || {
        store.replica().borrow().len() == 2
    })
    .await;
    connected(&store).await;
    assert_ne!(store.status().history, history);
    assert!(store.replica().borrow().revision() < revision);
    // Decisions are made on the restored records.
    accepted(&store, delete(2)).await;
    accepted(&store, create(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_store_is_noticed_though_it_has_the_same_name() {
    let mut etcd = Etcd::start().await;
    let store = etcd.store().await;
    for n in 1..6 {
        accepted(&store, create(n)).await;
    }
    let history = store.status().history;
    etcd.member().kill();
    std::fs::remove_dir_all(etcd.data_dir(0)).unwrap();
    etcd.member().start();
    eventually("there are no records", || {
        store.replica().borrow().is_empty()
    })
    .await;
    connected(&store).await;
    assert_ne!(store.status().history, history);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_while_members_die_in_turn() {
    let mut etcd = Etcd::cluster(3, &Options::default()).await;
    let stores = [etcd.store().await, etcd.store().await];
    let mut n = 0;
    for round in 0..3 {
        for _ in 0..5 {
            n += 1;
            insist(
                &stores[usize::from(n % 2)],
                named(&format!("request-{n}"), create(n)),
            )
            .await;
        }
        etcd.members[round].kill();
        for _ in 0..5 {
            n += 1;
            insist(
                &stores[usize::from(n % 2)],
                named(&format!("request-{n}"), create(n)),
            )
            .await;
        }
        etcd.members[round].start();
    }
    for store in &stores {
        connected(store).await;
    }
    converged(&stores).await;
    assert!((1..=n).all(|n| holds(&stores[0], n)));
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
