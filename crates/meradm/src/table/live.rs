//! What the kernels of the nodes hold, beside the catalog's lines.

use std::collections::BTreeMap;

use merlin_proto::types::RealServer;
use merlin_proto::v1::{HealthVerdict, LiveResponse, LiveServer, LiveService, NodeTable};

use super::words;

/// Every node's table, by what the catalog calls things.
#[derive(Debug)]
pub(crate) struct Live<'a> {
    nodes: Vec<Node<'a>>,
}

#[derive(Debug)]
struct Node<'a> {
    table: &'a NodeTable,
    services: BTreeMap<&'a str, &'a LiveService>,
    servers: BTreeMap<(&'a str, String), &'a LiveServer>,
}

impl<'a> Live<'a> {
    pub(crate) fn new(response: &'a LiveResponse) -> Self {
        Self {
            nodes: response.nodes.iter().map(Node::new).collect(),
        }
    }

    /// A line per node on a service.
    pub(super) fn of_service(&self, id: &str) -> Vec<String> {
        self.answering(|node| match node.services.get(id) {
            Some(service) => {
                let counters = service.counters.unwrap_or_default();
                format!("{} connections", counters.connections)
            }
            None => "not in the kernel".to_owned(),
        })
    }

    /// A line per node on a real server.
    pub(super) fn of_server(&self, server: &RealServer) -> Vec<String> {
        let key = (server.service_id.as_str(), words::server_key(server));
        self.answering(|node| match node.servers.get(&key) {
            Some(server) => on_server(server),
            None => "not in the kernel".to_owned(),
        })
    }

    fn answering(&self, words: impl Fn(&Node<'a>) -> String) -> Vec<String> {
        let nodes = self.nodes.iter().filter(|node| node.table.error.is_empty());
        nodes
            .map(|node| format!("{}: {}", node.table.name, words(node)))
            .collect()
    }

    /// What belongs to no line of the catalog: foreign services, and nodes without an answer.
    pub(super) fn rest(&self) -> String {
        let mut text = String::new();
        for Node { table, .. } in &self.nodes {
            let foreign = table.services.iter().filter(|s| s.service_id.is_empty());
            for service in foreign {
                let key = service.key.as_ref().map(words::service_key);
                let (protocol, target) = key.unwrap_or_default();
                let scheduler = &service.scheduler;
                text += &format!(
                    "{}: foreign service {protocol} {target} {scheduler}\n",
                    table.name
                );
            }
            if !table.error.is_empty() {
                text += &format!("{}: {}\n", table.name, table.error);
            }
        }
        text
    }
}

impl<'a> Node<'a> {
    fn new(table: &'a NodeTable) -> Self {
        let services = || table.services.iter().filter(|s| !s.service_id.is_empty());
        let servers = services().flat_map(|service| {
            service.servers.iter().filter_map(|server| {
                let key = server.key.as_ref()?;
                let at = words::address(&key.ip, key.port);
                Some(((service.service_id.as_str(), at), server))
            })
        });
        Self {
            table,
            services: services().map(|s| (s.service_id.as_str(), s)).collect(),
            servers: servers.collect(),
        }
    }
}

fn on_server(server: &LiveServer) -> String {
    let mut words = format!(
        "weight {}, {} active, {} inactive",
        server.weight, server.active_connections, server.inactive_connections
    );
    match server.health() {
        HealthVerdict::Unchecked => {}
        HealthVerdict::Unknown => words += ", health unknown",
        HealthVerdict::Up => words += ", up",
        HealthVerdict::Down => words += ", down",
    }
    if server.health() != HealthVerdict::Up && !server.last_failure.is_empty() {
        words += &format!(" ({})", server.last_failure);
    }
    words
}
