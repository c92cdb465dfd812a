//! Declaring services and servers, where the earlier system went wrong.

use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::types::{ForwardMethod, RealServer, VirtualService, real_server};
use merlin_proto::v1::{LiveRequest, LiveService};
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::support::requests::{check, ids, numbered_server, refused, service, weight};
use crate::support::{Daemon, Setup, eventually};

async fn live(daemon: &Daemon) -> Vec<LiveService> {
    let request = LiveRequest {
        local: true,
        ..Default::default()
    };
    let answer = daemon.node().await.live(request).await.unwrap();
    let [table] = answer.into_inner().nodes.try_into().unwrap();
    assert_eq!(table.error, "");
    table.services
}

/// Waits until the table holds as many servers for a service.
async fn programmed(daemon: &Daemon, id: &str, servers: usize) {
    eventually(async || {
        let services = live(daemon).await;
        let found = services.iter().find(|service| service.service_id == id);
        match found {
            Some(service) if service.servers.len() == servers => Ok(()),
            _ => Err(services),
        }
    })
    .await;
}

#[tokio::test]
async fn a_service_whose_name_begins_anothers_has_its_own_servers_only() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    merlin.create_service(service("web2", 81)).await.unwrap();
    merlin
        .create_server(numbered_server("web2", 1))
        .await
        .unwrap();
    merlin
        .create_server(numbered_server("web2", 2))
        .await
        .unwrap();
    merlin
        .create_server(numbered_server("web", 3))
        .await
        .unwrap();
    let list = merlin.list(()).await.unwrap().into_inner();
    assert_eq!(ids(&list), [("web".to_owned(), 1), ("web2".to_owned(), 2)]);
    programmed(&daemon, "web", 1).await;
    programmed(&daemon, "web2", 2).await;
    merlin.delete_service("web".to_owned()).await.unwrap();
    let list = merlin.list(()).await.unwrap().into_inner();
    assert_eq!(ids(&list), [("web2".to_owned(), 2)]);
}

#[tokio::test]
async fn deleting_a_service_deletes_its_servers_and_their_checks() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    let mut checked = numbered_server("web", 1);
    // Nobody listens there; that there is a check is what counts.
    checked.health_check = Some(check(setup.peer.addr().port()));
    merlin.create_server(checked).await.unwrap();
    let checks = async |expected: bool| {
        eventually(async || {
            let metrics = daemon.page("/metrics").await;
            let present = metrics.contains("merlin_health_servers{service=\"web\"");
            if present == expected {
                Ok(())
            } else {
                Err(metrics)
            }
        })
        .await;
    };
    checks(true).await;
    merlin.delete_service("web".to_owned()).await.unwrap();
    checks(false).await;
    eventually(async || {
        let services = live(&daemon).await;
        if services.is_empty() {
            Ok(())
        } else {
            Err(services)
        }
    })
    .await;
    merlin.create_service(service("web", 80)).await.unwrap();
    let list = merlin.list(()).await.unwrap().into_inner();
    assert_eq!(ids(&list), [("web".to_owned(), 0)]);
}

#[tokio::test]
async fn of_clients_that_create_the_same_service_one_succeeds() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let channel = daemon.channel().await;
    let mut clients = tokio::task::JoinSet::new();
    for number in 1..=16 {
        let mut merlin = MerlinClient::new(channel.clone());
        clients.spawn(async move { merlin.create_service(service("web", number)).await });
    }
    let answers = clients.join_all().await;
    let (created, others): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!(created.len(), 1);
    for other in others {
        refused(other, Code::AlreadyExists, "web");
    }
}

/// Reading, merging and writing back would lose one of the two.
#[tokio::test]
async fn updates_of_different_fields_at_once_are_both_kept() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    merlin
        .create_server(numbered_server("web", 1))
        .await
        .unwrap();
    let methods = [
        ForwardMethod::Route,
        ForwardMethod::Tunnel,
        ForwardMethod::Masq,
    ];
    for (round, method) in (1_u32..).zip(methods.into_iter().cycle().take(30)) {
        let forward = RealServer {
            config: Some(real_server::Config {
                forward: method.into(),
                ..Default::default()
            }),
            ..numbered_server("web", 1)
        };
        let mut other: MerlinClient<Channel> = merlin.clone();
        let (one, two) = tokio::join!(
            merlin.update_server(weight("web", 1, round)),
            other.update_server(forward)
        );
        for answer in [one, two] {
            answer.unwrap();
        }
        let list = merlin.list(()).await.unwrap().into_inner();
        let config = list.items[0].servers[0].config.as_ref().unwrap();
        assert_eq!((config.weight, config.forward()), (Some(round), method));
    }
}

#[tokio::test]
async fn unknown_flags_are_refused_and_flags_can_be_cleared() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    let flagged = |flags: &[&str], replace_flags| {
        let mut service = service("web", 80);
        let config = service.config.as_mut().unwrap();
        config.scheduler = "sh".to_owned();
        config.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        config.replace_flags = replace_flags;
        service
    };
    for unknown in ["flag-9", "sh-fall", "mh-port", ""] {
        let answer = merlin.create_service(flagged(&[unknown], false)).await;
        refused(answer, Code::InvalidArgument, "config.flags");
    }
    let stored = async |merlin: &mut MerlinClient<Channel>| {
        let list = merlin.list(()).await.unwrap().into_inner();
        list.items[0].service.clone().unwrap().config.unwrap().flags
    };
    merlin
        .create_service(flagged(&["sh-port", "flag-1"], false))
        .await
        .unwrap();
    assert_eq!(stored(&mut merlin).await, ["flag-1", "flag-2"]);
    // An empty list keeps them, as earlier clients expect, unless it is to replace them.
    merlin.update_service(flagged(&[], false)).await.unwrap();
    assert_eq!(stored(&mut merlin).await, ["flag-1", "flag-2"]);
    merlin.update_service(flagged(&[], true)).await.unwrap();
    assert!(stored(&mut merlin).await.is_empty());
}

#[tokio::test]
async fn services_of_every_kind_are_listed_and_programmed() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    let kind = |id: &str, change: &dyn Fn(&mut VirtualService)| {
        let mut service = service(id, 80);
        change(&mut service);
        service
    };
    use merlin_proto::types::{AddressFamily, Protocol};
    let services = [
        kind("fwmark", &|service| {
            let key = service.key.as_mut().unwrap();
            *key = Default::default();
            key.fwmark = 7;
            key.set_family(AddressFamily::Ipv6);
        }),
        kind("ipv6", &|service| {
            "fd00::1".clone_into(&mut service.key.as_mut().unwrap().ip)
        }),
        kind("sctp", &|service| {
            service.key.as_mut().unwrap().set_protocol(Protocol::Sctp)
        }),
        kind("tcp", &|_| {}),
        kind("udp", &|service| {
            service.key.as_mut().unwrap().set_protocol(Protocol::Udp)
        }),
    ];
    for service in &services {
        merlin
            .create_service(Request::new(service.clone()))
            .await
            .unwrap();
    }
    let list = merlin.list(()).await.unwrap().into_inner();
    let keys: Vec<_> = list
        .items
        .into_iter()
        .map(|item| item.service.unwrap().key)
        .collect();
    assert_eq!(keys, services.map(|service| service.key));
    for id in ["fwmark", "ipv6", "sctp", "tcp", "udp"] {
        programmed(&daemon, id, 0).await;
    }
}
