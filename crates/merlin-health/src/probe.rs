//! One HTTP probe: a GET on a connection of its own, judged by the status of the response.
//!
//! * The request goes to the real server's address, whatever the answer says: redirects are not
//!   followed, names are not resolved.
//! * One timeout spans connecting and the response head. The body is not read, and the head is
//!   bounded, so a probe costs the same whatever the server sends.
//! * A failure that lies with this node (no file descriptors, no ports, no memory) is told apart
//!   from one that lies with the server: see [`ProbeError::is_local`].

use std::error::Error;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{self, Either};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use tokio::net::TcpStream;

use crate::checker::ProbeSpec;

/// Largest response head that is read; a health endpoint has no need for more.
pub const MAX_HEAD: usize = 16 * 1024;

const AGENT: HeaderValue = HeaderValue::from_static("merlin-health");
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// Why a probe did not succeed, in words for an operator.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("timed out after {after:?} {stage}")]
    Timeout { after: Duration, stage: Stage },
    #[error("{}", words(.0))]
    Connect(io::Error),
    #[error("{}", words(.0))]
    Exchange(io::Error),
    #[error("connection closed before a response")]
    Closed,
    /// More than [`MAX_HEAD`] bytes or a hundred header fields.
    #[error("the response head is too large")]
    HeadTooLarge,
    #[error("the response is not HTTP")]
    NotHttp,
    #[error("status {}", .0.as_u16())]
    Status(StatusCode),
    #[error("the endpoint makes no HTTP request")]
    Request(#[from] hyper::http::Error),
    #[error("HTTP exchange failed")]
    Http(#[source] hyper::Error),
}

/// How far a probe got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Connecting,
    Responding,
}

/// Performs one probe. `Ok` is a 2xx status.
pub async fn probe(spec: &ProbeSpec) -> Result<(), ProbeError> {
    let request = request(spec)?;
    let mut stage = Stage::Connecting;
    let exchange = async {
        let stream = TcpStream::connect(spec.target)
            .await
            .map_err(ProbeError::Connect)?;
        stage = Stage::Responding;
        exchange(stream, request).await.map_err(ProbeError::from)
    };
    let response = match tokio::time::timeout(spec.timeout, exchange).await {
        Ok(response) => response?,
        Err(_) => {
            let after = spec.timeout;
            return Err(ProbeError::Timeout { after, stage });
        }
    };
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(ProbeError::Status(status)),
    }
}

fn request(spec: &ProbeSpec) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let target = request_target(&spec.endpoint.path_and_query());
    Request::get(Uri::from(PathAndQuery::try_from(target)?))
        .header(HOST, spec.target.to_string())
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, CLOSE)
        .body(Empty::new())
}

/// Path and query as given, save for the printable characters that no URI may hold (RFC 3986,
/// section 2): those are percent-encoded, as every HTTP client does.
fn request_target(given: &str) -> String {
    let mut target = String::with_capacity(given.len());
    for c in given.chars() {
        match c {
            '"' => target.push_str("%22"),
            '<' => target.push_str("%3C"),
            '>' => target.push_str("%3E"),
            '`' => target.push_str("%60"),
            c => target.push(c),
        }
    }
    target
}

/// Sends the request and waits for the response head. The connection ends with the exchange: what
/// the server sends beyond the head is dropped with it.
async fn exchange(
    stream: TcpStream,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, hyper::Error> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        // Some servers' hand-made health endpoints know header names in this spelling only.
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await?;
    let response = pin!(sender.send_request(request));
    match future::select(response, connection).await {
        Either::Left((response, _)) => response,
        // The connection hands over what it got, or why it got nothing, before it ends.
        Either::Right((_, response)) => response.await,
    }
}

// === impl ProbeError ===

impl ProbeError {
    /// Whether this node, not the server, is at fault. Declaring servers down because we ran out
    /// of file descriptors would take healthy ones out of service.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Connect(error) | Self::Exchange(error) => matches!(
                error.raw_os_error().map(Errno::from_raw),
                Some(
                    Errno::EMFILE
                        | Errno::ENFILE
                        | Errno::ENOBUFS
                        | Errno::ENOMEM
                        // No free port to connect from.
                        | Errno::EADDRNOTAVAIL
                )
            ),
            Self::Request(_) => true,
            _ => false,
        }
    }
}

impl From<hyper::Error> for ProbeError {
    fn from(error: hyper::Error) -> Self {
        if error.is_parse_too_large() {
            return Self::HeadTooLarge;
        }
        if error.is_parse() {
            return Self::NotHttp;
        }
        if error.is_incomplete_message() {
            return Self::Closed;
        }
        match error.source().and_then(|source| source.downcast_ref()) {
            Some(io) => Self::Exchange(clone(io)),
            None => Self::Http(error),
        }
    }
}

fn clone(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// The system's words for an error, without its number.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let plain = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = plain.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => text,
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::Responding => "waiting for the response",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printable_character_makes_a_request_target() {
        let printable: String = ('!'..='~').filter(|c| *c != '#').collect();
        for given in [format!("/{printable}"), format!("/?{printable}")] {
            let target = request_target(&given);
            let parsed = PathAndQuery::try_from(target.as_str()).unwrap();
            assert_eq!(parsed.as_str(), target);
        }
        assert_eq!(
            request_target("/a//b/../c?d=%20&e=<\"f\">`"),
            "/a//b/../c?d=%20&e=%3C%22f%22%3E%60"
        );
    }

    #[test]
    fn only_this_nodes_own_shortages_are_local() {
        let connect = |errno: Errno| ProbeError::Connect(errno.into());
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::EADDRNOTAVAIL] {
            assert!(connect(errno).is_local(), "{errno}");
        }
        for errno in [
            Errno::ECONNREFUSED,
            Errno::ECONNRESET,
            Errno::EHOSTUNREACH,
            Errno::ENETUNREACH,
            Errno::ETIMEDOUT,
        ] {
            assert!(!connect(errno).is_local(), "{errno}");
        }
    }

    #[test]
    fn system_errors_are_put_in_words() {
        let text = |errno: Errno| ProbeError::Connect(errno.into()).to_string();
        assert_eq!(text(Errno::ECONNREFUSED), "connection refused");
        assert_eq!(text(Errno::EHOSTUNREACH), "no route to host");
        assert_eq!(text(Errno::EMFILE), "too many open files");
    }
}
