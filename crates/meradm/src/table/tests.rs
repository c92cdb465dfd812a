//! The tables that people read and scripts match.

use merlin_proto::types::list_response::Item;
use merlin_proto::types::{
    ForwardMethod, Protocol, RealServer, VirtualService, real_server, virtual_service,
};
use merlin_proto::v1::node_status::{Drift, Failure, Health, Store};
use merlin_proto::v1::{
    Counters, HealthVerdict, LiveResponse, LiveServer, LiveService, NodeStatus, NodeTable,
    StatusResponse,
};
use prost_types::Duration;

use super::{Live, catalog, status};
use crate::output::snapshot;

fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

fn service1() -> VirtualService {
    VirtualService {
        id: "service1".into(),
        key: Some(virtual_service::Key {
            ip: "10.1.1.1".into(),
            port: 888,
            protocol: Protocol::Tcp.into(),
            ..Default::default()
        }),
        config: Some(virtual_service::Config {
            scheduler: "wrr".into(),
            flags: vec!["flag-1".into(), "flag-2".into()],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn server1() -> RealServer {
    RealServer {
        service_id: "service1".into(),
        key: Some(real_server::Key {
            ip: "172.16.1.1".into(),
            port: 555,
        }),
        config: Some(real_server::Config {
            weight: Some(2),
            forward: ForwardMethod::Masq.into(),
            ..Default::default()
        }),
        health_check: Some(real_server::HealthCheck {
            endpoint: Some("http://:556/health".into()),
            period: seconds(5),
            timeout: seconds(1),
            up_threshold: 2,
            down_threshold: 1,
        }),
        ..Default::default()
    }
}

fn items() -> Vec<Item> {
    vec![Item {
        service: Some(service1()),
        servers: vec![server1()],
    }]
}

#[test]
fn the_listing_has_the_layout_that_scripts_match() {
    let text = catalog(&items(), None);
    assert_eq!(
        text,
        "\
ID       Prot LocalAddress:Port  Scheduler    Flags
              -> RemoteAddress:Port Forward   Weight
                 HealthEndpoint     Period    Timeout Up/Down
service1 TCP  10.1.1.1:888       wrr          (flag-1,flag-2)
              -> 172.16.1.1:555     MASQ      2
                 http://:556/health 5s        1s      2/1
"
    );
}

#[test]
fn an_empty_listing_is_its_header() {
    assert_eq!(
        catalog(&[], None),
        "\
ID Prot LocalAddress:Port  Scheduler    Flags
        -> RemoteAddress:Port Forward   Weight
           HealthEndpoint     Period    Timeout Up/Down
"
    );
}

#[test]
fn columns_grow_with_what_is_in_them() {
    let mut items = items();
    let mut long = server1();
    long.key = Some(real_server::Key {
        ip: "fd00:1234:5678:9abc:def0:1234:5678:9abc".into(),
        port: 65535,
    });
    let check = long.health_check.as_mut().unwrap();
    check.period = seconds(3600);
    check.timeout = Some(Duration {
        seconds: 90,
        nanos: 1,
    });
    items[0].servers.push(long);
    // A check that is switched off prints no line, however much of it is kept.
    let mut off = server1();
    off.health_check.as_mut().unwrap().endpoint = Some(String::new());
    items[0].servers.push(off);
    items[0].service.as_mut().unwrap().id = "a-service-with-a-long-näme".into();
    snapshot!(catalog(&items, None));
}

#[test]
fn what_this_version_does_not_know_is_shown_as_it_is() {
    let mut items = items();
    let service = items[0].service.as_mut().unwrap();
    service.key.as_mut().unwrap().protocol = 99;
    service.config.as_mut().unwrap().scheduler = "quantum".into();
    items[0].servers[0].config.as_mut().unwrap().forward = 77;
    items[0].servers[0].health_check = None;
    items.push(Item::default());
    snapshot!(catalog(&items, None));
}

fn live() -> LiveResponse {
    let server = |weight, health: HealthVerdict, last_failure: &str| LiveServer {
        key: server1().key,
        weight,
        active_connections: 12,
        inactive_connections: 3,
        counters: None,
        health: health.into(),
        last_failure: last_failure.into(),
    };
    let table = |name: &str, servers: Vec<LiveServer>| NodeTable {
        name: name.into(),
        services: vec![LiveService {
            service_id: "service1".into(),
            key: service1().key,
            scheduler: "wrr".into(),
            counters: Some(Counters {
                connections: 4711,
                ..Default::default()
            }),
            servers,
        }],
        ..Default::default()
    };
    let mut foreign = table("lb3", vec![]);
    foreign.services[0].service_id = String::new();
    LiveResponse {
        nodes: vec![
            table("lb1", vec![server(2, HealthVerdict::Up, "timed out")]),
            table("lb2", vec![server(0, HealthVerdict::Down, "timed out")]),
            foreign,
            NodeTable {
                name: "lb4".into(),
                error: "no answer within 1s".into(),
                ..Default::default()
            },
        ],
    }
}

#[test]
fn the_kernels_of_all_nodes_are_shown_beneath() {
    let response = live();
    snapshot!(catalog(&items(), Some(&Live::new(&response))));
}

#[test]
fn the_state_of_all_nodes() {
    let healthy = NodeStatus {
        name: "lb1".into(),
        id: 1,
        version: "0.3.0".into(),
        uptime: Some(Duration {
            seconds: 3723,
            nanos: 4,
        }),
        store: Some(Store {
            backend: "raft".into(),
            available: true,
            role: "leader".into(),
            leader: 1,
            ..Default::default()
        }),
        catalog_revision: 17,
        programmed_revision: 17,
        health: Some(Health {
            up: 40,
            down: 2,
            unknown: 1,
        }),
        reconciling: true,
        ..Default::default()
    };
    let troubled = NodeStatus {
        name: "lb2".into(),
        store: Some(Store {
            backend: "raft".into(),
            role: "follower".into(),
            ..Default::default()
        }),
        programmed_revision: 15,
        failures: vec![Failure {
            service_id: "web".into(),
            operation: "add service TCP 10.0.0.1:80 scheduler mh".into(),
            reason: "the scheduler's module is not there".into(),
        }],
        drift: Some(Drift {
            repaired: 3,
            foreign_services: 2,
        }),
        dataplane_error: "the kernel has no IPVS: modprobe ip_vs".into(),
        ..healthy.clone()
    };
    let idle = NodeStatus {
        name: "lb3".into(),
        store: Some(Store {
            backend: "etcd3".into(),
            available: true,
            ..Default::default()
        }),
        reconciling: false,
        ..healthy.clone()
    };
    let gone = NodeStatus {
        name: "lb4".into(),
        error: "no answer within 1s".into(),
        ..Default::default()
    };
    snapshot!(status(&StatusResponse {
        nodes: vec![healthy, troubled, idle, gone],
    }));
}
