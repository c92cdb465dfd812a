//! Single fields as people read them, by the names that a file has for them.

use std::fmt;
use std::time::Duration;

use super::Object;
use crate::catalog::{Catalog, RealServer, VirtualService};
use crate::server::{Checksum, Forwarding, Tunnel};

/// A field that differs. What is not set is an empty text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldChange {
    /// Path of the field in the API's JSON, such as `config.weight`.
    pub name: &'static str,
    pub before: String,
    pub after: String,
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &str| match text {
            "" => "none".to_owned(),
            text => text.to_owned(),
        };
        let (before, after) = (shown(&self.before), shown(&self.after));
        write!(f, "{} {before} -> {after}", self.name)
    }
}

/// An object's fields, the same ones in the same order always; `None` when it does not exist.
type Shown = Option<Vec<(&'static str, String)>>;

pub(super) fn shown(catalog: &Catalog, object: &Object) -> Shown {
    let service = catalog.service(&object.service)?;
    Some(match &object.server {
        None => service_fields(service),
        Some(key) => server_fields(service.servers.get(key)?),
    })
}

/// The fields that differ; of a new object, those that are set. Nobody needs those of one that goes.
pub(super) fn changes(before: Shown, after: Shown) -> Vec<FieldChange> {
    let after = after.unwrap_or_default();
    let unset = || after.iter().map(|(name, _)| (*name, String::new()));
    let before = before.unwrap_or_else(|| unset().collect());
    let pairs = before.into_iter().zip(after);
    pairs
        .filter(|((_, before), (_, after))| before != after)
        .map(|((name, before), (_, after))| FieldChange {
            name,
            before,
            after,
        })
        .collect()
}

fn service_fields(service: &VirtualService) -> Vec<(&'static str, String)> {
    let flags: Vec<_> = service
        .config
        .flags
        .iter()
        .map(|flag| flag.name())
        .collect();
    let persistence = service.config.persistence.map(|persistence| {
        let engine = persistence.engine.map(|engine| engine.name());
        let engine = engine.map(|name| format!(" {name}")).unwrap_or_default();
        let (timeout, netmask) = (persistence.timeout, persistence.netmask.prefix());
        format!("{timeout}s/{netmask}{engine}")
    });
    vec![
        ("key", service.key.to_string()),
        ("config.scheduler", service.config.scheduler.to_string()),
        ("config.flags", flags.join("+")),
        ("config.persistence", persistence.unwrap_or_default()),
        ("config.onePacket", set(service.config.one_packet, "true")),
    ]
}

fn server_fields(server: &RealServer) -> Vec<(&'static str, String)> {
    let (forward, tunnel) = forwarding(server.config.forwarding);
    let limits = server.config.thresholds;
    let check = &server.check;
    let endpoint = check.endpoint.as_ref().map(ToString::to_string);
    vec![
        ("config.weight", server.config.weight.to_string()),
        ("config.forward", forward.to_owned()),
        ("config.tunnel", tunnel),
        ("config.upperThreshold", number(limits.upper())),
        ("config.lowerThreshold", number(limits.lower())),
        ("healthCheck.endpoint", endpoint.unwrap_or_default()),
        ("healthCheck.period", interval(check.period)),
        ("healthCheck.timeout", interval(check.timeout)),
        ("healthCheck.upThreshold", number(check.up_threshold)),
        ("healthCheck.downThreshold", number(check.down_threshold)),
    ]
}

fn forwarding(forwarding: Forwarding) -> (&'static str, String) {
    match forwarding {
        Forwarding::Route => ("ROUTE", String::new()),
        Forwarding::Masq => ("MASQ", String::new()),
        Forwarding::Tunnel(tunnel) => {
            let words = match tunnel {
                Tunnel::Ipip => "IPIP".to_owned(),
                Tunnel::Gue { port, checksum } => match checksum {
                    Checksum::None => format!("GUE {port}"),
                    Checksum::Full => format!("GUE {port} FULL"),
                    Checksum::Remote => format!("GUE {port} REMOTE"),
                },
                Tunnel::Gre { checksum: false } => "GRE".to_owned(),
                Tunnel::Gre { checksum: true } => "GRE FULL".to_owned(),
            };
            ("TUNNEL", words)
        }
    }
}

fn set(value: bool, name: &str) -> String {
    if value {
        name.to_owned()
    } else {
        String::new()
    }
}

/// 0 stands for none in every field of this kind.
fn number(value: u32) -> String {
    if value == 0 {
        String::new()
    } else {
        value.to_string()
    }
}

fn interval(value: Duration) -> String {
    if value.is_zero() {
        String::new()
    } else {
        format!("{value:?}")
    }
}
