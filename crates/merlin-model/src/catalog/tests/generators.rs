//! Commands that meet: few names, few keys, few revisions, so that they exist, collide and repeat.

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use proptest::option::{of, weighted};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::catalog::Revision;
use crate::command::{
    CheckPatch, Command, ForwardingPatch, KeyPatch, Mutation, PersistencePatch, RequestId,
    ServerPatch, ServicePatch, Timestamp,
};
use crate::server::{
    Forwarding, HealthCheck, HttpEndpoint, RealServerConfig, RealServerKey, Thresholds, Tunnel,
    Weight,
};
use crate::service::{
    Family, Netmask, Persistence, PersistenceEngine, Protocol, Scheduler, SchedulerFlag,
    SchedulerFlags, ServiceConfig, ServiceId, ServiceKey,
};

fn id() -> impl Strategy<Value = ServiceId> {
    select(vec!["a", "b", "web"]).prop_map(|id| ServiceId::new(id).unwrap())
}

fn address() -> impl Strategy<Value = IpAddr> {
    select(vec!["10.0.0.1", "10.0.0.2", "fd00::1"]).prop_map(|text| text.parse().unwrap())
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp])
}

fn family() -> impl Strategy<Value = Family> {
    select(vec![Family::Ipv4, Family::Ipv6])
}

fn mark() -> impl Strategy<Value = NonZeroU32> {
    Just(NonZeroU32::MIN)
}

fn key() -> impl Strategy<Value = ServiceKey> {
    let port = select(vec![0, 80, 80, 80]);
    prop_oneof![
        3 => (address(), port, protocol()).prop_map(|(address, port, protocol)| {
            ServiceKey::Address { address, port, protocol }
        }),
        1 => (mark(), family()).prop_map(|(mark, family)| ServiceKey::Fwmark { mark, family }),
    ]
}

fn key_patch() -> impl Strategy<Value = KeyPatch> {
    let port = of(Just(NonZeroU16::new(80).unwrap()));
    prop_oneof![
        3 => (of(address()), port, of(protocol())).prop_map(|(address, port, protocol)| {
            KeyPatch::Address { address, port, protocol }
        }),
        1 => (mark(), of(family())).prop_map(|(mark, family)| KeyPatch::Fwmark { mark, family }),
    ]
}

fn server_key() -> impl Strategy<Value = RealServerKey> {
    (address(), select(vec![0, 80, 80, 81]))
        .prop_map(|(address, port)| RealServerKey::new(address, port))
}

fn scheduler() -> impl Strategy<Value = Scheduler> {
    select(vec![Scheduler::Rr, Scheduler::Sh])
}

fn flags() -> impl Strategy<Value = Vec<SchedulerFlag>> {
    let flags = vec![
        SchedulerFlag::Flag1,
        SchedulerFlag::Flag3,
        SchedulerFlag::ShPort,
    ];
    subsequence(flags, 0..=2)
}

fn netmask() -> impl Strategy<Value = Netmask> {
    select(vec![24, 32, 128]).prop_map(|prefix| Netmask::from_prefix(prefix).unwrap())
}

fn engine() -> impl Strategy<Value = Option<PersistenceEngine>> {
    weighted(0.2, Just(PersistenceEngine::Sip))
}

fn persistence() -> impl Strategy<Value = Persistence> {
    (1..3u32, netmask(), engine()).prop_map(|(timeout, netmask, engine)| Persistence {
        timeout: NonZeroU32::new(timeout).unwrap(),
        netmask,
        engine,
    })
}

fn persistence_patch() -> impl Strategy<Value = PersistencePatch> {
    let timeout = of(select(vec![0, 1, 2, u32::MAX]));
    (timeout, of(netmask()), of(engine())).prop_map(|(timeout, netmask, engine)| PersistencePatch {
        timeout,
        netmask,
        engine,
    })
}

fn service_config() -> impl Strategy<Value = ServiceConfig> {
    let flags = subsequence(vec![SchedulerFlag::Flag1, SchedulerFlag::Flag2], 0..=2);
    (
        scheduler(),
        flags,
        of(persistence()),
        weighted(0.1, Just(())),
    )
        .prop_map(
            |(scheduler, flags, persistence, one_packet)| ServiceConfig {
                scheduler,
                flags: SchedulerFlags::resolve(scheduler, &flags).unwrap(),
                persistence,
                one_packet: one_packet.is_some(),
            },
        )
}

fn service_patch() -> impl Strategy<Value = ServicePatch> {
    (
        weighted(0.3, key_patch()),
        of(scheduler()),
        of(flags()),
        weighted(0.3, persistence_patch()),
        weighted(0.2, any::<bool>()),
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

fn weight() -> impl Strategy<Value = Weight> {
    (0..3u32).prop_map(|weight| Weight::new(weight).unwrap())
}

fn tunnel() -> impl Strategy<Value = Tunnel> {
    select(vec![Tunnel::Ipip, Tunnel::Gre { checksum: true }])
}

fn forwarding() -> impl Strategy<Value = Forwarding> {
    prop_oneof![
        Just(Forwarding::Route),
        Just(Forwarding::Masq),
        tunnel().prop_map(Forwarding::Tunnel),
    ]
}

fn server_config() -> impl Strategy<Value = RealServerConfig> {
    let thresholds = select(vec![(0, 0), (10, 0), (10, 5)])
        .prop_map(|(upper, lower)| Thresholds::new(upper, lower).unwrap());
    (weight(), forwarding(), thresholds).prop_map(|(weight, forwarding, thresholds)| {
        RealServerConfig {
            weight,
            forwarding,
            thresholds,
        }
    })
}

fn endpoint() -> impl Strategy<Value = Option<HttpEndpoint>> {
    of(Just("http://:80/health".parse().unwrap()))
}

fn interval() -> impl Strategy<Value = Duration> {
    select(vec![0, 1, 1, 5]).prop_map(Duration::from_secs)
}

fn health_check() -> impl Strategy<Value = HealthCheck> {
    let thresholds = (1..3u32, select(vec![0u32, 1, 1, 2]));
    (endpoint(), interval(), interval(), thresholds).prop_map(
        |(endpoint, period, timeout, (up_threshold, down_threshold))| HealthCheck {
            endpoint,
            period,
            timeout,
            up_threshold,
            down_threshold,
        },
    )
}

fn check_patch() -> impl Strategy<Value = CheckPatch> {
    let threshold = || of((1..3u32).prop_map(|n| NonZeroU32::new(n).unwrap()));
    (
        of(endpoint()),
        of(interval()),
        of(interval()),
        threshold(),
        threshold(),
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
    let forwarding = prop_oneof![
        Just(ForwardingPatch::Route),
        Just(ForwardingPatch::Masq),
        of(tunnel()).prop_map(ForwardingPatch::Tunnel),
    ];
    let threshold = || of(select(vec![0u32, 5, 10]));
    (
        of(weight()),
        of(forwarding),
        threshold(),
        threshold(),
        check_patch(),
    )
        .prop_map(
            |(weight, forwarding, upper_threshold, lower_threshold, check)| ServerPatch {
                weight,
                forwarding,
                upper_threshold,
                lower_threshold,
                check,
            },
        )
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        3 => (id(), key(), service_config())
            .prop_map(|(id, key, config)| Mutation::CreateService { id, key, config }),
        3 => (id(), service_patch())
            .prop_map(|(id, patch)| Mutation::UpdateService { id, patch }),
        1 => id().prop_map(|id| Mutation::DeleteService { id }),
        5 => (id(), server_key(), server_config(), health_check())
            .prop_map(|(service, key, config, check)| {
                Mutation::CreateServer { service, key, config, check }
            }),
        4 => (id(), server_key(), server_patch())
            .prop_map(|(service, key, patch)| Mutation::UpdateServer { service, key, patch }),
        1 => (id(), server_key())
            .prop_map(|(service, key)| Mutation::DeleteServer { service, key }),
    ]
}

/// Commands of several minutes, so that some requests are forgotten.
pub(crate) fn commands() -> impl Strategy<Value = Vec<Command>> {
    let request = weighted(0.3, "[xyz]").prop_map(|id| id.map(|id| RequestId::new(&id).unwrap()));
    let expected = weighted(0.2, (0..9u64).prop_map(Revision));
    let command = (0..1_000_000u64, request, expected, mutation()).prop_map(
        |(at, request_id, expected_revision, mutation)| Command {
            request_id,
            expected_revision,
            ..Command::new(Timestamp(at), mutation)
        },
    );
    proptest::collection::vec(command, 1..60)
}
