//! Every value that the model's types can hold.

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use merlin_model::catalog::{Answer, Catalog, RealServer, Remembered, Revision, VirtualService};
use merlin_model::command::{
    CheckPatch, Command, ForwardingPatch, KeyPatch, Mutation, PersistencePatch, Rejection, Reply,
    RequestId, ServerPatch, ServicePatch, Timestamp,
};
use merlin_model::{
    Actor, AuditTrail, Checksum, Family, Forwarding, HealthCheck, HttpEndpoint, Invalid, Netmask,
    Persistence, PersistenceEngine, Protocol, RealServerConfig, RealServerKey, Role, Scheduler,
    SchedulerFlag, SchedulerFlags, ServiceConfig, ServiceId, ServiceKey, Thresholds, Tunnel,
    Weight,
};
use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

fn service_id() -> impl Strategy<Value = ServiceId> {
    "[a-zA-Z0-9 .é_-]{1,20}".prop_filter_map("dots are not names", |id| ServiceId::new(&id).ok())
}

fn address() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>().prop_map(|address| address.to_canonical())
}

fn family() -> impl Strategy<Value = Family> {
    select(vec![Family::Ipv4, Family::Ipv6])
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn mark() -> impl Strategy<Value = NonZeroU32> {
    any::<NonZeroU32>()
}

fn service_key() -> impl Strategy<Value = ServiceKey> {
    prop_oneof![
        (address(), any::<u16>(), protocol()).prop_map(|(address, port, protocol)| {
            ServiceKey::Address {
                address,
                port,
                protocol,
            }
        }),
        (mark(), family()).prop_map(|(mark, family)| ServiceKey::Fwmark { mark, family }),
    ]
}

fn server_key() -> impl Strategy<Value = RealServerKey> {
    (address(), any::<u16>()).prop_map(|(address, port)| RealServerKey::new(address, port))
}

fn scheduler() -> impl Strategy<Value = Scheduler> {
    select(Scheduler::ALL.to_vec())
}

fn flag() -> impl Strategy<Value = SchedulerFlag> {
    select(SchedulerFlag::ALL.to_vec())
}

fn flags() -> impl Strategy<Value = SchedulerFlags> {
    let flags = [
        SchedulerFlag::Flag1,
        SchedulerFlag::Flag2,
        SchedulerFlag::Flag3,
    ];
    proptest::sample::subsequence(flags.to_vec(), 0..=3)
        .prop_map(|flags| SchedulerFlags::resolve(Scheduler::Rr, &flags).unwrap())
}

fn netmask() -> impl Strategy<Value = Netmask> {
    (1..=128u32).prop_map(|prefix| Netmask::from_prefix(prefix).unwrap())
}

fn persistence() -> impl Strategy<Value = Persistence> {
    let engine = of(Just(PersistenceEngine::Sip));
    (1..=Persistence::MAX_TIMEOUT, netmask(), engine).prop_map(|(timeout, netmask, engine)| {
        Persistence {
            timeout: NonZeroU32::new(timeout).unwrap(),
            netmask,
            engine,
        }
    })
}

fn service_config() -> impl Strategy<Value = ServiceConfig> {
    (scheduler(), flags(), of(persistence()), any::<bool>()).prop_map(
        |(scheduler, flags, persistence, one_packet)| ServiceConfig {
            scheduler,
            flags,
            persistence,
            one_packet,
        },
    )
}

fn weight() -> impl Strategy<Value = Weight> {
    any::<u16>().prop_map(|weight| Weight::new(weight.into()).unwrap())
}

fn tunnel() -> impl Strategy<Value = Tunnel> {
    let checksum = select(vec![Checksum::None, Checksum::Full, Checksum::Remote]);
    prop_oneof![
        Just(Tunnel::Ipip),
        (any::<NonZeroU16>(), checksum).prop_map(|(port, checksum)| Tunnel::Gue { port, checksum }),
        any::<bool>().prop_map(|checksum| Tunnel::Gre { checksum }),
    ]
}

fn forwarding() -> impl Strategy<Value = Forwarding> {
    prop_oneof![
        Just(Forwarding::Route),
        Just(Forwarding::Masq),
        tunnel().prop_map(Forwarding::Tunnel),
    ]
}

fn thresholds() -> impl Strategy<Value = Thresholds> {
    (0..=Thresholds::MAX)
        .prop_flat_map(|upper| (Just(upper), 0..=upper))
        .prop_map(|(upper, lower)| Thresholds::new(upper, lower).unwrap())
}

fn server_config() -> impl Strategy<Value = RealServerConfig> {
    (weight(), forwarding(), thresholds()).prop_map(|(weight, forwarding, thresholds)| {
        RealServerConfig {
            weight,
            forwarding,
            thresholds,
        }
    })
}

fn endpoint() -> impl Strategy<Value = HttpEndpoint> {
    (1..=u16::MAX, "(/[!-\"$-~]{0,20}|\\?[a-z=&]{1,9}|)")
        .prop_map(|(port, path)| format!("http://:{port}{path}").parse().unwrap())
}

/// The catalog bounds the durations of checks that are on; those of checks that are off can be
/// anything that the wire carries.
fn interval() -> impl Strategy<Value = Duration> {
    (0..315_576_000_000u64, 0..1_000_000_000u32)
        .prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

fn health_check() -> impl Strategy<Value = HealthCheck> {
    let thresholds = (any::<u32>(), any::<u32>());
    let some = (of(endpoint()), interval(), interval(), thresholds).prop_map(
        |(endpoint, period, timeout, (up_threshold, down_threshold))| HealthCheck {
            endpoint,
            period,
            timeout,
            up_threshold,
            down_threshold,
        },
    );
    prop_oneof![1 => Just(HealthCheck::default()), 4 => some]
}

// === patches ===

fn key_patch() -> impl Strategy<Value = KeyPatch> {
    prop_oneof![
        (of(address()), of(any::<NonZeroU16>()), of(protocol())).prop_map(
            |(address, port, protocol)| KeyPatch::Address {
                address,
                port,
                protocol,
            }
        ),
        (mark(), of(family())).prop_map(|(mark, family)| KeyPatch::Fwmark { mark, family }),
    ]
}

fn persistence_patch() -> impl Strategy<Value = PersistencePatch> {
    let engine = of(of(Just(PersistenceEngine::Sip)));
    (of(any::<u32>()), of(netmask()), engine).prop_map(|(timeout, netmask, engine)| {
        PersistencePatch {
            timeout,
            netmask,
            engine,
        }
    })
}

fn service_patch() -> impl Strategy<Value = ServicePatch> {
    (
        of(key_patch()),
        of(scheduler()),
        of(vec(flag(), 0..4)),
        of(persistence_patch()),
        of(any::<bool>()),
    )
        .prop_map(
            |(key, scheduler, flags, persistence, one_packet)| ServicePatch {
                key,
                scheduler,
                flags,
                persistence,
                one_packet,
            },
        )
}

fn forwarding_patch() -> impl Strategy<Value = ForwardingPatch> {
    prop_oneof![
        Just(ForwardingPatch::Route),
        Just(ForwardingPatch::Masq),
        of(tunnel()).prop_map(ForwardingPatch::Tunnel),
    ]
}

fn check_patch() -> impl Strategy<Value = CheckPatch> {
    (
        of(of(endpoint())),
        of(interval()),
        of(interval()),
        of(any::<NonZeroU32>()),
        of(any::<NonZeroU32>()),
    )
        .prop_map(
            |(endpoint, period, timeout, up_threshold, down_threshold)| CheckPatch {
                endpoint,
                period,
                timeout,
                up_threshold,
                down_threshold,
            },
        )
}

fn server_patch() -> impl Strategy<Value = ServerPatch> {
    let thresholds = (of(any::<u32>()), of(any::<u32>()));
    (
        of(weight()),
        of(forwarding_patch()),
        thresholds,
        check_patch(),
    )
        .prop_map(
            |(weight, forwarding, (upper_threshold, lower_threshold), check)| ServerPatch {
                weight,
                forwarding,
                upper_threshold,
                lower_threshold,
                check,
            },
        )
}

// === commands ===

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (service_id(), service_key(), service_config())
            .prop_map(|(id, key, config)| Mutation::CreateService { id, key, config }),
        (service_id(), service_patch())
            .prop_map(|(id, patch)| Mutation::UpdateService { id, patch }),
        service_id().prop_map(|id| Mutation::DeleteService { id }),
        (service_id(), server_key(), server_config(), health_check()).prop_map(
            |(service, key, config, check)| Mutation::CreateServer {
                service,
                key,
                config,
                check,
            }
        ),
        (service_id(), server_key(), server_patch()).prop_map(|(service, key, patch)| {
            Mutation::UpdateServer {
                service,
                key,
                patch,
            }
        }),
        (service_id(), server_key())
            .prop_map(|(service, key)| Mutation::DeleteServer { service, key }),
    ]
}

fn request_id() -> impl Strategy<Value = RequestId> {
    "[!-~]{1,64}".prop_map(|id| RequestId::new(&id).unwrap())
}

fn revision() -> impl Strategy<Value = Revision> {
    any::<u64>().prop_map(Revision)
}

pub(super) fn command() -> impl Strategy<Value = Command> {
    let conditions = (of(request_id()), of(revision()));
    (any::<u64>(), actor(), conditions, mutation()).prop_map(
        |(at, by, (request_id, expected_revision), mutation)| Command {
            at: Timestamp(at),
            by,
            request_id,
            expected_revision,
            mutation,
        },
    )
}

fn actor() -> impl Strategy<Value = Actor> {
    let name = || "[a-z]{0,9}".prop_map(|name| Arc::from(name.as_str()));
    prop_oneof![
        Just(Actor::Unknown),
        (any::<u32>(), name(), any::<u64>()).prop_map(|(uid, name, node)| Actor::User {
            uid,
            name,
            node
        }),
        (name(), select(&Role::ALL[..])).prop_map(|(name, role)| Actor::Client { name, role }),
        any::<IpAddr>().prop_map(Actor::Plaintext),
        any::<u64>().prop_map(Actor::Node),
    ]
}

/// As a state machine makes it: numbered without gaps.
pub(super) fn audit_trail() -> impl Strategy<Value = AuditTrail> {
    let record = (any::<u64>(), actor(), ".{0,20}", revision());
    vec(record, 0..5).prop_map(|records| {
        let mut trail = AuditTrail::default();
        for (at, by, what, revision) in records {
            trail.push(Timestamp(at), by, what, revision);
        }
        trail
    })
}

// === catalogs ===

fn rejection() -> impl Strategy<Value = Rejection> {
    prop_oneof![
        (".{0,20}", ".{0,20}")
            .prop_map(|(field, reason)| Rejection::Invalid(Invalid::new(field, reason))),
        service_id().prop_map(Rejection::ServiceExists),
        (service_key(), service_id()).prop_map(|(key, holder)| Rejection::KeyTaken { key, holder }),
        (service_id(), server_key())
            .prop_map(|(service, key)| Rejection::ServerExists { service, key }),
        service_id().prop_map(Rejection::ServiceNotFound),
        (service_id(), server_key())
            .prop_map(|(service, key)| Rejection::ServerNotFound { service, key }),
        (revision(), of(revision()))
            .prop_map(|(expected, actual)| Rejection::Conflict { expected, actual }),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        (revision(), any::<bool>()).prop_map(|(revision, changed)| Ok(Reply { revision, changed })),
        rejection().prop_map(Err),
    ]
}

fn servers() -> impl Strategy<Value = Vec<RealServer>> {
    let server = (server_config(), health_check(), any::<u8>(), any::<u8>());
    btree_map(server_key(), server, 0..4).prop_map(|servers| {
        servers
            .into_iter()
            .map(|(key, (config, check, a, b))| RealServer {
                key,
                config,
                check,
                created: Revision(a.min(b).into()),
                changed: Revision(a.max(b).into()),
            })
            .collect()
    })
}

pub(super) fn catalog() -> impl Strategy<Value = Catalog> {
    let service = (
        service_key(),
        service_config(),
        any::<u8>(),
        any::<u8>(),
        servers(),
    );
    let services = btree_map(service_id(), service, 0..4).prop_map(|services| {
        services
            .into_iter()
            .map(|(id, (key, config, a, b, servers))| VirtualService {
                id,
                key,
                config,
                created: Revision(a.min(b).into()),
                changed: Revision(a.max(b).into()),
                servers: servers
                    .into_iter()
                    .map(|server| (server.key, Arc::new(server)))
                    .collect(),
            })
            .collect::<Vec<_>>()
    });
    let answers = btree_map(request_id(), (any::<u64>(), answer()), 0..4);
    let remembered = answers.prop_map(|answers| {
        answers
            .into_iter()
            .map(|(id, (at, answer))| Remembered {
                at: Timestamp(at),
                id,
                answer,
            })
            .collect::<Vec<_>>()
    });
    (255..=u64::MAX, services, remembered).prop_filter_map(
        "services must not share a key",
        |(revision, services, remembered)| {
            Catalog::restore(Revision(revision), services, remembered).ok()
        },
    )
}
