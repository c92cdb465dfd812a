//! Real servers between the wire and the model; see [`service`](crate::service) for the readings
//! of one message.

use std::num::{NonZeroU16, NonZeroU32};

use merlin_model::catalog::{RealServer, Revision};
use merlin_model::command::{CheckPatch, ForwardingPatch, Mutation, ServerPatch};
use merlin_model::{
    Checksum, Forwarding, HealthCheck, HttpEndpoint, Invalid, RealServerConfig, RealServerKey,
    ServiceId, Thresholds, Tunnel, Weight,
};

use crate::fields;
use crate::types;
use crate::types::ForwardMethod;
use crate::types::real_server as wire;

/// Why a request to update a real server cannot become a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateServerError {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No key names no server, and clients rely on that not being found.
    #[error("service {0} has no such real server: the request has no key")]
    Unnamed(ServiceId),
}

/// Reads the request to create a real server.
pub fn create(message: &types::RealServer) -> Result<Mutation, Invalid> {
    let (service, key, config, check) = declaration(message)?;
    Ok(Mutation::CreateServer {
        service,
        key,
        config,
        check,
    })
}

/// Reads the request to update a real server.
pub fn update(message: &types::RealServer) -> Result<Mutation, UpdateServerError> {
    let service = fields::service_id("serviceID", &message.service_id)?;
    let key = match &message.key {
        Some(wire_key) => key(wire_key)?,
        None => return Err(UpdateServerError::Unnamed(service)),
    };
    let patch = match &message.config {
        Some(config) => config_patch(config)?,
        None => ServerPatch::default(),
    };
    let check = match &message.health_check {
        Some(check) => check_patch(check)?,
        None => CheckPatch::default(),
    };
    Ok(Mutation::UpdateServer {
        service,
        key,
        patch: ServerPatch { check, ..patch },
    })
}

/// Reads the request to delete a real server.
pub fn delete(message: &types::RealServer) -> Result<Mutation, Invalid> {
    let (service, key) = identity(message)?;
    Ok(Mutation::DeleteServer { service, key })
}

/// Reads a real server as stores keep it.
pub fn stored(message: &types::RealServer) -> Result<(ServiceId, RealServer), Invalid> {
    let (service, key, config, check) = declaration(message)?;
    let server = RealServer {
        key,
        config,
        check,
        created: Revision(message.created_revision),
        changed: Revision(message.changed_revision),
    };
    Ok((service, server))
}

/// Reads which real server is meant.
pub fn identity(message: &types::RealServer) -> Result<(ServiceId, RealServerKey), Invalid> {
    let service = fields::service_id("serviceID", &message.service_id)?;
    let key = key(fields::required("key", message.key.as_ref())?)?;
    Ok((service, key))
}

/// Reads a real server's key.
pub fn key(message: &wire::Key) -> Result<RealServerKey, Invalid> {
    let address = fields::required("key.ip", fields::address(&message.ip)?)?;
    Ok(RealServerKey::new(address, fields::port(message.port)?))
}

fn declaration(
    message: &types::RealServer,
) -> Result<(ServiceId, RealServerKey, RealServerConfig, HealthCheck), Invalid> {
    let (service, key) = identity(message)?;
    let config = config(fields::required("config", message.config.as_ref())?)?;
    let check = match &message.health_check {
        Some(check) => health_check(check)?,
        None => HealthCheck::default(),
    };
    Ok((service, key, config, check))
}

fn config(message: &wire::Config) -> Result<RealServerConfig, Invalid> {
    let forwarding = match fields::required("config.forward", forwarding(message)?)? {
        ForwardingPatch::Route => Forwarding::Route,
        ForwardingPatch::Masq => Forwarding::Masq,
        ForwardingPatch::Tunnel(tunnel) => Forwarding::Tunnel(tunnel.unwrap_or_default()),
    };
    Ok(RealServerConfig {
        weight: Weight::new(fields::required("config.weight", message.weight)?)?,
        forwarding,
        thresholds: Thresholds::new(
            message.upper_threshold.unwrap_or_default(),
            message.lower_threshold.unwrap_or_default(),
        )?,
    })
}

fn config_patch(message: &wire::Config) -> Result<ServerPatch, Invalid> {
    Ok(ServerPatch {
        weight: message.weight.map(Weight::new).transpose()?,
        forwarding: forwarding(message)?,
        upper_threshold: message.upper_threshold,
        lower_threshold: message.lower_threshold,
        check: CheckPatch::default(),
    })
}

fn forwarding(message: &wire::Config) -> Result<Option<ForwardingPatch>, Invalid> {
    let unknown = |_| {
        Invalid::new(
            "config.forward",
            format!(
                "unknown forwarding method {}: one of ROUTE, TUNNEL, MASQ",
                message.forward
            ),
        )
    };
    let method = ForwardMethod::try_from(message.forward).map_err(unknown)?;
    if message.tunnel.is_some() && method != ForwardMethod::Tunnel {
        return Err(Invalid::new(
            "config.tunnel",
            "only goes with forwarding method TUNNEL",
        ));
    }
    Ok(match method {
        ForwardMethod::UnsetForwardMethod => None,
        ForwardMethod::Route => Some(ForwardingPatch::Route),
        ForwardMethod::Masq => Some(ForwardingPatch::Masq),
        ForwardMethod::Tunnel => {
            let tunnel = message.tunnel.as_ref().map(tunnel).transpose()?;
            Some(ForwardingPatch::Tunnel(tunnel))
        }
    })
}

fn tunnel(message: &wire::Tunnel) -> Result<Tunnel, Invalid> {
    use wire::tunnel::{Checksum as WireChecksum, Type};

    let kind = Type::try_from(message.r#type).map_err(|_| {
        Invalid::new(
            "config.tunnel.type",
            format!("unknown type {}: one of IPIP, GUE, GRE", message.r#type),
        )
    })?;
    let checksum = match WireChecksum::try_from(message.checksum) {
        Ok(WireChecksum::None) => Checksum::None,
        Ok(WireChecksum::Full) => Checksum::Full,
        Ok(WireChecksum::Remote) => Checksum::Remote,
        Err(_) => {
            return Err(Invalid::new(
                "config.tunnel.checksum",
                format!(
                    "unknown checksum {}: one of NONE, FULL, REMOTE",
                    message.checksum
                ),
            ));
        }
    };
    if kind != Type::Gue && message.port != 0 {
        return Err(Invalid::new("config.tunnel.port", "only goes with GUE"));
    }
    match (kind, checksum) {
        (Type::Gue, checksum) => Ok(Tunnel::Gue {
            port: merlin_model::service::port("config.tunnel.port", message.port)?,
            checksum,
        }),
        (Type::Ipip, Checksum::None) => Ok(Tunnel::Ipip),
        (Type::Gre, Checksum::None) => Ok(Tunnel::Gre { checksum: false }),
        (Type::Gre, Checksum::Full) => Ok(Tunnel::Gre { checksum: true }),
        (Type::Ipip, _) => Err(Invalid::new(
            "config.tunnel.checksum",
            "IPIP carries none: only with GUE or GRE",
        )),
        (Type::Gre, Checksum::Remote) => Err(Invalid::new(
            "config.tunnel.checksum",
            "remote checksum offload only goes with GUE",
        )),
    }
}

fn health_check(message: &wire::HealthCheck) -> Result<HealthCheck, Invalid> {
    let patch = check_patch(message)?;
    Ok(HealthCheck {
        endpoint: patch.endpoint.flatten(),
        period: patch.period.unwrap_or_default(),
        timeout: patch.timeout.unwrap_or_default(),
        up_threshold: message.up_threshold,
        down_threshold: message.down_threshold,
    })
}

fn check_patch(message: &wire::HealthCheck) -> Result<CheckPatch, Invalid> {
    let endpoint = match message.endpoint.as_deref() {
        None => None,
        Some("") => Some(None),
        Some(endpoint) => Some(Some(endpoint.parse::<HttpEndpoint>()?)),
    };
    let duration = |field, value: Option<_>| {
        let parse = |value| fields::duration(field, value);
        value.map(parse).transpose()
    };
    Ok(CheckPatch {
        endpoint,
        period: duration("health_check.period", message.period)?,
        timeout: duration("health_check.timeout", message.timeout)?,
        up_threshold: NonZeroU32::new(message.up_threshold),
        down_threshold: NonZeroU32::new(message.down_threshold),
    })
}

// === to the wire ===

impl From<&RealServerKey> for wire::Key {
    fn from(key: &RealServerKey) -> Self {
        Self {
            ip: key.address.to_string(),
            port: key.port.into(),
        }
    }
}

impl From<&RealServerConfig> for wire::Config {
    fn from(config: &RealServerConfig) -> Self {
        let (forward, tunnel) = match config.forwarding {
            Forwarding::Route => (ForwardMethod::Route, None),
            Forwarding::Masq => (ForwardMethod::Masq, None),
            Forwarding::Tunnel(Tunnel::Ipip) => (ForwardMethod::Tunnel, None),
            Forwarding::Tunnel(tunnel) => (ForwardMethod::Tunnel, Some(wire_tunnel(tunnel))),
        };
        // No limit is absent, so that a plain record is the one the earlier system wrote.
        let limit = |threshold: u32| (threshold != 0).then_some(threshold);
        Self {
            weight: Some(config.weight.get().into()),
            forward: forward.into(),
            upper_threshold: limit(config.thresholds.upper()),
            lower_threshold: limit(config.thresholds.lower()),
            tunnel,
        }
    }
}

impl From<&HealthCheck> for wire::HealthCheck {
    /// A check that is switched off says so with an empty endpoint; one that never was is empty.
    fn from(check: &HealthCheck) -> Self {
        if *check == HealthCheck::default() {
            return Self::default();
        }
        let duration = |value: std::time::Duration| {
            let is_set = !value.is_zero();
            is_set.then(|| fields::wire_duration(value))
        };
        let endpoint = check.endpoint.as_ref();
        Self {
            endpoint: Some(endpoint.map(ToString::to_string).unwrap_or_default()),
            period: duration(check.period),
            timeout: duration(check.timeout),
            up_threshold: check.up_threshold,
            down_threshold: check.down_threshold,
        }
    }
}

/// A real server as answers and records carry it.
pub fn record(service: &ServiceId, server: &RealServer) -> types::RealServer {
    types::RealServer {
        created_revision: server.created.0,
        changed_revision: server.changed.0,
        ..declared(service, &server.key, &server.config, &server.check)
    }
}

/// A real server as a creation or a record declares it.
pub(crate) fn declared(
    service: &ServiceId,
    key: &RealServerKey,
    config: &RealServerConfig,
    check: &HealthCheck,
) -> types::RealServer {
    types::RealServer {
        config: Some(config.into()),
        health_check: Some(check.into()),
        ..identified(service, key)
    }
}

/// A real server of which only the identity is told.
pub(crate) fn identified(service: &ServiceId, key: &RealServerKey) -> types::RealServer {
    types::RealServer {
        service_id: service.to_string(),
        key: Some(key.into()),
        ..Default::default()
    }
}

/// The message that [`update`] reads as this patch.
pub(crate) fn patched(
    service: &ServiceId,
    key: &RealServerKey,
    patch: &ServerPatch,
) -> types::RealServer {
    let (forward, tunnel) = match patch.forwarding {
        None => (ForwardMethod::UnsetForwardMethod, None),
        Some(ForwardingPatch::Route) => (ForwardMethod::Route, None),
        Some(ForwardingPatch::Masq) => (ForwardMethod::Masq, None),
        Some(ForwardingPatch::Tunnel(tunnel)) => (ForwardMethod::Tunnel, tunnel.map(wire_tunnel)),
    };
    let endpoint = patch.check.endpoint.as_ref();
    types::RealServer {
        config: Some(wire::Config {
            weight: patch.weight.map(|weight| weight.get().into()),
            forward: forward.into(),
            upper_threshold: patch.upper_threshold,
            lower_threshold: patch.lower_threshold,
            tunnel,
        }),
        health_check: Some(wire::HealthCheck {
            endpoint: endpoint.map(|e| e.as_ref().map(ToString::to_string).unwrap_or_default()),
            period: patch.check.period.map(fields::wire_duration),
            timeout: patch.check.timeout.map(fields::wire_duration),
            up_threshold: patch.check.up_threshold.map_or(0, NonZeroU32::get),
            down_threshold: patch.check.down_threshold.map_or(0, NonZeroU32::get),
        }),
        ..identified(service, key)
    }
}

fn wire_tunnel(tunnel: Tunnel) -> wire::Tunnel {
    use wire::tunnel::{Checksum as WireChecksum, Type};

    let (kind, port, checksum) = match tunnel {
        Tunnel::Ipip => (Type::Ipip, 0, WireChecksum::None),
        Tunnel::Gue { port, checksum } => {
            let checksum = match checksum {
                Checksum::None => WireChecksum::None,
                Checksum::Full => WireChecksum::Full,
                Checksum::Remote => WireChecksum::Remote,
            };
            (Type::Gue, NonZeroU16::get(port), checksum)
        }
        Tunnel::Gre { checksum: false } => (Type::Gre, 0, WireChecksum::None),
        Tunnel::Gre { checksum: true } => (Type::Gre, 0, WireChecksum::Full),
    };
    wire::Tunnel {
        r#type: kind.into(),
        port: port.into(),
        checksum: checksum.into(),
    }
}
