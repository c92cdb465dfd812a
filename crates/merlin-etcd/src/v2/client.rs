//! Talks the v2 keys API over HTTP, to whichever endpoint answers.
//!
//! Endpoints are members of one cluster, so any of them will do. The one that answered last is asked
//! first; one that does not answer in time is left for the next. A change is only sent to another
//! endpoint when it surely did not reach the one before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use super::protocol::{self, Ask, Event, Garbled, Index, Listing, Record, Refusal, Verb};
use crate::config::{Config, Tls};

/// A member in the next room answers in milliseconds; one that is electing takes a second or two.
const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(3);
/// How long one long poll lasts. The head of its answer comes at once, so this, and [`ANSWER`], are
/// how soon a frozen member is noticed.
const TURN: Duration = Duration::from_secs(5);
/// A store of 100,000 servers is some 30 MB.
const LARGEST_ANSWER: usize = 256 << 20;

/// The way to etcd is not one that can be gone.
#[derive(Debug, thiserror::Error)]
pub(super) enum AccessError {
    #[error("no endpoint is given")]
    NoEndpoint,
    #[error("{0:?} is not an endpoint such as http://10.0.0.1:2379")]
    Endpoint(String),
    #[error("{0} needs the authority that vouches for it (--store-ca)")]
    NoAuthority(String),
    #[error("{what} {path} cannot be used", path = path.display())]
    Pem {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: Boxed,
    },
}

/// Why there is no answer to rely on.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error(transparent)]
    Refused(Refusal),
    /// Nothing was done.
    #[error("{0}")]
    Unreachable(String),
    /// It may have been done, or may be done yet.
    #[error("{0}")]
    Unknown(String),
    /// Whoever answers does not serve this API.
    #[error("{0} does not serve the v2 API: start etcd with --enable-v2=true")]
    NoApi(String),
}

/// A watch that etcd has taken up. The head of its answer tells that the member is alive; the event
/// comes when something happens.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Index of the member when it took up the watch.
    pub(super) index: Index,
    /// Which cluster the member belongs to.
    pub(super) cluster: String,
    pub(super) endpoint: String,
    response: Response<Incoming>,
    ask: Ask,
}

#[derive(Debug)]
pub(super) struct Client {
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    endpoints: Vec<Endpoint>,
    /// Index of the endpoint that answered last.
    current: AtomicUsize,
    authorization: Option<HeaderValue>,
}

#[derive(Debug)]
struct Endpoint {
    /// Scheme and authority, for people and to begin URIs with.
    base: String,
}

impl Client {
    pub(super) fn new(config: &Config) -> Result<Self, AccessError> {
        let endpoints: Vec<_> = config
            .endpoints
            .iter()
            .map(|given| Endpoint::parse(given))
            .collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err(AccessError::NoEndpoint);
        }
        let secure = endpoints.iter().find(|at| at.base.starts_with("https:"));
        if let (Some(secure), None) = (secure, &config.tls.ca) {
            return Err(AccessError::NoAuthority(secure.base.clone()));
        }
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(&config.tls)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let authorization = config.user.as_ref().map(|user| {
            let text = STANDARD.encode(format!("{}:{}", user.name, user.password));
            let value = HeaderValue::try_from(format!("Basic {text}"));
            let mut value = value.expect("base64 is ASCII");
            value.set_sensitive(true);
            value
        });
        Ok(Self {
            http: legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(Duration::from_secs(30))
                .build(connector),
            endpoints,
            current: AtomicUsize::new(0),
            authorization,
        })
    }

    /// Everything at and below a key, as of now.
    pub(super) async fn list(&self, key: &str) -> Result<Listing, CallError> {
        let ask = Ask::list(key);
        let (response, base) = self.head(&ask).await?;
        let (status, index) = (response.status().as_u16(), index(&response));
        let body = whole(response, base, &ask).await?;
        let answer = protocol::listing(status, index, &body);
        understood(answer, base, &ask)
    }

    /// Makes a change and returns its index.
    pub(super) async fn change(&self, ask: &Ask) -> Result<Index, CallError> {
        let (response, base) = self.head(ask).await?;
        let status = response.status().as_u16();
        let body = whole(response, base, ask).await?;
        let event = understood(protocol::event(status, &body), base, ask)?;
        Ok(event.index())
    }

    /// Makes sure that a directory is there.
    pub(super) async fn make_directory(&self, key: &str) -> Result<(), CallError> {
        match self.change(&Ask::make_directory(key)).await {
            Ok(_) | Err(CallError::Refused(Refusal::Exists)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What a key holds.
    pub(super) async fn get(&self, key: &str) -> Result<Option<Record>, CallError> {
        let listing = self.list(key).await?;
        Ok(listing.records.into_iter().find(|record| record.key == key))
    }

    /// Watches for the first change at or below a key from an index on.
    pub(super) async fn watch(&self, key: &str, from: Index) -> Result<Waiting, CallError> {
        let ask = Ask::wait(key, from);
        let (response, base) = self.head(&ask).await?;
        if response.status() != StatusCode::OK {
            let status = response.status().as_u16();
            let body = whole(response, base, &ask).await?;
            understood(protocol::event(status, &body), base, &ask)?;
            return Err(ask.lost(base, format!("it answers a watch with {status}")));
        }
        Ok(Waiting {
            index: index(&response),
            cluster: header(&response, protocol::CLUSTER_HEADER).to_owned(),
            endpoint: base.to_owned(),
            response,
            ask,
        })
    }

    /// Asks one endpoint after the other until one begins to answer.
    async fn head(&self, ask: &Ask) -> Result<(Response<Incoming>, &str), CallError> {
        let first = self.current.load(Ordering::Relaxed);
        let mut last = None;
        for turn in 0..self.endpoints.len() {
            let at = (first + turn) % self.endpoints.len();
            let base = self.endpoints[at].base.as_str();
            match self.attempt(base, ask).await {
                Ok(response) if is_failure(&response) && ask.verb == Verb::Get => {
                    let status = response.status();
                    last = Some(ask.lost(base, format!("it answers {status}")));
                }
                Ok(response) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok((response, base));
                }
                Err(error @ CallError::Unknown(_)) => {
                    // Whoever comes next should not start with this one.
                    self.current.store(at + 1, Ordering::Relaxed);
                    return Err(error);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| CallError::Unreachable("there is no endpoint".to_owned())))
    }

    async fn attempt(&self, base: &str, ask: &Ask) -> Result<Response<Incoming>, CallError> {
        let request = self.request(base, ask);
        match timeout(ANSWER, self.http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => {
                Err(CallError::Unreachable(format!("{base}: {}", chain(&error))))
            }
            Ok(Err(error)) => Err(ask.lost(base, chain(&error))),
            Err(_) => Err(ask.lost(base, format!("no answer within {ANSWER:?}"))),
        }
    }

    fn request(&self, base: &str, ask: &Ask) -> Request<Full<Bytes>> {
        let method = match ask.verb {
            Verb::Get => Method::GET,
            Verb::Put => Method::PUT,
            Verb::Delete => Method::DELETE,
        };
        let mut request = Request::new(Full::from(ask.form.clone()));
        *request.method_mut() = method;
        *request.uri_mut() = Uri::try_from(format!("{base}{}", ask.target))
            .expect("a checked endpoint and an escaped path are a URI");
        let headers = request.headers_mut();
        if !ask.form.is_empty() {
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(CONTENT_TYPE, form);
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        request
    }
}

impl Waiting {
    /// The change, or nothing when none has come for some time.
    pub(super) async fn event(self) -> Result<Option<Event>, CallError> {
        let base = self.endpoint.as_str();
        let body = match timeout(TURN, collected(self.response)).await {
            Err(_) => return Ok(None),
            Ok(body) => body.map_err(|reason| self.ask.lost(base, reason))?,
        };
        // A member that has waited long enough ends the answer without an event.
        if body.is_empty() {
            return Ok(None);
        }
        understood(protocol::event(200, &body), base, &self.ask).map(Some)
    }
}

impl Endpoint {
    fn parse(given: &str) -> Result<Self, AccessError> {
        let refuse = || AccessError::Endpoint(given.to_owned());
        let text = match given.contains("://") {
            true => given.to_owned(),
            false => format!("http://{given}"),
        };
        let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| refuse())?;
        let scheme = uri
            .scheme_str()
            .filter(|it| matches!(*it, "http" | "https"));
        match (scheme, uri.authority(), uri.path(), uri.query()) {
            (Some(scheme), Some(authority), "/", None) => Ok(Self {
                base: format!("{scheme}://{authority}"),
            }),
            _ => Err(refuse()),
        }
    }
}

impl Ask {
    /// What it means that the answer was lost.
    fn lost(&self, base: &str, reason: String) -> CallError {
        let words = format!("{base}: {reason}");
        match self.verb {
            Verb::Get => CallError::Unreachable(words),
            Verb::Put | Verb::Delete => CallError::Unknown(words),
        }
    }
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

fn tls(files: &Tls) -> Result<ClientConfig, AccessError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &files.ca {
        let bad = AccessError::pem("the authority (--store-ca)", path);
        for certificate in certificates(path).map_err(&bad)? {
            roots.add(certificate).map_err(|e| bad(Box::new(e)))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has what the default versions need")
        .with_root_certificates(roots);
    let Some((chain, key)) = &files.identity else {
        return Ok(config.with_no_client_auth());
    };
    let bad = AccessError::pem("the certificate (--store-cert)", chain);
    let chain = certificates(chain).map_err(bad)?;
    let bad = AccessError::pem("the key (--store-key)", key);
    let key = PrivateKeyDer::from_pem_file(key).map_err(|e| bad(Box::new(e)))?;
    let config = config.with_client_auth_cert(chain, key);
    config.map_err(|e| bad(Box::new(e)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Boxed> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?;
    match found.is_empty() {
        true => Err("it has no certificate in PEM".into()),
        false => Ok(found),
    }
}

impl AccessError {
    fn pem(what: &'static str, path: &Path) -> impl Fn(Boxed) -> Self {
        let path = path.to_owned();
        move |source| Self::Pem {
            what,
            path: path.clone(),
            source,
        }
    }
}

/// A member that has no leader, or is about to stop: another one may do better.
fn is_failure(response: &Response<Incoming>) -> bool {
    response.status().is_server_error()
}

fn index(response: &Response<Incoming>) -> Index {
    let text = header(response, protocol::INDEX_HEADER);
    text.parse().unwrap_or_default()
}

fn header<'a>(response: &'a Response<Incoming>, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

async fn whole(response: Response<Incoming>, base: &str, ask: &Ask) -> Result<Bytes, CallError> {
    match timeout(ANSWER, collected(response)).await {
        Ok(body) => body.map_err(|reason| ask.lost(base, reason)),
        Err(_) => Err(ask.lost(base, format!("no whole answer within {ANSWER:?}"))),
    }
}

async fn collected(response: Response<Incoming>) -> Result<Bytes, String> {
    let body = Limited::new(response.into_body(), LARGEST_ANSWER);
    let body = body.collect().await.map_err(|error| chain(&*error))?;
    Ok(body.to_bytes())
}

fn understood<T>(
    answer: Result<Result<T, Refusal>, Garbled>,
    base: &str,
    ask: &Ask,
) -> Result<T, CallError> {
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Refusal::Failed(words))) => Err(ask.lost(base, words)),
        Ok(Err(refusal)) => Err(CallError::Refused(refusal)),
        Err(Garbled::NotServed) => Err(CallError::NoApi(base.to_owned())),
        Err(garbled) => Err(ask.lost(base, chain(&garbled))),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words = format!("{words}: {error}");
        source = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_without_a_path() {
        let base = |given| Endpoint::parse(given).map(|endpoint| endpoint.base);
        assert_eq!(
            base("http://10.0.0.1:2379").unwrap(),
            "http://10.0.0.1:2379"
        );
        assert_eq!(base("10.0.0.1:2379/").unwrap(), "http://10.0.0.1:2379");
        assert_eq!(
            base("https://[fd00::1]:2379").unwrap(),
            "https://[fd00::1]:2379"
        );
        for bad in ["", "ftp://a:1", "http://a:1/path", "http://", "a b"] {
            assert!(base(bad).is_err(), "{bad:?}");
        }
    }
}
