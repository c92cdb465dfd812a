//! Many writers, and much to hold.

use std::time::Instant;

use etcd_client::{Txn, TxnOp};
use futures::future::join_all;
use merlin_model::Rejection;

use super::*;
use crate::support::{Etcd, connected};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_nodes_that_write_the_same_objects_at_once_one_wins_each_time() {
    let etcd = Etcd::start().await;
    let stores: Vec<_> = join_all((0..10).map(|_| etcd.store())).await;
    for n in 0..10 {
        let outcomes = join_all(
            stores
                .iter()
                .map(|store| store.propose(create(n), DEADLINE)),
        )
        .await;
        let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(won, 1, "{outcomes:?}");
        assert!(
            outcomes
                .into_iter()
                .filter_map(Result::err)
                .all(|error| matches!(error, ProposeError::Rejected(Rejection::ServiceExists(_))))
        );
    }
    accepted(&stores[0], create_server(0, "10.1.0.1:80")).await;
    let increments = stores.iter().map(|store| async move {
        for _ in 0..5 {
            loop {
                let catalog = store
                    .read(Consistency::Linearizable, DEADLINE)
                    .await
                    .unwrap();
                let server = &catalog.service(&id("s0")).unwrap().servers[&at("10.1.0.1:80")];
                let weight = u32::from(server.config.weight.get());
                let next = Command {
                    expected_revision: Some(server.changed),
                    ..set_weight(0, "10.1.0.1:80", weight + 1)
                };
                match store.propose(next, DEADLINE).await {
                    Ok(_) => break,
                    Err(ProposeError::Rejected(Rejection::Conflict { .. })) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
    });
    join_all(increments).await;
    converged(&stores).await;
    let catalog = stores[0].catalog().borrow().clone();
    let server = &catalog.service(&id("s0")).unwrap().servers[&at("10.1.0.1:80")];
    assert_eq!(server.config.weight.get(), 1 + 10 * 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_services_are_listed_in_pages_and_one_change_costs_no_list() {
    let etcd = Etcd::start().await;
    let mut old_node = etcd.client().await;
    let numbers: Vec<u16> = (0..10_000).collect();
    for some in numbers.chunks(100) {
        let puts: Vec<_> = some
            .iter()
            .map(|n| {
                let (key, value) = record(*n);
                TxnOp::put(key, value, None)
            })
            .collect();
        old_node.txn(Txn::new().and_then(puts)).await.unwrap();
    }
    let began = Instant::now();
    let store = EtcdStore::open(etcd.config());
    connected(&store).await;
    assert_eq!(store.catalog().borrow().services().len(), 10_000);
    eprintln!("listed 10,000 services in {:?}", began.elapsed());
    let began = Instant::now();
    for weight in 0..20 {
        let command = match weight {
            0 => create_server(9_999, "10.1.0.1:80"),
            _ => set_weight(9_999, "10.1.0.1:80", weight),
        };
        accepted(&store, command).await;
    }
    eprintln!("a change takes {:?}", began.elapsed() / 20);
    let refused = store.propose(create(5), DEADLINE).await.unwrap_err();
    assert!(matches!(
        refused,
        ProposeError::Rejected(Rejection::ServiceExists(_))
    ));
    accepted(&store, delete(5)).await;
    accepted(&store, create(5)).await;
}
