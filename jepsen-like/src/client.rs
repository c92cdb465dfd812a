//! Speaks to one node, and takes its answers for what they promise and no more.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use merlin_model::store::Consistency;
use merlin_model::{RequestId, Revision};
use merlin_proto::metadata::{Conditions, read_reply, write_consistency};
use merlin_proto::status::{Meaning, meaning};
use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::types::{
    ForwardMethod, ListResponse, Protocol, RealServer, VirtualService, real_server, virtual_service,
};
use merlin_proto::v1::cluster_client::ClusterClient;
use merlin_proto::v1::node_client::NodeClient;
use merlin_proto::v1::{
    self, DescribeRequest, DescribeResponse, LiveRequest, NodeStatus, StatusRequest, WatchRequest,
    WatchResponse,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, ConnectError, Request, Status, Streaming};

use crate::lab::machine::Machine;
use crate::lab::network::HOST;
use crate::model::{CHECKED, Catalog, Server, Service, Table, Virtual, scheduler, weight};
use crate::ops::{self, Action, Event, Outcome, Refusal, Serial, Write};
use crate::workload::Speaks;

/// A connection that is not there by then is not worth waiting for.
const CONNECT: Duration = Duration::from_secs(1);

/// Connections to one node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
}

/// What was said is not what merlin can say.
#[derive(Debug, thiserror::Error)]
pub enum Odd {
    #[error("an answer without a revision")]
    NoRevision,
    #[error("a write that nothing is wrong with was refused: {0}")]
    Refused(Box<Status>),
    #[error("{0} is not an object that anybody wrote")]
    Garbled(String),
}

impl Client {
    /// Connects when it is first used, and again whenever it has to.
    pub fn new(machine: &Machine) -> Self {
        let endpoint = Endpoint::from(uri(&format!("http://{}", machine.api())))
            .connect_timeout(CONNECT)
            // A partition leaves connections behind on which nothing is ever heard again.
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true);
        Self {
            channel: endpoint.connect_lazy(),
        }
    }

    pub async fn watch(
        &self,
        from: Option<ops::Revision>,
        incarnation: &str,
    ) -> Result<Streaming<WatchResponse>, Status> {
        let request = WatchRequest {
            from_revision: from,
            incarnation: incarnation.to_owned(),
        };
        let mut client = NodeClient::new(self.channel.clone());
        Ok(client.watch(request).await?.into_inner())
    }

    /// What the node says of itself alone.
    pub async fn status(&self, patience: Duration) -> Result<NodeStatus, Status> {
        let mut request = Request::new(StatusRequest { local: true });
        request.set_timeout(patience);
        let mut client = NodeClient::new(self.channel.clone());
        let mut nodes = client.status(request).await?.into_inner().nodes;
        nodes.pop().ok_or_else(|| Status::internal("no node"))
    }

    /// The node's own table.
    pub async fn table(&self, patience: Duration) -> Result<Table, Status> {
        let mut request = Request::new(LiveRequest {
            local: true,
            service_id: String::new(),
        });
        request.set_timeout(patience);
        let client = NodeClient::new(self.channel.clone());
        let mut client = client.max_decoding_message_size(usize::MAX);
        let answer = client.live(request).await?.into_inner();
        let node = answer.nodes.into_iter().next();
        let node = node.ok_or_else(|| Status::internal("no node"))?;
        if node.error.is_empty() {
            Ok(table(&node))
        } else {
            Err(Status::unavailable(node.error))
        }
    }
}

impl Speaks for Client {
    async fn write(
        &self,
        write: &Write,
        id: Option<&str>,
        patience: Duration,
    ) -> Result<Outcome, Odd> {
        let mut client = MerlinClient::new(self.channel.clone());
        let answer = match write.action {
            Action::CreateService { .. } => {
                let request = request(service(&write.action), write, id, patience);
                client.create_service(request).await
            }
            Action::EditService { .. } => {
                let request = request(service(&write.action), write, id, patience);
                client.update_service(request).await
            }
            Action::DeleteService { service } => {
                let request = request(format!("s{service}"), write, id, patience);
                client.delete_service(request).await
            }
            Action::CreateServer { .. } => {
                let request = request(server(&write.action), write, id, patience);
                client.create_server(request).await
            }
            Action::EditServer { .. } => {
                let request = request(server(&write.action), write, id, patience);
                client.update_server(request).await
            }
            Action::DeleteServer { .. } => {
                let request = request(server(&write.action), write, id, patience);
                client.delete_server(request).await
            }
        };
        match answer {
            Ok(answer) => {
                let reply = read_reply(answer.metadata()).ok_or(Odd::NoRevision)?;
                Ok(Outcome::Done {
                    revision: reply.revision.0,
                    changed: reply.changed,
                })
            }
            Err(status) => outcome(status),
        }
    }

    async fn read(
        &self,
        stale: bool,
        patience: Duration,
    ) -> Result<Result<(ops::Revision, Catalog), Odd>, Status> {
        let mut request = Request::new(());
        request.set_timeout(patience);
        let consistency = match stale {
            true => Consistency::Stale,
            false => Consistency::Linearizable,
        };
        write_consistency(consistency, request.metadata_mut());
        let client = MerlinClient::new(self.channel.clone());
        let mut client = client.max_decoding_message_size(usize::MAX);
        let listed = client.list(request).await?.into_inner();
        Ok(catalog(&listed).map(|catalog| (listed.revision, catalog)))
    }
}

/// Asks a node about the cluster, as only who is on its machine may.
pub async fn describe(machine: &Machine, patience: Duration) -> Result<DescribeResponse, Status> {
    let socket = machine.socket();
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from(uri("http://merlin"));
    let ask = async {
        let connected = endpoint.connect_with_connector(connect).await;
        let channel = connected.map_err(|error| Status::unavailable(error.to_string()))?;
        let answer = ClusterClient::new(channel)
            .describe(DescribeRequest { local: true })
            .await?;
        Ok(answer.into_inner())
    };
    let late = |_| Status::deadline_exceeded("no description in time");
    tokio::time::timeout(patience, ask).await.map_err(late)?
}

fn uri(text: &str) -> Uri {
    text.parse().unwrap_or_default()
}

fn request<T>(message: T, write: &Write, id: Option<&str>, patience: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(patience);
    let conditions = Conditions {
        expected_revision: write.expected.map(Revision),
        request_id: id.and_then(|id| RequestId::new(id).ok()),
    };
    conditions.write(request.metadata_mut());
    request
}

/// What an error says about the write.
fn outcome(status: Status) -> Result<Outcome, Odd> {
    // What has a source was not said by merlin, but made up here when the connection failed.
    if let Some(mut source) = status.source() {
        loop {
            if source.is::<ConnectError>() {
                return Ok(Outcome::Nothing);
            }
            match source.source() {
                Some(deeper) => source = deeper,
                None => return Ok(Outcome::Unknown),
            }
        }
    }
    match (meaning(&status), status.code()) {
        (Meaning::Rejected, Code::AlreadyExists) => Ok(Outcome::Refused(Refusal::Exists)),
        (Meaning::Rejected, Code::NotFound) => Ok(Outcome::Refused(Refusal::NotFound)),
        (Meaning::Rejected, Code::Aborted) => Ok(Outcome::Refused(Refusal::Conflict)),
        (Meaning::Rejected, _) => Err(Odd::Refused(Box::new(status))),
        (Meaning::Unavailable, _) => Ok(Outcome::Nothing),
        (Meaning::Unknown | Meaning::Failed, _) => Ok(Outcome::Unknown),
    }
}

// === to the wire ===

pub(crate) fn service(action: &Action) -> VirtualService {
    let (id, port, value) = match *action {
        Action::CreateService {
            service,
            port,
            value,
        } => (service, Some(port), value),
        Action::EditService { service, value } => (service, None, value),
        _ => (action.service(), None, 0),
    };
    let key = port.map(|port| virtual_service::Key {
        ip: VIP.to_string(),
        port: port.into(),
        protocol: Protocol::Tcp.into(),
        ..Default::default()
    });
    VirtualService {
        id: format!("s{id}"),
        key,
        config: Some(virtual_service::Config {
            scheduler: scheduler(value).to_owned(),
            persistence: Some(virtual_service::Persistence {
                timeout_seconds: Some(value),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn server(action: &Action) -> RealServer {
    let value = action.value();
    let config = value.map(|value| real_server::Config {
        weight: Some(weight(value)),
        forward: ForwardMethod::Masq.into(),
        upper_threshold: Some(value),
        ..Default::default()
    });
    let server = action.server().unwrap_or_default();
    let mut check = None;
    let (address, port) = if CHECKED.contains(&server) {
        let port = u32::from(health_port(server));
        if matches!(action, Action::CreateServer { .. }) {
            check = Some(health_check(port));
        }
        (HOST, port)
    } else {
        (Ipv4Addr::from_bits(SERVERS | server), SERVER_PORT)
    };
    RealServer {
        service_id: format!("s{}", action.service()),
        key: Some(real_server::Key {
            ip: address.to_string(),
            port,
        }),
        config,
        health_check: check,
        ..Default::default()
    }
}

fn health_check(port: u32) -> real_server::HealthCheck {
    let time = |millis: u64| prost_types::Duration::try_from(Duration::from_millis(millis)).ok();
    real_server::HealthCheck {
        endpoint: Some(format!("http://:{port}/")),
        period: time(200),
        timeout: time(1000),
        up_threshold: 1,
        down_threshold: 1,
    }
}

/// Where a checked server says how it is.
#[must_use]
pub fn health_port(server: Serial) -> u16 {
    9000 + u16::try_from(server).unwrap_or_default()
}

const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// A server's address is its serial, in 10.128.0.0/9.
const SERVERS: u32 = Ipv4Addr::new(10, 128, 0, 0).to_bits();
const SERVER_PORT: u32 = 80;

// === from the wire ===

fn service_id(id: &str) -> Option<Serial> {
    id.strip_prefix('s')?.parse().ok()
}

fn service_value(service: &VirtualService) -> Option<Serial> {
    let config = service.config.as_ref()?;
    let value = config.persistence.as_ref()?.timeout_seconds?;
    (config.scheduler == scheduler(value)).then_some(value)
}

fn service_port(service: &VirtualService) -> Option<u16> {
    service.key.as_ref()?.port.try_into().ok()
}

fn server_id(key: Option<&real_server::Key>) -> Option<Serial> {
    let key = key?;
    match key.ip.parse() {
        Ok(IpAddr::V4(HOST)) => key.port.checked_sub(9000),
        Ok(IpAddr::V4(address)) => Some(address.to_bits() & !SERVERS),
        _ => None,
    }
}

fn server_value(server: &RealServer) -> Option<Serial> {
    let config = server.config.as_ref()?;
    let value = config.upper_threshold?;
    (config.weight == Some(weight(value))).then_some(value)
}

pub(crate) fn catalog(listed: &ListResponse) -> Result<Catalog, Odd> {
    let mut services = BTreeMap::new();
    for item in &listed.items {
        let shown = item.service.clone().unwrap_or_default();
        let garbled = || Odd::Garbled(format!("{shown:?}"));
        let mut servers = BTreeMap::new();
        for server in &item.servers {
            let garbled = || Odd::Garbled(format!("{server:?}"));
            let held = Server {
                value: server_value(server).ok_or_else(garbled)?,
                created: server.created_revision,
                changed: server.changed_revision,
            };
            let id = server_id(server.key.as_ref()).ok_or_else(garbled)?;
            servers.insert(id, held);
        }
        let service = Service {
            port: service_port(&shown).ok_or_else(garbled)?,
            value: service_value(&shown).ok_or_else(garbled)?,
            created: shown.created_revision,
            changed: shown.changed_revision,
            servers,
        };
        services.insert(service_id(&shown.id).ok_or_else(garbled)?, service);
    }
    Ok(Catalog { services })
}

/// The events of one frame of a watch.
pub fn events(frame: &WatchResponse) -> Result<Vec<Event>, Odd> {
    let read = |event: &v1::Event| {
        let change = event.change.as_ref();
        change
            .and_then(read_event)
            .ok_or_else(|| Odd::Garbled(format!("{event:?}")))
    };
    frame.events.iter().map(read).collect()
}

fn read_event(change: &v1::event::Change) -> Option<Event> {
    use v1::event::Change;
    Some(match change {
        Change::ServicePut(service) => Event::ServicePut {
            service: service_id(&service.id)?,
            port: service_port(service)?,
            value: service_value(service)?,
            created: service.created_revision,
            changed: service.changed_revision,
        },
        Change::ServiceDeleted(service) => Event::ServiceDeleted {
            service: service_id(&service.id)?,
            port: service_port(service)?,
        },
        Change::ServerPut(server) => Event::ServerPut {
            service: service_id(&server.service_id)?,
            server: server_id(server.key.as_ref())?,
            value: server_value(server)?,
            created: server.created_revision,
            changed: server.changed_revision,
        },
        Change::ServerDeleted(server) => Event::ServerDeleted {
            service: service_id(&server.service_id)?,
            server: server_id(server.key.as_ref())?,
        },
    })
}

fn table(node: &v1::NodeTable) -> Table {
    let services = node.services.iter().filter_map(|service| {
        let port = u16::try_from(service.key.as_ref()?.port).ok()?;
        let servers = service.servers.iter();
        let servers = servers.filter_map(|s| Some((server_id(s.key.as_ref())?, s.weight)));
        let held = Virtual {
            scheduler: service.scheduler.clone(),
            servers: servers.collect(),
        };
        Some((port, held))
    });
    Table {
        services: services.collect(),
    }
}
