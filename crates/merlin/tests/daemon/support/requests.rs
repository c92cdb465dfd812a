//! What tests declare.

use std::net::SocketAddr;
use std::time::Duration;

use merlin_proto::types::{
    ForwardMethod, ListResponse, Protocol, RealServer, VirtualService, real_server, virtual_service,
};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Response, Status};

/// A service by a name and a number that tells its address from others'.
pub(crate) fn service(id: &str, number: u16) -> VirtualService {
    VirtualService {
        id: id.to_owned(),
        key: Some(virtual_service::Key {
            ip: "10.1.0.1".to_owned(),
            port: number.into(),
            protocol: Protocol::Tcp.into(),
            ..Default::default()
        }),
        config: Some(virtual_service::Config {
            scheduler: "wrr".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A real server of weight 1 without a check.
pub(crate) fn server(service: &str, addr: SocketAddr) -> RealServer {
    RealServer {
        service_id: service.to_owned(),
        key: Some(real_server::Key {
            ip: addr.ip().to_string(),
            port: addr.port().into(),
        }),
        config: Some(real_server::Config {
            weight: Some(1),
            forward: ForwardMethod::Masq.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A server whose number tells its address from others'.
pub(crate) fn numbered_server(service: &str, number: u16) -> RealServer {
    server(service, SocketAddr::from(([172, 16, 0, 1], number)))
}

/// An update that sets a weight and says nothing else.
pub(crate) fn weight(service: &str, number: u16, weight: u32) -> RealServer {
    RealServer {
        config: Some(real_server::Config {
            weight: Some(weight),
            ..Default::default()
        }),
        ..numbered_server(service, number)
    }
}

/// A check of the server's own port, as fast as the machine may need.
pub(crate) fn check(port: u16) -> real_server::HealthCheck {
    let duration = |time: Duration| prost_types::Duration::try_from(time).ok();
    real_server::HealthCheck {
        endpoint: Some(format!("http://:{port}/health?deep=1")),
        period: duration(Duration::from_millis(50)),
        timeout: duration(Duration::from_secs(5)),
        up_threshold: 2,
        down_threshold: 2,
    }
}

/// A request with metadata beside it.
pub(crate) fn beside<T>(message: T, metadata: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in metadata {
        let value: MetadataValue<Ascii> = value.parse().unwrap();
        request.metadata_mut().insert(*name, value);
    }
    request
}

/// Metadata of an answer.
pub(crate) fn said<'a, T>(response: &'a Response<T>, name: &str) -> &'a str {
    let value = response.metadata().get(name);
    value
        .unwrap_or_else(|| panic!("no {name}"))
        .to_str()
        .unwrap()
}

/// The revision that holds a mutation's effect.
pub(crate) fn revision(response: &Response<()>) -> u64 {
    said(response, "merlin-revision").parse().unwrap()
}

/// Fails unless it was refused with this code, in these words.
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, words: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(
        status.message().contains(words),
        "{words:?} is not in {status}"
    );
}

/// Ids in a listing, each with its number of servers.
pub(crate) fn ids(list: &ListResponse) -> Vec<(String, usize)> {
    let id = |item: &merlin_proto::types::list_response::Item| {
        let service = item.service.as_ref().unwrap();
        (service.id.clone(), item.servers.len())
    };
    list.items.iter().map(id).collect()
}
