//! `meradm list`.
//!
//! Three kinds of lines, each with a header. Names and addresses start further right from kind to
//! kind; what follows them is in columns that all kinds share, save that a service's scheduler
//! starts as much earlier as its address does.

use std::fmt::Write;

use merlin_proto::types::list_response::Item;
use merlin_proto::types::{RealServer, VirtualService};

use super::live::Live;
use super::words;
use super::{pad, widest};

const ARROW: &str = "-> ";

/// The cells of a line: where to, how, and what is left.
struct Cells {
    target: String,
    method: String,
    value: String,
    /// Behind the last column that is aligned.
    rest: String,
}

enum Line {
    Service {
        id: String,
        protocol: String,
        cells: Cells,
    },
    Server(Cells),
    Check(Cells),
    Note(String),
}

/// Lays out services with their servers; `live` adds what nodes hold.
pub(crate) fn catalog(items: &[Item], live: Option<&Live>) -> String {
    let mut lines = header();
    for item in items {
        let service = item.service.clone().unwrap_or_default();
        lines.push(service_line(&service));
        lines.extend(notes(live.map(|live| live.of_service(&service.id))));
        for server in &item.servers {
            lines.push(server_line(server));
            lines.extend(check_line(server));
            lines.extend(notes(live.map(|live| live.of_server(server))));
        }
    }
    let mut text = lay_out(&lines);
    text.extend(live.map(Live::rest));
    text
}

fn notes(words: Option<Vec<String>>) -> impl Iterator<Item = Line> {
    words.into_iter().flatten().map(Line::Note)
}

fn header() -> Vec<Line> {
    let cells = |[target, method, value, rest]: [&str; 4]| Cells {
        target: target.to_owned(),
        method: method.to_owned(),
        value: value.to_owned(),
        rest: rest.to_owned(),
    };
    vec![
        Line::Service {
            id: "ID".to_owned(),
            protocol: "Prot".to_owned(),
            cells: cells(["LocalAddress:Port", "Scheduler", "Flags", ""]),
        },
        Line::Server(cells(["RemoteAddress:Port", "Forward", "Weight", ""])),
        Line::Check(cells(["HealthEndpoint", "Period", "Timeout", "Up/Down"])),
    ]
}

fn service_line(service: &VirtualService) -> Line {
    let key = service.key.as_ref();
    let (protocol, target) = key.map(words::service_key).unwrap_or_default();
    let config = service.config.clone().unwrap_or_default();
    Line::Service {
        id: service.id.clone(),
        protocol,
        cells: Cells {
            target,
            value: words::flags(&config) + &words::service_extras(&config),
            method: config.scheduler,
            rest: String::new(),
        },
    }
}

fn server_line(server: &RealServer) -> Line {
    let config = server.config.unwrap_or_default();
    let weight = config.weight.unwrap_or_default();
    Line::Server(Cells {
        target: words::server_key(server),
        method: words::forward(&config),
        value: weight.to_string() + &words::server_extras(&config),
        rest: String::new(),
    })
}

fn check_line(server: &RealServer) -> Option<Line> {
    let [target, method, value, rest] = words::check(server)?;
    Some(Line::Check(Cells {
        target,
        method,
        value,
        rest,
    }))
}

fn lay_out(lines: &[Line]) -> String {
    let cells = || {
        lines.iter().filter_map(|line| match line {
            Line::Service { cells, .. } | Line::Server(cells) | Line::Check(cells) => Some(cells),
            Line::Note(_) => None,
        })
    };
    let services = || {
        lines.iter().filter_map(|line| match line {
            Line::Service { id, protocol, .. } => Some((id, protocol)),
            _ => None,
        })
    };
    // Every column ends in at least one space.
    let id_width = 1 + widest(services().map(|(id, _)| id.as_str()));
    let protocol_width = 1 + widest(services().map(|(_, protocol)| protocol.as_str()));
    let target_width = 1 + widest(cells().map(|cells| cells.target.as_str()));
    let method_width = 1 + widest(cells().map(|cells| cells.method.as_str()));
    let value_width = 1 + widest(lines.iter().filter_map(|line| match line {
        Line::Check(cells) => Some(cells.value.as_str()),
        _ => None,
    }));

    let indent = id_width + protocol_width;
    let behind_arrow = pad("", ARROW.len());
    let mut text = String::new();
    for line in lines {
        let (lead, cells, shift) = match line {
            Line::Service {
                id,
                protocol,
                cells,
            } => {
                let lead = pad(id, id_width) + &pad(protocol, protocol_width);
                (lead, cells, ARROW.len())
            }
            Line::Server(cells) => (pad("", indent) + ARROW, cells, 0),
            Line::Check(cells) => (pad("", indent) + &behind_arrow, cells, 0),
            Line::Note(words) => {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{:indent$}{behind_arrow}{words}", "");
                continue;
            }
        };
        let line = [
            lead,
            pad(&cells.target, target_width),
            pad(&cells.method, method_width + shift),
            pad(&cells.value, value_width),
            cells.rest.clone(),
        ];
        let _ = writeln!(text, "{}", line.concat().trim_end());
    }
    text
}
