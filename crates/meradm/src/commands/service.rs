//! Virtual services: from arguments to the API's messages.

use std::net::SocketAddr;

use merlin_proto::types::virtual_service::{Config, Key, Persistence};
use merlin_proto::types::{AddressFamily, Protocol, VirtualService};

use crate::cli::Condition;
use crate::cli::service::{Add, Command, Family, Kind, Options};
use crate::cli::values::ip_port;
use crate::client::Change;
use crate::failure::Failure;

pub(super) fn change(command: &Command) -> Result<(Change, Condition), Failure> {
    Ok(match command {
        Command::Add(add) => {
            let service = VirtualService {
                id: add.id.clone(),
                key: Some(key(add)?),
                config: Some(config(Some(&add.scheduler), &add.options)),
                ..Default::default()
            };
            (Change::CreateService(service), add.condition)
        }
        Command::Edit(edit) => {
            let service = VirtualService {
                id: edit.id.clone(),
                config: Some(config(edit.scheduler.as_ref(), &edit.options)),
                ..Default::default()
            };
            (Change::UpdateService(service), edit.condition)
        }
        Command::Del(del) => (Change::DeleteService(del.id.clone()), del.condition),
    })
}

fn key(add: &Add) -> Result<Key, Failure> {
    let protocol = match add.kind {
        Kind::Tcp => Protocol::Tcp,
        Kind::Udp => Protocol::Udp,
        Kind::Sctp => Protocol::Sctp,
        Kind::Fwmark => return marked(add),
    };
    if add.family.is_some() {
        return Err(Failure::usage("--family only goes with fwmark"));
    }
    let at: SocketAddr = ip_port(&add.target)
        .map_err(|words| Failure::usage(format!("invalid value {:?}: {words}", add.target)))?;
    Ok(Key {
        ip: at.ip().to_string(),
        port: at.port().into(),
        protocol: protocol.into(),
        ..Default::default()
    })
}

fn marked(add: &Add) -> Result<Key, Failure> {
    let mark = add.target.parse().ok().filter(|mark| *mark != 0);
    let fwmark = mark.ok_or_else(|| {
        Failure::usage(format!(
            "invalid value {:?}: a firewall mark is a number from 1 to {}",
            add.target,
            u32::MAX
        ))
    })?;
    let family = match add.family {
        None => AddressFamily::UnsetAddressFamily,
        Some(Family::Ipv4) => AddressFamily::Ipv4,
        Some(Family::Ipv6) => AddressFamily::Ipv6,
    };
    Ok(Key {
        fwmark,
        family: family.into(),
        ..Default::default()
    })
}

fn config(scheduler: Option<&String>, options: &Options) -> Config {
    let names = options.flags.iter().flat_map(|list| list.split(','));
    let persistence = Persistence {
        timeout_seconds: options.persistent,
        netmask: options.netmask.map(|netmask| netmask.prefix().into()),
        engine: options.pe.clone(),
    };
    let flags: Vec<_> = names
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    Config {
        scheduler: scheduler.cloned().unwrap_or_default(),
        // Only what clears the flags needs saying: a list that is not empty replaces them anyway.
        replace_flags: options.flags.is_some() && flags.is_empty(),
        flags,
        persistence: (persistence != Persistence::default()).then_some(persistence),
        one_packet: options.ops,
    }
}
