//! Mutations in one line of words, for people who read what was done. Fields are named as the
//! administrator's commands name them.

use std::fmt::{self, Display, Formatter};

use crate::command::{
    CheckPatch, ForwardingPatch, KeyPatch, Mutation, PersistencePatch, ServerPatch, ServicePatch,
};
use crate::server::{Forwarding, HealthCheck, Tunnel};
use crate::service::SchedulerFlag;

impl Display for Mutation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateService { id, key, config } => {
                write!(f, "add service {id} {key} {}", config.scheduler)
            }
            Self::UpdateService { id, patch } => {
                write!(f, "edit service {id}")?;
                patch.write(&mut Fields::of(f))
            }
            Self::DeleteService { id } => write!(f, "delete service {id}"),
            Self::CreateServer {
                service,
                key,
                config,
                check,
            } => {
                write!(f, "add server {key} of {service}")?;
                let mut fields = Fields::of(f);
                fields.add(format_args!("weight {}", config.weight))?;
                fields.add(forwarding(config.forwarding))?;
                checked(check, &mut fields)
            }
            Self::UpdateServer {
                service,
                key,
                patch,
            } => {
                write!(f, "edit server {key} of {service}")?;
                patch.write(&mut Fields::of(f))
            }
            Self::DeleteServer { service, key } => write!(f, "delete server {key} of {service}"),
        }
    }
}

/// Writes `: a, b, c`, or nothing.
struct Fields<'f, 'g> {
    out: &'f mut Formatter<'g>,
    first: bool,
}

impl<'f, 'g> Fields<'f, 'g> {
    fn of(out: &'f mut Formatter<'g>) -> Self {
        Self { out, first: true }
    }

    fn add(&mut self, field: impl Display) -> fmt::Result {
        let between = if self.first { ": " } else { ", " };
        self.first = false;
        write!(self.out, "{between}{field}")
    }

    fn add_some<T: Display>(&mut self, name: &str, field: Option<T>) -> fmt::Result {
        match field {
            Some(field) => self.add(format_args!("{name} {field}")),
            None => Ok(()),
        }
    }
}

impl ServicePatch {
    fn write(&self, fields: &mut Fields<'_, '_>) -> fmt::Result {
        match self.key {
            Some(KeyPatch::Address {
                address,
                port,
                protocol,
            }) => {
                fields.add_some("protocol", protocol)?;
                fields.add_some("address", address)?;
                fields.add_some("port", port)?;
            }
            Some(KeyPatch::Fwmark { mark, .. }) => fields.add(format_args!("fwmark {mark}"))?,
            None => {}
        }
        fields.add_some("scheduler", self.scheduler)?;
        if let Some(flags) = &self.flags {
            let names: Vec<_> = flags
                .iter()
                .map(|flag: &SchedulerFlag| flag.name())
                .collect();
            fields.add(format_args!("flags ({})", names.join(",")))?;
        }
        if let Some(persistence) = &self.persistence {
            persistence.write(fields)?;
        }
        fields.add_some("one-packet", self.one_packet)
    }
}

impl PersistencePatch {
    fn write(&self, fields: &mut Fields<'_, '_>) -> fmt::Result {
        match self.timeout {
            Some(0) => fields.add("no persistence")?,
            Some(seconds) => fields.add(format_args!("persistence {seconds}s"))?,
            None => {}
        }
        fields.add_some(
            "netmask",
            self.netmask.map(|mask| format!("/{}", mask.prefix())),
        )?;
        let engine = self
            .engine
            .map(|engine| engine.map_or("none", |engine| engine.name()));
        fields.add_some("engine", engine)
    }
}

impl ServerPatch {
    fn write(&self, fields: &mut Fields<'_, '_>) -> fmt::Result {
        fields.add_some("weight", self.weight)?;
        fields.add_some(
            "forwarding",
            self.forwarding.map(|patch| match patch {
                ForwardingPatch::Route => "route",
                ForwardingPatch::Masq => "masq",
                ForwardingPatch::Tunnel(None) => "tunnel",
                ForwardingPatch::Tunnel(Some(tunnel)) => forwarding(Forwarding::Tunnel(tunnel)),
            }),
        )?;
        fields.add_some("upper threshold", self.upper_threshold)?;
        fields.add_some("lower threshold", self.lower_threshold)?;
        self.check.write(fields)
    }
}

impl CheckPatch {
    fn write(&self, fields: &mut Fields<'_, '_>) -> fmt::Result {
        match &self.endpoint {
            Some(Some(endpoint)) => fields.add(format_args!("health check {endpoint}"))?,
            Some(None) => fields.add("no health check")?,
            None => {}
        }
        fields.add_some("period", self.period.map(|period| format!("{period:?}")))?;
        fields.add_some(
            "timeout",
            self.timeout.map(|timeout| format!("{timeout:?}")),
        )?;
        fields.add_some("up", self.up_threshold)?;
        fields.add_some("down", self.down_threshold)
    }
}

fn checked(check: &HealthCheck, fields: &mut Fields<'_, '_>) -> fmt::Result {
    fields.add_some("health check", check.endpoint.as_ref())
}

fn forwarding(forwarding: Forwarding) -> &'static str {
    match forwarding {
        Forwarding::Route => "route",
        Forwarding::Masq => "masq",
        Forwarding::Tunnel(Tunnel::Ipip) => "tunnel ipip",
        Forwarding::Tunnel(Tunnel::Gue { .. }) => "tunnel gue",
        Forwarding::Tunnel(Tunnel::Gre { .. }) => "tunnel gre",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::server::{RealServerConfig, RealServerKey, Weight};
    use crate::service::{Protocol, ServiceConfig, ServiceId, ServiceKey};

    #[test]
    fn a_mutation_is_one_line_that_names_what_it_sets() {
        let id = || ServiceId::new("web").unwrap();
        let key = RealServerKey {
            address: [10, 1, 0, 1].into(),
            port: 80,
        };
        let weight = |weight| Weight::new(weight).unwrap();
        let endpoint = || Some("http://:80/ok".parse().unwrap());
        let table = [
            (
                Mutation::CreateService {
                    id: id(),
                    key: ServiceKey::Address {
                        address: [10, 0, 0, 1].into(),
                        port: 80,
                        protocol: Protocol::Tcp,
                    },
                    config: ServiceConfig::new("wrr".parse().unwrap()),
                },
                "add service web TCP 10.0.0.1:80 wrr",
            ),
            (
                Mutation::UpdateService {
                    id: id(),
                    patch: ServicePatch {
                        scheduler: Some("mh".parse().unwrap()),
                        flags: Some(vec![SchedulerFlag::MhPort]),
                        persistence: Some(PersistencePatch {
                            timeout: Some(30),
                            ..PersistencePatch::default()
                        }),
                        ..ServicePatch::default()
                    },
                },
                "edit service web: scheduler mh, flags (mh-port), persistence 30s",
            ),
            (Mutation::DeleteService { id: id() }, "delete service web"),
            (
                Mutation::CreateServer {
                    service: id(),
                    key,
                    config: RealServerConfig::new(weight(7), Forwarding::Masq),
                    check: HealthCheck {
                        endpoint: endpoint(),
                        ..HealthCheck::default()
                    },
                },
                "add server 10.1.0.1:80 of web: weight 7, masq, health check http://:80/ok",
            ),
            (
                Mutation::UpdateServer {
                    service: id(),
                    key,
                    patch: ServerPatch {
                        weight: Some(weight(0)),
                        check: CheckPatch {
                            endpoint: Some(None),
                            period: Some(Duration::from_millis(1500)),
                            ..CheckPatch::default()
                        },
                        ..ServerPatch::default()
                    },
                },
                "edit server 10.1.0.1:80 of web: weight 0, no health check, period 1.5s",
            ),
            (
                Mutation::UpdateServer {
                    service: id(),
                    key,
                    patch: ServerPatch::default(),
                },
                "edit server 10.1.0.1:80 of web",
            ),
            (
                Mutation::DeleteServer { service: id(), key },
                "delete server 10.1.0.1:80 of web",
            ),
        ];
        for (mutation, words) in table {
            assert_eq!(mutation.to_string(), words);
        }
    }
}
