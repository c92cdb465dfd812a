//! Real servers: from arguments to the API's messages.

use std::time::Duration;

use merlin_proto::types::real_server::tunnel::{Checksum, Type};
use merlin_proto::types::real_server::{Config, HealthCheck, Key, Tunnel};
use merlin_proto::types::{ForwardMethod, RealServer};

use crate::cli::Condition;
use crate::cli::server::{self as cli, Command, Forward, Health, Options, TunnelType};
use crate::client::Change;

pub(super) fn change(command: &Command) -> (Change, Condition) {
    match command {
        Command::Add(add) => {
            let config = config(Some(add.weight), Some(add.forward), &add.options);
            let server = declared(&add.key, config, &add.options);
            (Change::CreateServer(server), add.condition)
        }
        Command::Edit(edit) => {
            let config = config(edit.weight, edit.forward, &edit.options);
            let server = declared(&edit.key, config, &edit.options);
            (Change::UpdateServer(server), edit.condition)
        }
        Command::Del(del) => (Change::DeleteServer(named(&del.key)), del.condition),
    }
}

fn named(key: &cli::Key) -> RealServer {
    RealServer {
        service_id: key.id.clone(),
        key: Some(Key {
            ip: key.at.ip().to_string(),
            port: key.at.port().into(),
        }),
        ..Default::default()
    }
}

fn declared(key: &cli::Key, config: Config, options: &Options) -> RealServer {
    let check = health_check(&options.health);
    RealServer {
        config: Some(config),
        health_check: (check != HealthCheck::default()).then_some(check),
        ..named(key)
    }
}

fn config(weight: Option<u32>, forward: Option<Forward>, options: &Options) -> Config {
    let forward = match forward {
        None => ForwardMethod::UnsetForwardMethod,
        Some(Forward::Route) => ForwardMethod::Route,
        Some(Forward::Tunnel) => ForwardMethod::Tunnel,
        Some(Forward::Masq) => ForwardMethod::Masq,
    };
    Config {
        weight,
        forward: forward.into(),
        upper_threshold: options.u_threshold,
        lower_threshold: options.l_threshold,
        tunnel: tunnel(&options.tunnel),
    }
}

fn tunnel(options: &cli::Tunnel) -> Option<Tunnel> {
    let kind = match options.tun_type? {
        TunnelType::Ipip => Type::Ipip,
        TunnelType::Gue => Type::Gue,
        TunnelType::Gre => Type::Gre,
    };
    let checksum = match (options.tun_csum, options.tun_remcsum) {
        (true, _) => Checksum::Full,
        (_, true) => Checksum::Remote,
        (false, false) => Checksum::None,
    };
    Some(Tunnel {
        r#type: kind.into(),
        port: options.tun_port.unwrap_or_default().into(),
        checksum: checksum.into(),
    })
}

fn health_check(options: &Health) -> HealthCheck {
    HealthCheck {
        endpoint: options.health_endpoint.clone(),
        period: options.health_period.map(wire_duration),
        timeout: options.health_timeout.map(wire_duration),
        up_threshold: options.health_up.unwrap_or_default(),
        down_threshold: options.health_down.unwrap_or_default(),
    }
}

fn wire_duration(duration: Duration) -> prost_types::Duration {
    // Arguments are at most 63 bits of nanoseconds.
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}
