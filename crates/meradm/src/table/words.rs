//! Single objects in the words of the tables. What a newer node sends is shown as it is.

use merlin_proto::types::{
    AddressFamily, ForwardMethod, Protocol, RealServer, VirtualService, real_server,
    virtual_service,
};
use merlin_proto::v1::event::Change;

use crate::duration;

/// Protocol, then address and port or the mark.
pub(super) fn service_key(key: &virtual_service::Key) -> (String, String) {
    if key.fwmark != 0 {
        let six = key.family == i32::from(AddressFamily::Ipv6);
        let mark = key.fwmark;
        let target = if six {
            format!("{mark} IPv6")
        } else {
            mark.to_string()
        };
        return ("FWM".to_owned(), target);
    }
    let protocol = Protocol::try_from(key.protocol).map_or_else(
        |_| key.protocol.to_string(),
        |protocol| protocol.as_str_name().to_owned(),
    );
    (protocol, address(&key.ip, key.port))
}

pub(super) fn server_key(server: &RealServer) -> String {
    let key = server.key.as_ref();
    key.map_or_else(String::new, |key| address(&key.ip, key.port))
}

pub(super) fn address(ip: &str, port: u32) -> String {
    match ip.contains(':') {
        true => format!("[{ip}]:{port}"),
        false => format!("{ip}:{port}"),
    }
}

pub(super) fn flags(config: &virtual_service::Config) -> String {
    format!("({})", config.flags.join(","))
}

/// What else is set for a service, each with a space before it.
pub(super) fn service_extras(config: &virtual_service::Config) -> String {
    let mut words = String::new();
    if let Some(persistence) = &config.persistence {
        words += &format!(" persistent {}", persistence.timeout_seconds());
        if let Some(netmask) = persistence.netmask {
            words += &format!(" netmask {netmask}");
        }
        if let Some(engine) = &persistence.engine {
            words += &format!(" pe {engine}");
        }
    }
    if config.one_packet() {
        words += " ops";
    }
    words
}

pub(super) fn forward(config: &real_server::Config) -> String {
    ForwardMethod::try_from(config.forward).map_or_else(
        |_| config.forward.to_string(),
        |method| method.as_str_name().to_owned(),
    )
}

/// What else is set for a real server, each with a space before it.
pub(super) fn server_extras(config: &real_server::Config) -> String {
    let mut words = String::new();
    if let Some(tunnel) = &config.tunnel {
        words += &format!(" {}", tunnel.r#type().as_str_name().to_lowercase());
        if tunnel.port != 0 {
            words += &format!(" port {}", tunnel.port);
        }
        match tunnel.checksum() {
            real_server::tunnel::Checksum::None => {}
            real_server::tunnel::Checksum::Full => words += " csum",
            real_server::tunnel::Checksum::Remote => words += " remcsum",
        }
    }
    if config.upper_threshold() != 0 {
        let (upper, lower) = (config.upper_threshold(), config.lower_threshold());
        words += &format!(" limit {upper}/{lower}");
    }
    words
}

/// The check of a server, unless it is switched off: endpoint, period, time-out, thresholds.
pub(super) fn check(server: &RealServer) -> Option<[String; 4]> {
    let check = server.health_check.as_ref()?;
    let endpoint = check.endpoint.clone().filter(|text| !text.is_empty())?;
    Some([
        endpoint,
        duration(check.period.as_ref()),
        duration(check.timeout.as_ref()),
        format!("{}/{}", check.up_threshold, check.down_threshold),
    ])
}

pub(super) fn duration(value: Option<&prost_types::Duration>) -> String {
    let value = value.copied().unwrap_or_default();
    match std::time::Duration::try_from(value) {
        Ok(duration) => duration::format(duration),
        Err(error) => error.to_string(),
    }
}

/// One change of a watch on one line.
pub(crate) fn event(revision: u64, change: &Change) -> String {
    let words = match change {
        Change::ServicePut(service) => format!("put service {}", whole_service(service)),
        Change::ServiceDeleted(service) => {
            let (protocol, target) = key_of(service);
            format!("del service {} {protocol} {target}", service.id)
        }
        Change::ServerPut(server) => format!("put server {}", whole_server(server)),
        Change::ServerDeleted(server) => {
            format!("del server {} {}", server.service_id, server_key(server))
        }
    };
    format!("{revision} {words}")
}

fn key_of(service: &VirtualService) -> (String, String) {
    service.key.as_ref().map(service_key).unwrap_or_default()
}

fn whole_service(service: &VirtualService) -> String {
    let (protocol, target) = key_of(service);
    let config = service.config.clone().unwrap_or_default();
    format!(
        "{} {protocol} {target} {} {}{}",
        service.id,
        config.scheduler,
        flags(&config),
        service_extras(&config)
    )
}

fn whole_server(server: &RealServer) -> String {
    let config = server.config.unwrap_or_default();
    let mut words = format!(
        "{} {} {} {}{}",
        server.service_id,
        server_key(server),
        forward(&config),
        config.weight.unwrap_or_default(),
        server_extras(&config)
    );
    if let Some(check) = check(server) {
        words += &format!(" {}", check.join(" "));
    }
    words
}
