//! Stored catalogs that contradict themselves.

use std::sync::Arc;

use super::script;
use crate::catalog::{Catalog, RealServer, RestoreError, Revision, VirtualService};
use crate::server::RealServerKey;
use crate::service::ServiceId;

fn services(commands: &[&str]) -> Vec<VirtualService> {
    let mut catalog = Catalog::default();
    for command in commands {
        catalog.apply(&script::parse(command).unwrap()).unwrap();
    }
    catalog
        .services()
        .map(|service| (**service).clone())
        .collect()
}

fn id(text: &str) -> ServiceId {
    ServiceId::new(text).unwrap()
}

#[test]
fn contradictions_are_told_apart() {
    let web = services(&[
        "create service web tcp 10.0.0.1:80 rr",
        "create server web 10.1.0.1:80",
    ]);
    let ours = &web[0];
    let restore = |revision, services: Vec<VirtualService>| {
        Catalog::restore(Revision(revision), services, []).map(|_| ())
    };
    assert_eq!(restore(2, web.clone()), Ok(()));

    let namesake = VirtualService {
        id: id("shadow"),
        ..ours.clone()
    };
    assert_eq!(
        restore(2, vec![ours.clone(), namesake]),
        Err(RestoreError::SharedKey {
            first: id("web"),
            second: id("shadow"),
            key: ours.key,
        })
    );

    let elsewhere = services(&["create service web tcp 10.0.0.2:80 rr"]);
    for again in [ours.clone(), elsewhere[0].clone()] {
        assert_eq!(
            restore(2, vec![ours.clone(), again]),
            Err(RestoreError::Duplicate(id("web")))
        );
    }

    let from_the_future = |what, revision| {
        Err(RestoreError::FromTheFuture {
            service: id("web"),
            what,
            revision: Revision(revision),
        })
    };
    assert_eq!(restore(0, web.clone()), from_the_future("the record", 0));
    assert_eq!(restore(1, web.clone()), from_the_future("a real server", 1));
}

#[test]
fn a_stored_service_is_checked_like_a_declared_one() {
    let mut stored = services(&[
        "create service any fwmark 1 rr",
        "create server any 10.1.0.1:0 forward=route",
    ]);
    let mut service = stored.remove(0);
    assert_eq!(service.check(), Ok(()));
    let web = services(&["create service web tcp 10.0.0.1:80 rr"]);
    service.key = web[0].key;
    assert_eq!(service.check().unwrap_err().field, "key.port");

    let moved = |server: &RealServer| {
        let key = RealServerKey::new(server.key.address, 80);
        let server = RealServer {
            key,
            ..server.clone()
        };
        (key, Arc::new(server))
    };
    service.servers = service.servers.values().map(|s| moved(s)).collect();
    assert_eq!(service.check(), Ok(()));
}
