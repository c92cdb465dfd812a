//! Finding the node to ask.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::context::Context;
use crate::contexts::{Contexts, ContextsError};
use crate::tls;

pub const DEFAULT_HOST: &str = "localhost";
pub const DEFAULT_PORT: u16 = 4282;
/// Name of the socket in a node's run directory.
const SOCKET: &str = "merlin.sock";
/// How often a quiet connection is tried, so that a watch notices a dead node.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What somebody said about the node to ask.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    pub host: Option<String>,
    pub port: Option<u16>,
    pub socket: Option<PathBuf>,
    /// Where the local node's socket is.
    pub run_dir: PathBuf,
    /// Name of the context to use.
    pub context: Option<String>,
    /// Not to use TLS, although there is a context.
    pub plaintext: bool,
}

/// Where to look for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Socket(PathBuf),
    Plaintext {
        host: String,
        port: u16,
    },
    /// `HOST:PORT`, by TLS with the context of this name.
    Tls {
        addr: String,
        name: String,
        context: Arc<Context>,
    },
}

/// Why no node can be asked.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Contexts(#[from] ContextsError),
    #[error("context {name} lists no nodes: name one with -H")]
    NoNodes { name: String },
    #[error("{0}")]
    Unreachable(String),
}

/// Where to look, in order. Who is named is asked; otherwise the local node is, by its socket or
/// else its port, or else the nodes of the context in use.
///
/// This host's loopback address is spoken to in plaintext, as it always was, unless a context is
/// asked for by name.
pub fn places(wish: &Wish, contexts: &Contexts) -> Result<Vec<Place>, ConnectError> {
    if let Some(socket) = &wish.socket {
        return Ok(vec![Place::Socket(socket.clone())]);
    }
    let named = wish.host.is_some() || wish.port.is_some();
    let host = wish.host.as_deref().unwrap_or(DEFAULT_HOST);
    let port = wish.port.unwrap_or(DEFAULT_PORT);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let plaintext = || Place::Plaintext {
        host: bare.to_owned(),
        port,
    };
    let context = match &wish.context {
        _ if wish.plaintext => None,
        Some(name) => Some(name.clone()),
        None if named && is_this_host(bare) => None,
        None => contexts.current()?,
    };
    let tls = match context {
        Some(name) => {
            let context = Arc::new(contexts.get(&name)?);
            Some((name, context))
        }
        None => None,
    };
    let at = |addr: String, name: &str, context: &Arc<Context>| Place::Tls {
        addr,
        name: name.to_owned(),
        context: Arc::clone(context),
    };
    if named {
        return Ok(vec![match &tls {
            Some((name, context)) => at(join(bare, port), name, context),
            None => plaintext(),
        }]);
    }
    let mut places = Vec::new();
    if wish.context.is_none() {
        places.push(Place::Socket(wish.run_dir.join(SOCKET)));
    }
    match &tls {
        Some((name, context)) if context.nodes.is_empty() && places.is_empty() => {
            return Err(ConnectError::NoNodes { name: name.clone() });
        }
        Some((name, context)) => {
            let nodes = context.nodes.iter();
            places.extend(nodes.map(|addr| at(addr.clone(), name, context)));
        }
        None => places.push(plaintext()),
    }
    Ok(places)
}

fn is_this_host(host: &str) -> bool {
    let loopback = |ip: IpAddr| ip.is_loopback();
    host == DEFAULT_HOST || host.parse().is_ok_and(loopback)
}

fn join(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// Connects to the first place where a node listens. `tell` hears of each that is tried.
pub async fn connect(
    wish: &Wish,
    contexts: &Contexts,
    timeout: Duration,
    tell: impl Fn(&Place),
) -> Result<Channel, ConnectError> {
    let mut failures = Vec::new();
    for place in places(wish, contexts)? {
        tell(&place);
        match place.connect(timeout).await {
            Ok(channel) => return Ok(channel),
            Err(error) => failures.push(format!("cannot reach {place}: {}", chain(&*error))),
        }
    }
    Err(ConnectError::Unreachable(failures.join("; ")))
}

impl Place {
    pub async fn connect(&self, timeout: Duration) -> Result<Channel, Box<dyn Error>> {
        match self {
            Self::Socket(path) => {
                // A channel would call a missing socket a "transport error".
                drop(UnixStream::connect(path).await?);
                let path: Arc<Path> = path.as_path().into();
                let connector = tower::service_fn(move |_: Uri| {
                    let path = Arc::clone(&path);
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                let endpoint = endpoint("http://localhost", timeout)?;
                Ok(endpoint.connect_with_connector(connector).await?)
            }
            Self::Plaintext { host, port } => {
                let uri = format!("http://{}", join(host, *port));
                Ok(endpoint(&uri, timeout)?.connect().await?)
            }
            Self::Tls { addr, context, .. } => {
                if context.expires().is_some_and(|at| at <= SystemTime::now()) {
                    return Err(
                        "its certificate has expired: have a new one made with `merlin \
                                cluster client create`, and log in with that"
                            .into(),
                    );
                }
                let config = tls::client_config(context)?;
                // The first handshake is made here, where its failure can be told in words.
                let first = tls::dial(Arc::clone(&config), addr);
                let first = tokio::time::timeout(timeout, first).await;
                let first = first.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                let first = first.map_err(|error| match tls::in_words(&error) {
                    Some(words) => words.into(),
                    None => Box::<dyn Error>::from(error),
                })?;
                let first = Arc::new(Mutex::new(Some(first)));
                let addr: Arc<str> = addr.as_str().into();
                let connector = tower::service_fn(move |_: Uri| {
                    let (config, addr) = (Arc::clone(&config), Arc::clone(&addr));
                    let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
                    async move {
                        match first {
                            Some(stream) => Ok(TokioIo::new(stream)),
                            None => tls::dial(config, &addr).await.map(TokioIo::new),
                        }
                    }
                });
                let endpoint = endpoint("http://merlin", timeout)?;
                Ok(endpoint.connect_with_connector(connector).await?)
            }
        }
    }
}

fn endpoint(uri: &str, timeout: Duration) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(uri.to_owned())?
        .connect_timeout(timeout)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// An error and its causes, each said once: transports repeat their causes' words.
fn chain(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        source = error.source();
    }
    words
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Plaintext { host, port } => f.write_str(&join(host, *port)),
            Self::Tls { addr, name, .. } => write!(f, "{addr} (context {name})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::context;

    fn looked_for(wish: Wish, contexts: &Contexts) -> Vec<String> {
        let wish = Wish {
            run_dir: "/run/here".into(),
            ..wish
        };
        let places = places(&wish, contexts).unwrap();
        places.iter().map(Place::to_string).collect()
    }

    fn host(host: &str) -> Wish {
        Wish {
            host: Some(host.to_owned()),
            ..Wish::default()
        }
    }

    #[test]
    fn without_contexts_the_local_socket_comes_first_and_whoever_is_named_comes_alone() {
        let none = Contexts::in_dir("/nowhere".into());
        let of = |wish| looked_for(wish, &none);
        let local = ["/run/here/merlin.sock", "localhost:4282"];
        assert_eq!(of(Wish::default()), local);
        let socket = Some("/tmp/s".into());
        assert_eq!(
            of(Wish {
                socket,
                ..Wish::default()
            }),
            ["/tmp/s"]
        );
        assert_eq!(of(host("lb1")), ["lb1:4282"]);
        assert_eq!(of(host("[fd00::1]")), ["[fd00::1]:4282"]);
        let port = Some(99);
        assert_eq!(
            of(Wish {
                port,
                ..Wish::default()
            }),
            ["localhost:99"]
        );
        assert_eq!(
            of(Wish {
                port,
                ..host("lb1")
            }),
            ["lb1:99"]
        );
    }

    #[test]
    fn with_a_context_other_hosts_are_asked_by_tls() {
        let dir = tempfile::tempdir().unwrap();
        let contexts = Contexts::in_dir(dir.path().join("merlin"));
        contexts.add("ana", &context("ana")).unwrap();
        let of = |wish| looked_for(wish, &contexts);
        let nodes = ["/run/here/merlin.sock", "192.0.2.1:4282 (context ana)"];
        assert_eq!(of(Wish::default()), nodes);
        assert_eq!(of(host("lb1")), ["lb1:4282 (context ana)"]);
        assert_eq!(of(host("localhost")), ["localhost:4282"]);
        assert_eq!(of(host("127.0.0.2")), ["127.0.0.2:4282"]);
        let plaintext = Wish {
            plaintext: true,
            ..host("lb1")
        };
        assert_eq!(of(plaintext), ["lb1:4282"]);
        // Asked for by name, it is used.
        let named = |wish| Wish {
            context: Some("ana".to_owned()),
            ..wish
        };
        assert_eq!(
            of(named(host("localhost"))),
            ["localhost:4282 (context ana)"]
        );
        assert_eq!(of(named(Wish::default())), ["192.0.2.1:4282 (context ana)"]);

        let unknown = Wish {
            context: Some("bob".to_owned()),
            ..Wish::default()
        };
        let error = places(&unknown, &contexts).unwrap_err().to_string();
        assert!(error.contains("\"bob\" (there is ana)"), "{error}");
    }
}
