//! Finding the node to ask.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::cli::Global;
use crate::failure::{Failure, chain, say};

const DEFAULT_HOST: &str = "localhost";
const DEFAULT_PORT: u16 = 4282;
/// Name of the socket in a node's run directory.
const SOCKET: &str = "merlin.sock";
/// How often a quiet connection is tried, so that a watch notices a dead node.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where to look for a node, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Socket(PathBuf),
    Tcp { host: String, port: u16 },
}

/// Who is named is asked; otherwise the local node is, by its socket or else its port.
fn places(global: &Global) -> Vec<Place> {
    let tcp = Place::Tcp {
        host: global.host.clone().unwrap_or(DEFAULT_HOST.to_owned()),
        port: global.port.unwrap_or(DEFAULT_PORT),
    };
    if let Some(socket) = &global.socket {
        vec![Place::Socket(socket.clone())]
    } else if global.host.is_some() || global.port.is_some() {
        vec![tcp]
    } else {
        vec![Place::Socket(global.run_dir.join(SOCKET)), tcp]
    }
}

/// Connects to the first place where a node listens.
pub(crate) async fn connect(global: &Global) -> Result<Channel, Failure> {
    let mut failures = Vec::new();
    for place in places(global) {
        if global.debug {
            say(&format!("meradm: connecting to {place}"));
        }
        match place.connect(global.timeout).await {
            Ok(channel) => return Ok(channel),
            Err(error) => failures.push(chain(&format!("cannot reach {place}"), Some(&*error))),
        }
    }
    Err(Failure::Unreachable(failures.join("; ")))
}

impl Place {
    async fn connect(&self, timeout: Duration) -> Result<Channel, Box<dyn Error>> {
        match self {
            Self::Socket(path) => {
                // A channel would call a missing socket a "transport error".
                drop(UnixStream::connect(path).await?);
                let path: Arc<Path> = path.as_path().into();
                let connector = tower::service_fn(move |_: Uri| dial(Arc::clone(&path)));
                let endpoint = endpoint("http://localhost", timeout)?;
                Ok(endpoint.connect_with_connector(connector).await?)
            }
            Self::Tcp { host, port } => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                let uri = match bare.contains(':') {
                    true => format!("http://[{bare}]:{port}"),
                    false => format!("http://{bare}:{port}"),
                };
                Ok(endpoint(&uri, timeout)?.connect().await?)
            }
        }
    }
}

async fn dial(path: Arc<Path>) -> io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(path).await.map(TokioIo::new)
}

fn endpoint(uri: &str, timeout: Duration) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(uri.to_owned())?
        .connect_timeout(timeout)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn looked_for(args: &str) -> Vec<String> {
        let line = format!("meradm list {args}");
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        places(&cli.global).iter().map(Place::to_string).collect()
    }

    #[test]
    fn the_local_socket_comes_first_and_whoever_is_named_comes_alone() {
        let local = ["/run/here/merlin.sock", "localhost:4282"];
        assert_eq!(looked_for("--run-dir /run/here"), local);
        assert_eq!(looked_for("--socket /tmp/s"), ["/tmp/s"]);
        assert_eq!(looked_for("-H=lb1"), ["lb1:4282"]);
        assert_eq!(looked_for("-P=99"), ["localhost:99"]);
        assert_eq!(looked_for("-H lb1 -P 99"), ["lb1:99"]);
    }
}
