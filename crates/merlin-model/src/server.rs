//! Real servers: where they are, how packets reach them and how their health is checked.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::service::{Family, Invalid, ServiceKey};

/// Where a real server listens. Port 0 keeps the packet's own port and only fits services that
/// have none themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealServerKey {
    pub address: IpAddr,
    pub port: u16,
}

impl RealServerKey {
    pub fn new(address: IpAddr, port: u16) -> Self {
        Self { address, port }
    }
}

impl From<SocketAddr> for RealServerKey {
    fn from(at: SocketAddr) -> Self {
        Self::new(at.ip(), at.port())
    }
}

impl fmt::Display for RealServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// Share of new connections, 0 to 65535. 0 takes none and lets established ones finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u16);

impl Weight {
    pub const ZERO: Self = Self(0);

    pub fn new(weight: u32) -> Result<Self, Invalid> {
        u16::try_from(weight).map(Self).map_err(|_| {
            Invalid::new(
                "config.weight",
                format!("{weight} is out of range: 0 to 65535"),
            )
        })
    }

    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Checksum handling of an encapsulated packet's outer header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Checksum {
    #[default]
    None,
    Full,
    /// Remote checksum offload; GUE only.
    Remote,
}

/// How a tunnelled packet is encapsulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tunnel {
    #[default]
    Ipip,
    Gue {
        port: NonZeroU16,
        checksum: Checksum,
    },
    /// GRE knows no remote checksum offload: `checksum` says whether to send one at all.
    Gre { checksum: bool },
}

/// How packets reach a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Forwarding {
    /// Direct routing: only the link-layer destination changes.
    Route,
    Tunnel(Tunnel),
    /// Network address translation.
    Masq,
}

/// Connection counts between which a real server is taken out and put back; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Thresholds {
    upper: u32,
    lower: u32,
}

impl Thresholds {
    /// Largest count the kernel compares rightly (`atomic_t`).
    pub const MAX: u32 = i32::MAX as u32;

    pub fn new(upper: u32, lower: u32) -> Result<Self, Invalid> {
        if upper > Self::MAX {
            return Err(Invalid::new(
                "config.upper_threshold",
                format!("{upper} is out of range: 0 to {}", Self::MAX),
            ));
        }
        if lower > upper {
            return Err(Invalid::new(
                "config.lower_threshold",
                format!("{lower} must not exceed the upper threshold, {upper}"),
            ));
        }
        Ok(Self { upper, lower })
    }

    pub fn upper(self) -> u32 {
        self.upper
    }

    pub fn lower(self) -> u32 {
        self.lower
    }
}

/// Everything about a real server's forwarding that may be edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealServerConfig {
    pub weight: Weight,
    pub forwarding: Forwarding,
    pub thresholds: Thresholds,
}

impl RealServerConfig {
    pub fn new(weight: Weight, forwarding: Forwarding) -> Self {
        Self {
            weight,
            forwarding,
            thresholds: Thresholds::default(),
        }
    }

    /// Checks the combinations of service, address and forwarding that the kernel cannot carry.
    ///
    /// Direct routing and tunnels do not rewrite ports, so a server port other than the service's
    /// is ignored by the kernel there. It is accepted all the same: existing catalogs hold such
    /// servers, and they work.
    pub fn check(&self, service: &ServiceKey, key: &RealServerKey) -> Result<(), Invalid> {
        if key.port == 0 && !service.is_portless() {
            return Err(port_required());
        }
        let same_family = Family::of(key.address) == service.family();
        if !same_family && !matches!(self.forwarding, Forwarding::Tunnel(_)) {
            return Err(Invalid::new(
                "key.ip",
                "must be of the service's address family unless it is tunnelled to",
            ));
        }
        Ok(())
    }
}

pub(crate) fn port_required() -> Invalid {
    Invalid::new("key.port", "0 is out of range: 1 to 65535")
}

/// Where an HTTP health check is sent: `http://:PORT/PATH[?QUERY]`, at the real server's address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpEndpoint {
    port: NonZeroU16,
    /// Path and query as given; empty stands for `/`.
    path: Arc<str>,
}

impl HttpEndpoint {
    /// Longest accepted endpoint in bytes.
    pub const MAX_LEN: usize = 2048;

    pub fn port(&self) -> NonZeroU16 {
        self.port
    }

    /// Path and query as they go on the request line.
    pub fn path_and_query(&self) -> String {
        match self.path.as_bytes().first() {
            Some(b'/') => self.path.to_string(),
            _ => format!("/{}", self.path),
        }
    }
}

impl FromStr for HttpEndpoint {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |reason: String| {
            Err(Invalid::new(
                "health_check.endpoint",
                format!("{reason}: the form is http://:PORT/PATH"),
            ))
        };
        if text.len() > Self::MAX_LEN {
            return refuse(format!("is longer than {} bytes", Self::MAX_LEN));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return refuse(format!("{text:?} has no scheme"));
        };
        if scheme != "http" {
            return refuse(format!("unknown scheme {scheme:?}"));
        }
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if path.bytes().any(|b| !b.is_ascii_graphic() || b == b'#') {
            return refuse("the path must be printable ASCII without spaces or a fragment".into());
        }
        let Some(port) = authority.strip_prefix(':') else {
            return refuse(if authority.contains(':') {
                format!("{authority:?} names a host, but a check goes to the real server itself")
            } else {
                format!("{text:?} has no port")
            });
        };
        match port.parse::<NonZeroU16>() {
            Ok(number) if port.bytes().all(|b| b.is_ascii_digit()) => Ok(Self {
                port: number,
                path: path.into(),
            }),
            _ => refuse(format!("port {port:?} is not 1 to 65535")),
        }
    }
}

impl fmt::Display for HttpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://:{}{}", self.port, self.path)
    }
}

/// A health check as declared. Without an endpoint it is switched off and its other fields are
/// kept for when it is switched on again.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HealthCheck {
    pub endpoint: Option<HttpEndpoint>,
    pub period: Duration,
    pub timeout: Duration,
    pub up_threshold: u32,
    pub down_threshold: u32,
}

/// A health check that is switched on, with every field in range.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HealthCheckSpec {
    pub endpoint: HttpEndpoint,
    pub period: Duration,
    pub timeout: Duration,
    pub up_threshold: NonZeroU32,
    pub down_threshold: NonZeroU32,
}

impl HealthCheck {
    /// Shortest period and timeout; below it a check is a flood.
    pub const MIN_INTERVAL: Duration = Duration::from_millis(10);
    /// Longest period and timeout; beyond it a check is a mistake.
    pub const MAX_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

    /// The check to run, `None` when it is switched off or out of range.
    pub fn spec(&self) -> Option<HealthCheckSpec> {
        self.check().ok().flatten()
    }

    /// The check to run, `None` when it is switched off, or which field keeps it from running.
    pub fn check(&self) -> Result<Option<HealthCheckSpec>, Invalid> {
        let Some(endpoint) = self.endpoint.clone() else {
            return Ok(None);
        };
        let interval = |field: &str, value: Duration| {
            if (Self::MIN_INTERVAL..=Self::MAX_INTERVAL).contains(&value) {
                Ok(value)
            } else {
                Err(Invalid::new(
                    format!("health_check.{field}"),
                    format!("{value:?} is out of range: 10ms to 24h"),
                ))
            }
        };
        let threshold = |field: &str, value: u32| {
            NonZeroU32::new(value)
                .ok_or_else(|| Invalid::new(format!("health_check.{field}"), "must be at least 1"))
        };
        Ok(Some(HealthCheckSpec {
            endpoint,
            period: interval("period", self.period)?,
            timeout: interval("timeout", self.timeout)?,
            up_threshold: threshold("up_threshold", self.up_threshold)?,
            down_threshold: threshold("down_threshold", self.down_threshold)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Protocol;

    #[test]
    fn endpoints_keep_their_path_and_query_and_print_as_given() {
        for (text, request) in [
            ("http://:556/health", "/health"),
            ("http://:80", "/"),
            ("http://:80/", "/"),
            ("http://:80/a/b?c=d&e=%20", "/a/b?c=d&e=%20"),
            ("http://:80?probe=1", "/?probe=1"),
        ] {
            let endpoint: HttpEndpoint = text.parse().unwrap();
            assert_eq!(endpoint.path_and_query(), request);
            assert_eq!(endpoint.to_string(), text);
        }
    }

    #[test]
    fn endpoints_that_lie_or_lack_are_refused() {
        for bad in [
            "",
            ":80/x",
            "ftp://:80/x",
            "https://:80/x",
            "http:///x",
            "http://:/x",
            "http://:0/x",
            "http://:65536/x",
            "http://:+80/x",
            "http://10.0.0.1:80/x",
            "http://host/x",
            "http://:80/a b",
            "http://:80/a\r\nb",
            "http://:80/é",
            "http://:80/a#b",
        ] {
            let error = bad.parse::<HttpEndpoint>().unwrap_err();
            assert_eq!(error.field, "health_check.endpoint", "{bad:?}");
        }
    }

    #[test]
    fn thresholds_stay_in_order_and_in_the_kernels_range() {
        assert!(Thresholds::new(0, 0).is_ok());
        assert!(Thresholds::new(10, 10).is_ok());
        assert_eq!(
            Thresholds::new(10, 11).unwrap_err().field,
            "config.lower_threshold"
        );
        assert_eq!(
            Thresholds::new(0, 1).unwrap_err().field,
            "config.lower_threshold"
        );
        assert_eq!(
            Thresholds::new(1 << 31, 0).unwrap_err().field,
            "config.upper_threshold"
        );
    }

    #[test]
    fn a_check_without_endpoint_is_off_and_one_with_it_needs_everything() {
        let off = HealthCheck {
            period: Duration::from_secs(1),
            ..HealthCheck::default()
        };
        assert_eq!(off.check(), Ok(None));
        let on = HealthCheck {
            endpoint: Some("http://:80/".parse().unwrap()),
            period: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            up_threshold: 2,
            down_threshold: 1,
        };
        assert!(on.check().unwrap().is_some());
        type Break = fn(&mut HealthCheck);
        let cases: [(&str, Break); 5] = [
            ("health_check.period", |c| c.period = Duration::ZERO),
            ("health_check.timeout", |c| c.timeout = Duration::ZERO),
            ("health_check.timeout", |c| {
                c.timeout = Duration::from_secs(90_000)
            }),
            ("health_check.up_threshold", |c| c.up_threshold = 0),
            ("health_check.down_threshold", |c| c.down_threshold = 0),
        ];
        for (field, breaks) in cases {
            let mut check = on.clone();
            breaks(&mut check);
            assert_eq!(check.check().unwrap_err().field, field);
            assert_eq!(check.spec(), None);
        }
    }

    #[test]
    fn forwarding_has_to_suit_the_service() {
        let tcp = |address: &str, port| ServiceKey::Address {
            address: address.parse().unwrap(),
            port,
            protocol: Protocol::Tcp,
        };
        let mark = ServiceKey::Fwmark {
            mark: NonZeroU32::MIN,
            family: Family::Ipv4,
        };
        let at = |text: &str| RealServerKey::from(text.parse::<SocketAddr>().unwrap());
        let field = |service: &ServiceKey, server: &str, forwarding| {
            RealServerConfig::new(Weight::ZERO, forwarding)
                .check(service, &at(server))
                .err()
                .map(|invalid| invalid.field)
        };
        let (route, masq) = (Forwarding::Route, Forwarding::Masq);
        let tunnel = Forwarding::Tunnel(Tunnel::Ipip);
        let port = Some("key.port".to_owned());
        let ip = Some("key.ip".to_owned());
        assert_eq!(field(&tcp("10.0.0.1", 80), "10.1.0.1:8080", masq), None);
        assert_eq!(field(&tcp("10.0.0.1", 80), "10.1.0.1:80", route), None);
        assert_eq!(field(&tcp("10.0.0.1", 80), "10.1.0.1:0", masq), port);
        assert_eq!(field(&mark, "10.1.0.1:0", route), None);
        assert_eq!(field(&mark, "10.1.0.1:8080", route), None);
        assert_eq!(field(&tcp("10.0.0.1", 80), "[fd00::1]:80", masq), ip);
        assert_eq!(field(&tcp("10.0.0.1", 80), "[fd00::1]:80", tunnel), None);
        assert_eq!(field(&tcp("fd00::1", 80), "10.1.0.1:80", route), ip);
    }
}
