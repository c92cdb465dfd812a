//! Every request that old clients rely on being refused, with the code and the field they are told.

use std::fmt::Debug;

use merlin_proto::types::{RealServer, VirtualService, real_server, virtual_service};
use tonic::{Code, Response, Status};

use crate::support::requests::{check, ids, numbered_server, refused, service};
use crate::support::{Daemon, Setup};

type Spoil<T> = fn(&mut T);

fn key(service: &mut VirtualService) -> &mut virtual_service::Key {
    service.key.get_or_insert_default()
}

fn config(service: &mut VirtualService) -> &mut virtual_service::Config {
    service.config.get_or_insert_default()
}

fn server_key(server: &mut RealServer) -> &mut real_server::Key {
    server.key.get_or_insert_default()
}

fn server_config(server: &mut RealServer) -> &mut real_server::Config {
    server.config.get_or_insert_default()
}

fn server_check(server: &mut RealServer) -> &mut real_server::HealthCheck {
    server.health_check.get_or_insert_with(|| check(556))
}

/// Refused when created: the field, and what is wrong with it.
const SERVICES: &[(&str, Spoil<VirtualService>)] = &[
    ("id", |s| s.id.clear()),
    ("key", |s| s.key = None),
    ("key.ip", |s| key(s).ip.clear()),
    ("key.ip", |s| key(s).ip = "10.0.0.256".into()),
    ("key.ip", |s| key(s).ip = "localhost".into()),
    ("key.port", |s| key(s).port = 0),
    ("key.port", |s| key(s).port = 65_536),
    ("key.protocol", |s| key(s).protocol = 0),
    ("key.protocol", |s| key(s).protocol = 9),
    ("config", |s| s.config = None),
    ("config.scheduler", |s| config(s).scheduler.clear()),
    ("config.scheduler", |s| config(s).scheduler = "best".into()),
    ("config.flags", |s| config(s).flags = vec!["flag-9".into()]),
    ("config.flags", |s| config(s).flags = vec!["mh-port".into()]),
];

/// Refused when updated: absent fields stay, so only what is there can be wrong.
const SERVICE_UPDATES: &[(&str, Spoil<VirtualService>)] = &[
    ("id", |s| s.id.clear()),
    ("key.ip", |s| key(s).ip = "10.0.0.256".into()),
    ("key.port", |s| key(s).port = 65_536),
    ("key.protocol", |s| key(s).protocol = 9),
    ("config.scheduler", |s| config(s).scheduler = "best".into()),
    ("config.flags", |s| config(s).flags = vec!["flag-9".into()]),
    ("config.flags", |s| config(s).flags = vec!["mh-port".into()]),
];

const SERVERS: &[(&str, Spoil<RealServer>)] = &[
    ("serviceID", |s| s.service_id.clear()),
    ("key", |s| s.key = None),
    ("key.ip", |s| server_key(s).ip.clear()),
    ("key.ip", |s| server_key(s).ip = "10.0.0.256".into()),
    ("key.port", |s| server_key(s).port = 0),
    ("key.port", |s| server_key(s).port = 65_536),
    ("config", |s| s.config = None),
    ("config.forward", |s| server_config(s).forward = 0),
    ("config.forward", |s| server_config(s).forward = 9),
    ("config.weight", |s| server_config(s).weight = None),
    ("config.weight", |s| server_config(s).weight = Some(65_536)),
    ("health_check.endpoint", |s| {
        server_check(s).endpoint = Some("ftp://:556/health".into());
    }),
    ("health_check.endpoint", |s| {
        server_check(s).endpoint = Some("http:///health".into());
    }),
    ("health_check.endpoint", |s| {
        server_check(s).endpoint = Some("health".into());
    }),
    ("health_check.period", |s| server_check(s).period = None),
    ("health_check.period", |s| {
        server_check(s).period = Some(prost_types::Duration::default());
    }),
    // The earlier system looked at the period here.
    ("health_check.timeout", |s| server_check(s).timeout = None),
    ("health_check.timeout", |s| {
        server_check(s).timeout = Some(prost_types::Duration::default());
    }),
    ("health_check.up_threshold", |s| {
        server_check(s).up_threshold = 0;
    }),
    ("health_check.down_threshold", |s| {
        server_check(s).down_threshold = 0;
    }),
];

const SERVER_UPDATES: &[(&str, Spoil<RealServer>)] = &[
    ("serviceID", |s| s.service_id.clear()),
    ("key.ip", |s| server_key(s).ip.clear()),
    ("key.ip", |s| server_key(s).ip = "10.0.0.256".into()),
    ("key.port", |s| server_key(s).port = 65_536),
    ("config.forward", |s| server_config(s).forward = 9),
    ("config.weight", |s| server_config(s).weight = Some(65_536)),
    ("health_check.endpoint", |s| {
        server_check(s).endpoint = Some("ftp://:556/health".into());
    }),
];

fn spoilt<T: Clone>(sound: &T, spoil: Spoil<T>) -> T {
    let mut message = sound.clone();
    spoil(&mut message);
    message
}

/// Fails unless the answer blames the field, and begins with its name.
fn blames(answer: Result<Response<()>, Status>, field: &str, request: impl Debug) {
    let status = answer.expect_err(&format!("{request:?}"));
    assert_eq!(
        status.code(),
        Code::InvalidArgument,
        "{status}: {request:?}"
    );
    let named = status.message().split([' ', ':']).next();
    assert_eq!(named, Some(field), "{status}: {request:?}");
}

/// What is there must be what was there before.
async fn unchanged(daemon: &Daemon, expected: &[(&str, usize)]) {
    let list = daemon.merlin().await.list(()).await.unwrap().into_inner();
    let expected = expected
        .iter()
        .map(|(id, servers)| ((*id).to_owned(), *servers));
    assert_eq!(ids(&list), expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn a_bad_field_is_an_invalid_argument_and_named() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    for (field, spoil) in SERVICES {
        let request = spoilt(&service("web", 80), *spoil);
        blames(merlin.create_service(request.clone()).await, field, request);
    }
    blames(merlin.delete_service(String::new()).await, "id", "deletion");
    unchanged(&daemon, &[]).await;

    merlin.create_service(service("web", 80)).await.unwrap();
    for (field, spoil) in SERVICE_UPDATES {
        let request = spoilt(&service("web", 80), *spoil);
        blames(merlin.update_service(request.clone()).await, field, request);
    }
    for (field, spoil) in SERVERS {
        let request = spoilt(&numbered_server("web", 1), *spoil);
        blames(merlin.create_server(request.clone()).await, field, request);
    }
    unchanged(&daemon, &[("web", 0)]).await;

    merlin
        .create_server(numbered_server("web", 1))
        .await
        .unwrap();
    for (field, spoil) in SERVER_UPDATES {
        let request = spoilt(&numbered_server("web", 1), *spoil);
        blames(merlin.update_server(request.clone()).await, field, request);
    }
    for (field, spoil) in &SERVERS[..6] {
        // Which one is meant is all that a deletion has to say.
        if *field != "key.port" {
            let request = spoilt(&numbered_server("web", 1), *spoil);
            blames(merlin.delete_server(request.clone()).await, field, request);
        }
    }
    unchanged(&daemon, &[("web", 1)]).await;
}

#[tokio::test]
async fn what_exists_already_is_named_with_who_holds_it() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    merlin.create_service(service("mail", 25)).await.unwrap();
    merlin
        .create_server(numbered_server("web", 1))
        .await
        .unwrap();
    let exists = |answer, words| refused(answer, Code::AlreadyExists, words);
    exists(merlin.create_service(service("web", 81)).await, "web");
    exists(merlin.create_service(service("web2", 80)).await, "web");
    // Moving one onto the other is no way around that.
    exists(merlin.update_service(service("mail", 80)).await, "web");
    let again = merlin.create_server(numbered_server("web", 1)).await;
    exists(again, "172.16.0.1:1");
    unchanged(&daemon, &[("mail", 0), ("web", 1)]).await;
}

#[tokio::test]
async fn what_does_not_exist_is_named_and_deleting_it_is_no_error() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    let missing = |answer, words| refused(answer, Code::NotFound, words);
    missing(
        merlin.create_server(numbered_server("nobody", 1)).await,
        "nobody",
    );
    missing(merlin.update_service(service("nobody", 81)).await, "nobody");
    missing(
        merlin.update_server(numbered_server("nobody", 1)).await,
        "nobody",
    );
    missing(
        merlin.update_server(numbered_server("web", 1)).await,
        "172.16.0.1:1",
    );
    let keyless = RealServer {
        key: None,
        ..numbered_server("web", 1)
    };
    missing(merlin.update_server(keyless).await, "key");
    merlin
        .delete_server(numbered_server("web", 1))
        .await
        .unwrap();
    merlin.delete_service("nobody".to_owned()).await.unwrap();
    unchanged(&daemon, &[("web", 0)]).await;
}

/// An absent endpoint and an empty one both mean no check, and so do no fields beside them.
#[tokio::test]
async fn a_server_without_a_check_is_listed_with_an_empty_one() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    let empty = real_server::HealthCheck {
        endpoint: Some(String::new()),
        ..Default::default()
    };
    for (port, check) in [(1, None), (2, Some(Default::default())), (3, Some(empty))] {
        let mut server = numbered_server("web", port);
        server.health_check = check;
        merlin.create_server(server).await.unwrap();
    }
    let list = merlin.list(()).await.unwrap().into_inner();
    for server in &list.items[0].servers {
        assert_eq!(server.health_check, Some(Default::default()));
    }
}
