//! The client against etcd itself.

mod etcd;
mod store;

use std::time::{Duration, Instant};

use etcd::Etcd;
use nix::sys::signal::Signal;

use super::client::{CallError, Client};
use super::protocol::{Ask, Event, Refusal};
use crate::config::{Config, User};
use crate::layout::Layout;

fn config(endpoints: Vec<String>) -> Config {
    Config {
        backend: None,
        endpoints,
        layout: Layout::new("/m").unwrap(),
        tls: Default::default(),
        user: None,
        keep: None,
        max_removal: Default::default(),
    }
}

fn client(endpoints: Vec<String>) -> Client {
    Client::new(&config(endpoints)).unwrap()
}

fn refused<T: std::fmt::Debug>(answer: Result<T, CallError>) -> Refusal {
    match answer {
        Err(CallError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn values_are_put_swapped_and_deleted_by_their_index() {
    let etcd = Etcd::start(&[]);
    let client = client(etcd.endpoints());
    assert_eq!(client.list("/m").await.unwrap().records, []);
    let key = "/m/services/a b%é?#&+";
    let made = client
        .change(&Ask::create(key, &[0, 0xff, 0xfb]))
        .await
        .unwrap();
    let again = client.change(&Ask::create(key, b"x")).await;
    assert_eq!(refused(again), Refusal::Exists);
    let swapped = client.change(&Ask::swap(key, b"new", made)).await.unwrap();
    assert!(swapped > made);
    let late = client.change(&Ask::swap(key, b"late", made)).await;
    assert_eq!(refused(late), Refusal::Changed);
    let listing = client.list("/m").await.unwrap();
    assert_eq!(listing.index, swapped);
    let [record] = &listing.records[..] else {
        panic!("{listing:?}")
    };
    assert_eq!(record.key, key);
    assert_eq!(record.value, b"new");
    assert_eq!((record.created, record.modified), (made, swapped));
    assert_eq!(
        refused(client.change(&Ask::delete(key, made)).await),
        Refusal::Changed
    );
    let full = client.change(&Ask::remove_directory("/m/services")).await;
    assert_eq!(refused(full), Refusal::NotEmpty);
    client.change(&Ask::delete(key, swapped)).await.unwrap();
    let gone = refused(client.change(&Ask::delete(key, swapped)).await);
    assert!(matches!(gone, Refusal::NotFound { .. }));
    client
        .change(&Ask::remove_directory("/m/services"))
        .await
        .unwrap();
    client
        .change(&Ask::make_directory("/m/services"))
        .await
        .unwrap();
    let there = client.change(&Ask::make_directory("/m/services")).await;
    assert_eq!(refused(there), Refusal::Exists);
}

#[tokio::test]
async fn a_watch_tells_of_every_change_from_its_index_on() {
    let etcd = Etcd::start(&[]);
    let client = client(etcd.endpoints());
    let first = client.change(&Ask::create("/m/a", b"1")).await.unwrap();
    client
        .change(&Ask::create("/elsewhere", b"1"))
        .await
        .unwrap();
    let second = client
        .change(&Ask::swap("/m/a", b"2", first))
        .await
        .unwrap();
    let third = client.change(&Ask::delete("/m/a", second)).await.unwrap();
    let mut from = first;
    let mut seen = Vec::new();
    while from <= third {
        let waiting = client.watch("/m", from).await.unwrap();
        if let Some(event) = waiting.event().await.unwrap() {
            from = event.index() + 1;
            seen.push(event);
        }
    }
    let indices: Vec<_> = seen.iter().map(Event::index).collect();
    assert_eq!(indices, [first, second, third]);
    assert!(matches!(&seen[2], Event::Deleted { key, .. } if key == "/m/a"));
    // Nothing more happens: a turn ends by itself.
    let waiting = client.watch("/m", from).await.unwrap();
    assert_eq!(waiting.event().await.unwrap(), None);
}

#[tokio::test]
async fn a_watch_that_comes_too_late_is_told() {
    let etcd = Etcd::start(&[]);
    let client = client(etcd.endpoints());
    let first = client.change(&Ask::create("/m/a", b"1")).await.unwrap();
    let mut at = first;
    // etcd keeps the last thousand.
    for _ in 0..1100 {
        at = client.change(&Ask::swap("/m/a", b"x", at)).await.unwrap();
    }
    let late = client.watch("/m", first).await;
    assert_eq!(refused(late), Refusal::Cleared);
}

#[tokio::test]
async fn a_dead_or_frozen_member_is_left_for_another() {
    let etcd = Etcd::cluster();
    let client = client(etcd.endpoints());
    let first = client.change(&Ask::create("/m/a", b"1")).await.unwrap();
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        etcd.signal(0, signal);
        let since = Instant::now();
        // The member that is gone may have led: there is a pause until the others have elected.
        while client.list("/m").await.is_err() {
            assert!(since.elapsed() < Duration::from_secs(20));
        }
    }
    let listing = client.list("/m").await.unwrap();
    assert_eq!(listing.records[0].modified, first);
    // Whoever answered last is asked first: no time is lost with the dead one.
    let since = Instant::now();
    client
        .change(&Ask::swap("/m/a", b"2", first))
        .await
        .unwrap();
    assert!(since.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn without_a_quorum_reads_fail_and_changes_are_unknown() {
    let etcd = Etcd::cluster();
    let client = client(etcd.endpoints());
    let first = client.change(&Ask::create("/m/a", b"1")).await.unwrap();
    etcd.signal(1, Signal::SIGSTOP);
    etcd.signal(2, Signal::SIGSTOP);
    let read = client.list("/m").await.unwrap_err();
    assert!(matches!(read, CallError::Unreachable(_)), "{read:?}");
    let changed = client
        .change(&Ask::swap("/m/a", b"2", first))
        .await
        .unwrap_err();
    assert!(matches!(changed, CallError::Unknown(_)), "{changed:?}");
}

#[tokio::test]
async fn nobody_there_is_unreachable_for_changes_too() {
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nowhere.local_addr().unwrap();
    drop(nowhere);
    let client = client(vec![format!("http://{address}")]);
    let changed = client.change(&Ask::create("/m/a", b"1")).await.unwrap_err();
    assert!(matches!(changed, CallError::Unreachable(_)), "{changed:?}");
    assert!(
        changed.to_string().contains(&address.to_string()),
        "{changed}"
    );
}

#[tokio::test]
async fn users_have_to_know_their_password() {
    let etcd = Etcd::start(&[]);
    etcd.require_password("root", "secret");
    let with = |password: &str| {
        let user = User {
            name: "root".to_owned(),
            password: password.to_owned(),
        };
        let config = Config {
            user: Some(user),
            ..config(etcd.endpoints())
        };
        Client::new(&config).unwrap()
    };
    with("secret")
        .change(&Ask::create("/m/a", b"1"))
        .await
        .unwrap();
    for stranger in [with("wrong"), client(etcd.endpoints())] {
        assert_eq!(refused(stranger.list("/m").await), Refusal::Unauthorized);
        let change = stranger.change(&Ask::create("/m/b", b"1")).await;
        assert_eq!(refused(change), Refusal::Unauthorized);
    }
}

#[tokio::test]
async fn tls_knows_both_sides() {
    let (etcd, tls) = Etcd::secured();
    let mut config = config(etcd.endpoints());
    let error = Client::new(&config).unwrap_err();
    assert!(error.to_string().contains("--store-ca"), "{error}");
    config.tls = tls;
    let client = Client::new(&config).unwrap();
    client.change(&Ask::create("/m/a", b"1")).await.unwrap();
    let identity = config.tls.identity.take();
    let unknown = Client::new(&config).unwrap();
    assert!(unknown.list("/m").await.is_err());
    config.tls.identity = identity.map(|(_, key)| (key.clone(), key));
    let error = Client::new(&config).unwrap_err();
    assert!(error.to_string().contains("--store-cert"), "{error}");
}

#[tokio::test]
async fn an_etcd_without_the_v2_api_is_told_what_to_do() {
    let etcd = Etcd::start(&["--enable-v2=false"]);
    let error = client(etcd.endpoints()).list("/m").await.unwrap_err();
    assert!(error.to_string().contains("--enable-v2=true"), "{error}");
}
