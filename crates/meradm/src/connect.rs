//! Finding the node to ask.

use merlin_client::{ConnectError, Contexts, Wish};
use tonic::transport::Channel;

use crate::cli::Global;
use crate::failure::{Failure, say};

/// Connects to the first place where a node listens.
pub(crate) async fn connect(global: &Global) -> Result<Channel, Failure> {
    let wish = Wish {
        host: global.host.clone(),
        port: global.port,
        socket: global.socket.clone(),
        run_dir: global.run_dir.clone(),
        context: global.context.clone(),
        plaintext: global.plaintext,
    };
    let tell = |place: &_| {
        if global.debug {
            say(&format!("meradm: connecting to {place}"));
        }
    };
    let contexts = Contexts::of_user();
    let connected = merlin_client::connect(&wish, &contexts, global.timeout, tell).await;
    connected.map_err(|error| match error {
        ConnectError::Unreachable(words) => Failure::Unreachable(words),
        error => Failure::Context(Box::new(error)),
    })
}
