//! `meradm status`.

use merlin_proto::v1::{NodeStatus, StatusResponse};
use prost_types::Duration;

use super::{aligned, words};

const HEADER: [&str; 9] = [
    "Node",
    "Role",
    "Catalog",
    "Programmed",
    "Failures",
    "Repaired",
    "Up/Down/Unknown",
    "Version",
    "Uptime",
];

/// A line per node, then a line per problem.
pub(crate) fn status(response: &StatusResponse) -> String {
    let mut rows = vec![HEADER.map(str::to_owned).to_vec()];
    rows.extend(response.nodes.iter().map(row));
    let problems = response.nodes.iter().flat_map(problems);
    let problems: String = problems.map(|line| line + "\n").collect();
    aligned(&rows) + &problems
}

fn row(node: &NodeStatus) -> Vec<String> {
    if !node.error.is_empty() {
        return vec![node.name.clone(), "unreachable".to_owned()];
    }
    let store = node.store.clone().unwrap_or_default();
    let role = if store.role.is_empty() {
        store.backend
    } else {
        store.role
    };
    let health = node.health.unwrap_or_default();
    // Nobody wants the nanoseconds.
    let uptime = node.uptime.map(|uptime| Duration { nanos: 0, ..uptime });
    let programmed = match node.reconciling {
        true => node.programmed_revision.to_string(),
        false => "off".to_owned(),
    };
    vec![
        node.name.clone(),
        role,
        node.catalog_revision.to_string(),
        programmed,
        node.failures.len().to_string(),
        node.drift.unwrap_or_default().repaired.to_string(),
        format!("{}/{}/{}", health.up, health.down, health.unknown),
        node.version.clone(),
        words::duration(uptime.as_ref()),
    ]
}

fn problems(node: &NodeStatus) -> Vec<String> {
    let mut problems = Vec::new();
    if !node.error.is_empty() {
        problems.push(node.error.clone());
    }
    if let Some(store) = &node.store
        && !store.available
    {
        let reason = if store.error.is_empty() {
            "no quorum"
        } else {
            &store.error
        };
        problems.push(format!("writes are not possible: {reason}"));
    }
    if let Some(held) = node.store.as_ref().and_then(|store| store.held_removal) {
        problems.push(format!(
            "{} of {} services are gone from the store and kept: `meradm store accept-removal` on \
             this node if that is meant",
            held.services, held.of
        ));
    }
    let passed_over = node.store.iter().flat_map(|store| &store.passed_over);
    problems.extend(passed_over.map(|record| format!("{}: {}", record.key, record.reason)));
    if !node.dataplane_error.is_empty() {
        problems.push(node.dataplane_error.clone());
    }
    for failure in &node.failures {
        let (service, operation) = (&failure.service_id, &failure.operation);
        problems.push(format!("{service}: {operation}: {}", failure.reason));
    }
    let foreign = node.drift.unwrap_or_default().foreign_services;
    if foreign > 0 {
        problems.push(format!("{foreign} foreign services are left alone"));
    }
    let on_node = |problem| format!("{}: {problem}", node.name);
    problems.into_iter().map(on_node).collect()
}
