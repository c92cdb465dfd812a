//! Three nodes, and clients that want different things of them at the same time.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::join_all;
use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::types::{ForwardMethod, ListResponse, RealServer, VirtualService, real_server};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::support::requests::{beside, ids, numbered_server, refused, service, weight};
use crate::support::{Daemon, Setup, eventually};

/// Three daemons that are one cluster, each with a vote.
struct Three {
    daemons: Vec<Daemon>,
    _setups: Vec<Setup>,
}

impl Three {
    async fn start() -> Self {
        let founder = Setup::founder();
        let mut daemons = vec![founder.start().await];
        let mut setups = vec![founder];
        for _ in 0..2 {
            let member = Setup::member_of(&setups[0]);
            daemons.push(member.start().await);
            setups.push(member);
        }
        eventually(async || match setups[0].voters() {
            3 => Ok(()),
            voters => Err(voters),
        })
        .await;
        Self {
            daemons,
            _setups: setups,
        }
    }

    async fn clients(&self) -> Vec<Client> {
        let connecting = self.daemons.iter().map(Daemon::merlin);
        join_all(connecting).await.into_iter().map(Client).collect()
    }
}

/// Asks until the cluster has decided: on a busy machine leadership may move.
#[derive(Clone)]
struct Client(MerlinClient<Channel>);

type Decision = Result<Response<()>, Status>;

impl Client {
    async fn create_service(&mut self, service: VirtualService) -> Decision {
        decided(async |id| self.0.create_service(beside(service.clone(), &[id])).await).await
    }

    async fn delete_service(&mut self, service: &str) -> Decision {
        decided(async |id| {
            self.0
                .delete_service(beside(service.to_owned(), &[id]))
                .await
        })
        .await
    }

    async fn create_server(&mut self, server: RealServer) -> Decision {
        decided(async |id| self.0.create_server(beside(server.clone(), &[id])).await).await
    }

    async fn update_server(&mut self, server: RealServer) -> Decision {
        decided(async |id| self.0.update_server(beside(server.clone(), &[id])).await).await
    }

    /// Only if nobody has changed it since this revision.
    async fn update_server_at(&mut self, revision: u64, server: RealServer) -> Decision {
        let expected = ("merlin-expected-revision", &*revision.to_string());
        decided(async |id| {
            let request = beside(server.clone(), &[id, expected]);
            self.0.update_server(request).await
        })
        .await
    }

    async fn list(&mut self) -> ListResponse {
        let listed = eventually(async || self.0.list(Request::new(())).await).await;
        listed.into_inner()
    }

    async fn server(&mut self, service: usize) -> RealServer {
        self.list().await.items[service].servers[0].clone()
    }
}

/// The request's id, which stays the same, makes sure that it is decided once.
async fn decided(mut ask: impl AsyncFnMut((&'static str, &str)) -> Decision) -> Decision {
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    let id = REQUESTS.fetch_add(1, Ordering::Relaxed).to_string();
    eventually(async || {
        let answer = ask(("merlin-request-id", &id)).await;
        match answer.as_ref().map_err(Status::code) {
            Err(Code::Unavailable | Code::Unknown | Code::DeadlineExceeded) => Err(answer),
            _ => Ok(answer),
        }
    })
    .await
}

/// The earlier system read, decided, and wrote: two nodes could both find a name free, and the
/// slower of two updates undid the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_race_through_three_nodes_are_decided_once() {
    let three = Three::start().await;
    let nodes = three.clients().await;
    for round in 0..3 {
        one_creation_wins(&nodes, round).await;
    }
    updates_of_different_fields_are_both_kept(&nodes).await;
    no_addition_is_lost(&nodes).await;
    no_server_outlives_its_service(&nodes).await;
}

/// Everybody finds what the winner wrote.
async fn one_creation_wins(nodes: &[Client], round: u16) {
    let id = format!("web{round}");
    let creations = (1..=9_u16).map(|number| {
        let mut node = nodes[usize::from(number % 3)].clone();
        let wanted = service(&id, 100 * round + number);
        async move { (number, node.create_service(wanted).await) }
    });
    let answers = join_all(creations).await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(_, a)| a.is_ok());
    let [(winner, _)] = won[..] else {
        panic!("round {round}: {} have won", won.len());
    };
    for (_, answer) in lost {
        refused(answer, Code::AlreadyExists, &id);
    }
    for mut node in nodes.iter().cloned() {
        let list = node.list().await;
        let service = list.items[usize::from(round)].service.as_ref().unwrap();
        let port = service.key.as_ref().unwrap().port;
        assert_eq!(port, u32::from(100 * round + winner));
    }
}

async fn updates_of_different_fields_are_both_kept(nodes: &[Client]) {
    let [mut reader, mut one, mut two] = [0, 1, 2].map(|node: usize| nodes[node].clone());
    reader
        .create_server(numbered_server("web0", 1))
        .await
        .unwrap();
    let methods = [
        ForwardMethod::Route,
        ForwardMethod::Tunnel,
        ForwardMethod::Masq,
    ];
    for (round, method) in (2_u32..).zip(methods.into_iter().cycle().take(12)) {
        let forward = RealServer {
            config: Some(real_server::Config {
                forward: method.into(),
                ..Default::default()
            }),
            ..numbered_server("web0", 1)
        };
        let (one, two) = tokio::join!(
            one.update_server(weight("web0", 1, round)),
            two.update_server(forward)
        );
        for answer in [one, two] {
            answer.unwrap();
        }
        let config = reader.server(0).await.config.unwrap();
        assert_eq!((config.weight, config.forward()), (Some(round), method));
    }
}

/// Read, add one, write if nobody else did.
async fn no_addition_is_lost(nodes: &[Client]) {
    const CLIENTS: u32 = 4;
    const RAISES: u32 = 5;
    let mut reader = nodes[0].clone();
    reader
        .create_server(numbered_server("web1", 1))
        .await
        .unwrap();
    reader.update_server(weight("web1", 1, 0)).await.unwrap();
    let raising = (0..CLIENTS).map(|client| {
        let mut node = nodes[client as usize % 3].clone();
        async move {
            let mut raises = 0;
            while raises < RAISES {
                let server = node.server(1).await;
                let now = server.config.unwrap().weight.unwrap();
                let raised = weight("web1", 1, now + 1);
                match node.update_server_at(server.changed_revision, raised).await {
                    Ok(_) => raises += 1,
                    Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
                }
            }
        }
    });
    join_all(raising).await;
    let config = reader.server(1).await.config.unwrap();
    assert_eq!(config.weight, Some(CLIENTS * RAISES));
}

async fn no_server_outlives_its_service(nodes: &[Client]) {
    let additions = (1..=20_u16).map(|port| {
        let mut node = nodes[usize::from(port % 3)].clone();
        async move { node.create_server(numbered_server("web2", port)).await }
    });
    let mut deleting = nodes[1].clone();
    let (answers, deleted) = tokio::join!(join_all(additions), deleting.delete_service("web2"));
    deleted.unwrap();
    for refusal in answers.into_iter().filter_map(Result::err) {
        assert_eq!(refusal.code(), Code::NotFound, "{refusal}");
    }
    let mut reader = nodes[2].clone();
    let expected = [("web0", 1), ("web1", 1)].map(|(id, servers)| (id.to_owned(), servers));
    assert_eq!(ids(&reader.list().await), expected);
    reader.create_service(service("web2", 999)).await.unwrap();
    assert_eq!(ids(&reader.list().await)[2], ("web2".to_owned(), 0));
}
