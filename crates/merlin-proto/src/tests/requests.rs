//! How requests are read: what is refused and which field is blamed, what stays, what is replaced.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use merlin_model::command::{
    CheckPatch, ForwardingPatch, KeyPatch, Mutation, PersistencePatch, ServerPatch, ServicePatch,
};
use merlin_model::{
    Checksum, Family, Forwarding, HealthCheck, Netmask, Protocol, RealServerKey, SchedulerFlag,
    ServiceKey, Tunnel, Weight,
};

use crate::server::{self, UpdateServerError};
use crate::service;
use crate::types::{
    AddressFamily, ForwardMethod, Protocol as WireProtocol, RealServer, VirtualService,
    real_server, virtual_service,
};

fn web() -> VirtualService {
    VirtualService {
        id: "web".into(),
        key: Some(virtual_service::Key {
            ip: "10.0.0.1".into(),
            port: 80,
            protocol: WireProtocol::Tcp.into(),
            ..Default::default()
        }),
        config: Some(virtual_service::Config {
            scheduler: "wrr".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn backend() -> RealServer {
    RealServer {
        service_id: "web".into(),
        key: Some(real_server::Key {
            ip: "10.1.0.1".into(),
            port: 8080,
        }),
        config: Some(real_server::Config {
            weight: Some(2),
            forward: ForwardMethod::Masq.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn check() -> real_server::HealthCheck {
    real_server::HealthCheck {
        endpoint: Some("http://:556/health".into()),
        period: seconds(5),
        timeout: seconds(1),
        up_threshold: 2,
        down_threshold: 1,
    }
}

type Break<T> = fn(&mut T);

fn key(service: &mut VirtualService) -> &mut virtual_service::Key {
    service.key.get_or_insert_default()
}

fn config(service: &mut VirtualService) -> &mut virtual_service::Config {
    service.config.get_or_insert_default()
}

fn persistence(service: &mut VirtualService) -> &mut virtual_service::Persistence {
    config(service).persistence.get_or_insert_default()
}

fn server_key(server: &mut RealServer) -> &mut real_server::Key {
    server.key.get_or_insert_default()
}

fn server_config(server: &mut RealServer) -> &mut real_server::Config {
    server.config.get_or_insert_default()
}

fn server_check(server: &mut RealServer) -> &mut real_server::HealthCheck {
    server.health_check.get_or_insert_with(check)
}

fn tunnel(server: &mut RealServer) -> &mut real_server::Tunnel {
    let config = server_config(server);
    config.forward = ForwardMethod::Tunnel.into();
    config.tunnel.get_or_insert_default()
}

/// What no service may be, created or updated.
const BAD_SERVICES: &[(&str, Break<VirtualService>)] = &[
    ("id", |s| s.id.clear()),
    ("id", |s| s.id = "a/b".into()),
    ("key.ip", |s| key(s).ip = "999.999.999.999".into()),
    ("key.ip", |s| key(s).ip = "localhost".into()),
    ("key.port", |s| key(s).port = 99_999),
    ("key.protocol", |s| key(s).protocol = 999),
    ("key.fwmark", |s| key(s).fwmark = 7),
    ("key.family", |s| key(s).family = AddressFamily::Ipv4.into()),
    ("key.family", |s| key(s).family = 9),
    ("config.scheduler", |s| {
        config(s).scheduler = "fastest".into()
    }),
    ("config.flags", |s| config(s).flags = vec!["flag-4".into()]),
    ("config.persistence.netmask", |s| {
        persistence(s).netmask = Some(0);
    }),
    ("config.persistence.netmask", |s| {
        persistence(s).netmask = Some(129);
    }),
    ("config.persistence.engine", |s| {
        persistence(s).engine = Some("ftp".into());
    }),
];

/// What only a creation cannot do without.
const LACKING_SERVICES: &[(&str, Break<VirtualService>)] = &[
    ("key", |s| s.key = None),
    ("key.ip", |s| key(s).ip.clear()),
    ("key.protocol", |s| key(s).protocol = 0),
    ("config", |s| s.config = None),
    ("config.scheduler", |s| config(s).scheduler.clear()),
    ("config.persistence.timeout_seconds", |s| {
        persistence(s).engine = Some("sip".into());
    }),
    ("config.persistence.timeout_seconds", |s| {
        persistence(s).timeout_seconds = Some(u32::MAX);
    }),
    // Names of another scheduler's flags: an update may change the scheduler, so the catalog says.
    ("config.flags", |s| config(s).flags = vec!["sh-port".into()]),
];

/// What no real server may be, created or updated.
const BAD_SERVERS: &[(&str, Break<RealServer>)] = &[
    ("serviceID", |s| s.service_id.clear()),
    ("serviceID", |s| s.service_id = "a\n".into()),
    ("key.ip", |s| server_key(s).ip.clear()),
    ("key.ip", |s| server_key(s).ip = "999.999.999.999".into()),
    ("key.port", |s| server_key(s).port = 99_999),
    ("config.weight", |s| server_config(s).weight = Some(65_536)),
    ("config.forward", |s| server_config(s).forward = 4),
    ("config.tunnel", |s| {
        server_config(s).tunnel = Some(Default::default());
    }),
    ("config.tunnel.type", |s| tunnel(s).r#type = 3),
    ("config.tunnel.port", |s| tunnel(s).r#type = 1),
    ("config.tunnel.port", |s| tunnel(s).port = 6080),
    ("config.tunnel.checksum", |s| tunnel(s).checksum = 1),
    ("config.tunnel.checksum", |s| tunnel(s).checksum = 9),
    ("config.tunnel.checksum", |s| {
        tunnel(s).r#type = 2;
        tunnel(s).checksum = 2;
    }),
    ("health_check.endpoint", |s| {
        server_check(s).endpoint = Some("bogus://:556/health".into());
    }),
    ("health_check.endpoint", |s| {
        server_check(s).endpoint = Some("http:///health".into());
    }),
    ("health_check.period", |s| {
        server_check(s).period = seconds(-5);
    }),
    ("health_check.period", |s| {
        server_check(s).period = seconds(i64::MAX);
    }),
    ("health_check.timeout", |s| {
        server_check(s).timeout = Some(prost_types::Duration {
            seconds: 1,
            nanos: -1,
        });
    }),
    ("health_check.timeout", |s| {
        server_check(s).timeout = Some(prost_types::Duration {
            seconds: 1,
            nanos: 1_000_000_000,
        });
    }),
];

const LACKING_SERVERS: &[(&str, Break<RealServer>)] = &[
    ("key", |s| s.key = None),
    ("config", |s| s.config = None),
    ("config.forward", |s| server_config(s).forward = 0),
    ("config.weight", |s| server_config(s).weight = None),
    ("config.lower_threshold", |s| {
        server_config(s).lower_threshold = Some(1);
    }),
];

#[test]
fn the_example_requests_are_fine() {
    assert!(service::create(&web()).is_ok());
    assert!(service::update(&web()).is_ok());
    assert!(server::create(&backend()).is_ok());
    assert!(server::update(&backend()).is_ok());
    let mut checked = backend();
    server_check(&mut checked);
    assert!(server::create(&checked).is_ok());
}

#[test]
fn a_bad_field_of_a_service_is_named() {
    for (field, breaks) in BAD_SERVICES {
        let mut message = web();
        breaks(&mut message);
        let (create, update) = (service::create(&message), service::update(&message));
        assert_eq!(create.unwrap_err().field, *field, "creating {message:?}");
        assert_eq!(update.unwrap_err().field, *field, "updating {message:?}");
    }
    for (field, breaks) in LACKING_SERVICES {
        let mut message = web();
        breaks(&mut message);
        let create = service::create(&message);
        assert_eq!(create.unwrap_err().field, *field, "creating {message:?}");
        assert!(service::update(&message).is_ok(), "updating {message:?}");
    }
    assert_eq!(service::delete("").unwrap_err().field, "id");
}

#[test]
fn a_bad_field_of_a_real_server_is_named() {
    for (field, breaks) in BAD_SERVERS {
        let mut message = backend();
        breaks(&mut message);
        let create = server::create(&message);
        assert_eq!(create.unwrap_err().field, *field, "creating {message:?}");
        match server::update(&message).unwrap_err() {
            UpdateServerError::Invalid(invalid) => {
                assert_eq!(invalid.field, *field, "updating {message:?}");
            }
            unnamed => panic!("{unnamed}: {message:?}"),
        }
    }
    for (field, breaks) in LACKING_SERVERS {
        let mut message = backend();
        breaks(&mut message);
        let create = server::create(&message);
        assert_eq!(create.unwrap_err().field, *field, "creating {message:?}");
    }
    let keyless = RealServer {
        key: None,
        ..backend()
    };
    assert_eq!(server::delete(&keyless).unwrap_err().field, "key");
}

#[test]
fn an_update_of_a_real_server_without_a_key_finds_none() {
    use crate::status::ToStatus;

    let error = server::update(&RealServer {
        key: None,
        ..backend()
    });
    let status = error.unwrap_err().to_status();
    assert_eq!(status.code(), tonic::Code::NotFound);
}

#[test]
fn an_empty_update_changes_no_field() {
    let service = service::update(&VirtualService {
        id: "web".into(),
        key: None,
        config: Some(Default::default()),
        ..Default::default()
    });
    let Mutation::UpdateService { patch, .. } = service.unwrap() else {
        panic!("not an update");
    };
    assert_eq!(patch, ServicePatch::default());

    let server = server::update(&RealServer {
        config: Some(Default::default()),
        health_check: Some(Default::default()),
        ..backend()
    });
    let Mutation::UpdateServer { patch, .. } = server.unwrap() else {
        panic!("not an update");
    };
    assert_eq!(patch, ServerPatch::default());
}

#[test]
fn an_update_of_a_service_holds_what_is_present() {
    let patch = |breaks: Break<VirtualService>| {
        let mut message = VirtualService {
            id: "web".into(),
            ..Default::default()
        };
        breaks(&mut message);
        match service::update(&message) {
            Ok(Mutation::UpdateService { patch, .. }) => patch,
            other => panic!("{other:?}"),
        }
    };
    let none = ServicePatch::default;
    assert_eq!(
        patch(|s| config(s).flags = vec!["sh-port".into()]).flags,
        Some(vec![SchedulerFlag::ShPort])
    );
    assert_eq!(
        patch(|s| config(s).replace_flags = true).flags,
        Some(vec![])
    );
    assert_eq!(
        patch(|s| config(s).one_packet = Some(false)),
        ServicePatch {
            one_packet: Some(false),
            ..none()
        }
    );
    assert_eq!(
        patch(|s| persistence(s).timeout_seconds = Some(0)).persistence,
        Some(PersistencePatch {
            timeout: Some(0),
            ..Default::default()
        })
    );
    assert_eq!(
        patch(|s| {
            persistence(s).engine = Some(String::new());
            persistence(s).netmask = Some(24);
        })
        .persistence,
        Some(PersistencePatch {
            timeout: None,
            netmask: Some(Netmask::from_prefix(24).unwrap()),
            engine: Some(None),
        })
    );
    assert_eq!(
        patch(|s| key(s).port = 443).key,
        Some(KeyPatch::Address {
            address: None,
            port: NonZeroU16::new(443),
            protocol: None,
        })
    );
    assert_eq!(
        patch(|s| key(s).fwmark = 7).key,
        Some(KeyPatch::Fwmark {
            mark: NonZeroU32::new(7).unwrap(),
            family: None,
        })
    );
}

#[test]
fn an_update_of_a_real_server_holds_what_is_present() {
    let patch = |breaks: Break<RealServer>| {
        let mut message = RealServer {
            config: None,
            ..backend()
        };
        breaks(&mut message);
        match server::update(&message) {
            Ok(Mutation::UpdateServer { patch, .. }) => patch,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        patch(|s| server_config(s).weight = Some(0)).weight,
        Some(Weight::ZERO)
    );
    assert_eq!(
        patch(|s| server_config(s).forward = 2).forwarding,
        Some(ForwardingPatch::Tunnel(None))
    );
    assert_eq!(
        patch(|s| {
            tunnel(s);
        })
        .forwarding,
        Some(ForwardingPatch::Tunnel(Some(Tunnel::Ipip)))
    );
    assert_eq!(
        patch(|s| server_config(s).upper_threshold = Some(0)).upper_threshold,
        Some(0)
    );
    let changes = |breaks: Break<real_server::HealthCheck>| {
        let mut message = backend();
        breaks(message.health_check.get_or_insert_default());
        match server::update(&message) {
            Ok(Mutation::UpdateServer { patch, .. }) => patch.check,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        changes(|c| c.endpoint = Some(String::new())),
        CheckPatch {
            endpoint: Some(None),
            ..Default::default()
        }
    );
    assert_eq!(
        changes(|c| {
            c.period = seconds(60);
            c.up_threshold = 5;
        }),
        CheckPatch {
            period: Some(Duration::from_secs(60)),
            up_threshold: NonZeroU32::new(5),
            ..Default::default()
        }
    );
}

#[test]
fn a_check_without_an_endpoint_may_be_anything_and_is_off() {
    for endpoint in [None, Some(String::new())] {
        let message = RealServer {
            health_check: Some(real_server::HealthCheck {
                endpoint,
                period: None,
                timeout: seconds(0),
                up_threshold: 7,
                down_threshold: 0,
            }),
            ..backend()
        };
        let Ok(Mutation::CreateServer { check, .. }) = server::create(&message) else {
            panic!("refused");
        };
        let expected = HealthCheck {
            up_threshold: 7,
            ..HealthCheck::default()
        };
        assert_eq!(check, expected);
        assert_eq!(check.check(), Ok(None));
    }
}

#[test]
fn a_switched_off_check_keeps_its_fields_in_listings() {
    let message = RealServer {
        health_check: Some(real_server::HealthCheck {
            endpoint: Some(String::new()),
            ..check()
        }),
        ..backend()
    };
    let (id, server) = server::stored(&message).unwrap();
    assert_eq!(server::record(&id, &server), message);
}

#[test]
fn firewall_marks_and_all_protocols_are_keys() {
    let created = |breaks: Break<VirtualService>| {
        let mut message = VirtualService { key: None, ..web() };
        breaks(&mut message);
        match service::create(&message) {
            Ok(Mutation::CreateService { key, .. }) => key,
            other => panic!("{other:?}"),
        }
    };
    let mark = |family| ServiceKey::Fwmark {
        mark: NonZeroU32::new(7).unwrap(),
        family,
    };
    assert_eq!(created(|s| key(s).fwmark = 7), mark(Family::Ipv4));
    assert_eq!(
        created(|s| {
            key(s).fwmark = 7;
            key(s).family = AddressFamily::Ipv6.into();
        }),
        mark(Family::Ipv6)
    );
    let sctp = created(|s| {
        *key(s) = virtual_service::Key {
            ip: "fd00::1".into(),
            port: 80,
            protocol: WireProtocol::Sctp.into(),
            ..Default::default()
        };
    });
    assert_eq!(
        sctp,
        ServiceKey::Address {
            address: "fd00::1".parse().unwrap(),
            port: 80,
            protocol: Protocol::Sctp,
        }
    );
}

#[test]
fn an_ipv4_address_in_ipv6_clothes_is_an_ipv4_address() {
    let mut message = backend();
    server_key(&mut message).ip = "::ffff:10.1.0.1".into();
    let (_, key) = server::identity(&message).unwrap();
    assert_eq!(key, RealServerKey::new("10.1.0.1".parse().unwrap(), 8080));
}

#[test]
fn tunnels_are_read_with_their_encapsulation() {
    let forwarding = |kind, port, checksum| {
        let mut message = backend();
        *tunnel(&mut message) = real_server::Tunnel {
            r#type: kind,
            port,
            checksum,
        };
        let (_, server) = server::stored(&message).unwrap();
        let again = server::record(&merlin_model::ServiceId::new("web").unwrap(), &server);
        assert_eq!(server::stored(&again).unwrap().1, server);
        server.config.forwarding
    };
    let gue = |checksum| {
        Forwarding::Tunnel(Tunnel::Gue {
            port: NonZeroU16::new(6080).unwrap(),
            checksum,
        })
    };
    assert_eq!(forwarding(0, 0, 0), Forwarding::Tunnel(Tunnel::Ipip));
    assert_eq!(forwarding(1, 6080, 0), gue(Checksum::None));
    assert_eq!(forwarding(1, 6080, 1), gue(Checksum::Full));
    assert_eq!(forwarding(1, 6080, 2), gue(Checksum::Remote));
    assert_eq!(
        forwarding(2, 0, 1),
        Forwarding::Tunnel(Tunnel::Gre { checksum: true })
    );
}
