//! Who is at the other end of a request.

use merlin_model::Actor;
use nix::unistd::{Uid, User};
use tonic::Request;
use tonic::transport::server::{TcpConnectInfo, UdsConnectInfo};

/// Who asks, for the audit trail of the node with this number.
pub(super) fn actor<T>(request: &Request<T>, node: u64) -> Actor {
    let extensions = request.extensions();
    if let Some(credentials) = extensions
        .get::<UdsConnectInfo>()
        .and_then(|peer| peer.peer_cred)
    {
        let uid = credentials.uid();
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let name = user.map_or_else(String::new, |user| user.name).into();
        return Actor::User { uid, name, node };
    }
    let remote = extensions
        .get::<TcpConnectInfo>()
        .and_then(|peer| peer.remote_addr);
    remote.map_or(Actor::Unknown, |remote| Actor::Plaintext(remote.ip()))
}
