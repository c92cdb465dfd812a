//! Who may call what.
//!
//! ```text
//! connection ─▶ Gate: who is it, may it call this? ─▶ service ─▶ Caller: may it change that?
//!     │             │ per request, against the applied state
//!   door            └▶ UNAUTHENTICATED or PERMISSION_DENIED, in words
//! ```
//! What a connection stands for was settled when it was made; what its client may do is looked up
//! for every request, so that a revocation does not wait for the connection's end. The method is
//! judged here, by [`needs`]; what an update may contain only once it is parsed, by
//! [`merlin_model::access::allows`].

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, Ready, ready};
use merlin_model::access::{self, Denied};
use merlin_model::{Actor, Mutation, Role, Timestamp};
use merlin_raft::identity::{Certificate, ClientName};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::{Request, Status};
use tower::{Layer, Service};

use super::door::Connection;
use crate::clock::now;
use crate::node::Node;

/// What a call asks of whoever makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// Of a client with a role; others need none.
    Role(Role),
    /// To be known: by the unix socket, or by a certificate of this role.
    Known(Role),
}

/// The rule for each method. One that has none is for those who may do everything.
fn needs(method: &str) -> Needs {
    match method {
        "types.Merlin/List" => Needs::Role(Role::Viewer),
        "types.Merlin/UpdateServer" => Needs::Role(Role::Operator),
        "merlin.v1.Cluster/Describe" => Needs::Known(Role::Viewer),
        // Whoever may change the catalog may say that a change of it is meant.
        "merlin.v1.Node/AcceptRemoval" => Needs::Role(Role::Admin),
        "merlin.v1.Cluster/Audit" => Needs::Known(Role::Operator),
        _ => match method.split('/').next() {
            Some("types.Merlin") => Needs::Role(Role::Admin),
            Some("merlin.v1.Node" | "grpc.health.v1.Health") => Needs::Role(Role::Viewer),
            Some("grpc.reflection.v1.ServerReflection") => Needs::Role(Role::Viewer),
            _ => Needs::Known(Role::Admin),
        },
    }
}

/// What whoever makes a call may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    /// Root and the group `merlin` of this host, by the permissions of the unix socket.
    Everything,
    /// Whoever reaches a plaintext port: the catalog, and nothing that concerns the cluster.
    Catalog,
    Client(Role),
}

/// Why a call is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(
        "{0} is not answered in plaintext: ask by the unix socket of a node, as root or a member \
         of the group merlin, or log in with a client certificate (meradm login)"
    )]
    Plaintext(String),
}

fn admit(rights: Rights, method: &str) -> Result<(), Refused> {
    match (rights, needs(method)) {
        (Rights::Everything, _) | (Rights::Catalog, Needs::Role(_)) => Ok(()),
        (Rights::Catalog, Needs::Known(_)) => Err(Refused::Plaintext(name(method).to_owned())),
        (Rights::Client(role), Needs::Role(needed) | Needs::Known(needed)) => {
            Ok(role.require(needed, name(method))?)
        }
    }
}

/// The last part of a method's path: what people know it by.
fn name(method: &str) -> &str {
    method.rsplit('/').next().unwrap_or(method)
}

/// Who makes a call, for as long as it lasts.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) actor: Actor,
    rights: Rights,
    client: Option<(ClientName, Timestamp)>,
}

impl Caller {
    /// Who made this request. Every request has passed the [`Gate`].
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().cloned();
        caller.ok_or_else(|| Status::internal("a request came in by no known door"))
    }

    fn identify(connection: Option<&Connection>, node: &Node) -> Result<Self, Status> {
        let caller = |actor, rights| Self {
            actor,
            rights,
            client: None,
        };
        match connection {
            None => Err(Status::internal("a connection came in by no known door")),
            Some(Connection::Local { uid, user }) => {
                let actor = Actor::User {
                    uid: *uid,
                    name: Arc::clone(user),
                    node: node.store().node_id(),
                };
                Ok(caller(actor, Rights::Everything))
            }
            Some(Connection::Plaintext(remote)) => {
                Ok(caller(Actor::Plaintext(remote.ip()), Rights::Catalog))
            }
            Some(Connection::Stranger { tls: false }) => Err(Status::unauthenticated(
                "this node answers other hosts only with --api-insecure: its store has no \
                 certificates",
            )),
            Some(Connection::Stranger { tls: true }) => Err(Status::unauthenticated(format!(
                "this port speaks TLS with clients of the cluster only; {LOG_IN}"
            ))),
            Some(Connection::Tls(certificate)) => match certificate {
                Certificate::Client(client) => Self::client(*client, node),
                Certificate::None => Err(Status::unauthenticated(format!(
                    "a client certificate is needed; {LOG_IN}"
                ))),
                Certificate::Node(peer) => Err(Status::unauthenticated(format!(
                    "the certificate is that of {peer}, not of a client; {LOG_IN}"
                ))),
                Certificate::Other => Err(Status::unauthenticated(format!(
                    "the certificate is not a client's; {LOG_IN}"
                ))),
            },
        }
    }

    fn client(client: ClientName, node: &Node) -> Result<Self, Status> {
        let known = node.store().raft().map(|raft| raft.client(client, now()));
        match known {
            Some(Ok(record)) => Ok(Self {
                actor: Actor::Client {
                    name: record.name.into(),
                    role: record.role,
                },
                rights: Rights::Client(record.role),
                client: Some((client, record.expires)),
            }),
            Some(Err(error)) => Err(Status::unauthenticated(format!("{error}; {LOG_IN}"))),
            None => Err(Status::unauthenticated("this node knows no clients")),
        }
    }

    /// Decides about a mutation.
    pub(super) fn may(&self, mutation: &Mutation) -> Result<(), Status> {
        match self.rights {
            Rights::Everything | Rights::Catalog => Ok(()),
            Rights::Client(role) => access::allows(role, mutation)
                .map_err(|denied| Status::permission_denied(denied.to_string())),
        }
    }

    /// Ready, with the reason, when whoever made this call may not go on with it.
    pub(super) async fn ended(&self, node: &Node) -> Status {
        let (Some((client, expires)), Some(raft)) = (self.client, node.store().raft()) else {
            return std::future::pending().await;
        };
        let left = Duration::from_millis(expires.0.saturating_sub(now().0));
        tokio::select! {
            () = raft.client_revoked(client) => {}
            () = tokio::time::sleep(left) => {}
        }
        match Self::client(client, node) {
            Err(status) => status,
            Ok(_) => Status::unavailable("the store is shutting down"),
        }
    }
}

/// What somebody whom the cluster does not know can do about it.
const LOG_IN: &str = "have an administrator run `merlin cluster client create NAME --role ROLE` \
     on a node, and log in with what it writes: `meradm login FILE`";

/// Lets a request pass that its connection's holder may make, with the [`Caller`] among its
/// extensions.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    pub(super) node: Node,
}

impl Gate {
    fn judge(&self, extensions: &http::Extensions, path: &str) -> Result<Caller, Status> {
        let caller = Caller::identify(extensions.get(), &self.node)?;
        match admit(caller.rights, path.trim_start_matches('/')) {
            Ok(()) => Ok(caller),
            Err(refused @ Refused::Denied(_)) => {
                Err(Status::permission_denied(refused.to_string()))
            }
            Err(refused @ Refused::Plaintext(_)) => {
                Err(Status::unauthenticated(refused.to_string()))
            }
        }
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            gate: self.clone(),
            inner,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Gated<S> {
    gate: Gate,
    inner: S,
}

impl<S, B> Service<http::Request<B>> for Gated<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        match self.gate.judge(request.extensions(), request.uri().path()) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Either::Left(self.inner.call(request))
            }
            Err(status) => {
                tracing::debug!(
                    path = request.uri().path(),
                    reason = status.message(),
                    "refused"
                );
                Either::Right(ready(Ok(status.into_http())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// Every method there is, the role a client needs for it, and whether it is answered in
    /// plaintext.
    const METHODS: &[(&str, Role, bool)] = &[
        ("types.Merlin/CreateService", Role::Admin, true),
        ("types.Merlin/UpdateService", Role::Admin, true),
        ("types.Merlin/DeleteService", Role::Admin, true),
        ("types.Merlin/CreateServer", Role::Admin, true),
        // Of weights and health checks; the rest of an update needs an admin.
        ("types.Merlin/UpdateServer", Role::Operator, true),
        ("types.Merlin/DeleteServer", Role::Admin, true),
        ("types.Merlin/List", Role::Viewer, true),
        ("merlin.v1.Node/Watch", Role::Viewer, true),
        ("merlin.v1.Node/Status", Role::Viewer, true),
        ("merlin.v1.Node/Live", Role::Viewer, true),
        ("merlin.v1.Node/AcceptRemoval", Role::Admin, true),
        ("merlin.v1.Cluster/Describe", Role::Viewer, false),
        ("merlin.v1.Cluster/Audit", Role::Operator, false),
        ("merlin.v1.Cluster/CreateToken", Role::Admin, false),
        ("merlin.v1.Cluster/ListTokens", Role::Admin, false),
        ("merlin.v1.Cluster/RevokeToken", Role::Admin, false),
        ("merlin.v1.Cluster/SaveSnapshot", Role::Admin, false),
        ("merlin.v1.Cluster/Join", Role::Admin, false),
        ("merlin.v1.Cluster/RemoveNode", Role::Admin, false),
        ("merlin.v1.Cluster/PromoteNode", Role::Admin, false),
        ("merlin.v1.Cluster/DemoteNode", Role::Admin, false),
        ("merlin.v1.Cluster/TransferLeader", Role::Admin, false),
        ("merlin.v1.Cluster/Leave", Role::Admin, false),
        ("merlin.v1.Cluster/RenewCertificate", Role::Admin, false),
        ("merlin.v1.Cluster/RotateAuthority", Role::Admin, false),
        ("merlin.v1.Cluster/CreateClient", Role::Admin, false),
        ("merlin.v1.Cluster/ListClients", Role::Admin, false),
        ("merlin.v1.Cluster/RevokeClient", Role::Admin, false),
    ];

    #[test]
    fn every_method_is_open_to_those_who_may_call_it() {
        for &(method, needed, in_plaintext) in METHODS {
            for role in Role::ALL {
                let admitted = admit(Rights::Client(role), method);
                assert_eq!(admitted.is_ok(), role >= needed, "{method}: {role}");
                if let Err(refused) = admitted {
                    let words = refused.to_string();
                    assert!(words.contains(&format!("needs role {needed}")), "{words}");
                }
            }
            let admitted = admit(Rights::Catalog, method);
            assert_eq!(admitted.is_ok(), in_plaintext, "{method}");
            assert_eq!(admit(Rights::Everything, method), Ok(()), "{method}");
        }
    }

    #[test]
    fn the_table_above_has_every_method_of_the_api() {
        let files = FileDescriptorSet::decode(merlin_proto::FILE_DESCRIPTORS).unwrap();
        let mut methods = Vec::new();
        for file in &files.file {
            // Nodes are asked by nodes, on another port.
            if file.package() == "merlin.peer.v1" {
                continue;
            }
            for service in &file.service {
                let path = |m: &str| format!("{}.{}/{m}", file.package(), service.name());
                methods.extend(service.method.iter().map(|method| path(method.name())));
            }
        }
        let mut listed: Vec<_> = METHODS.iter().map(|(method, ..)| *method).collect();
        listed.sort_unstable();
        methods.sort_unstable();
        assert_eq!(listed, methods);
    }

    #[test]
    fn health_and_reflection_are_reading() {
        for method in [
            "grpc.health.v1.Health/Check",
            "grpc.health.v1.Health/Watch",
            "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ] {
            assert_eq!(admit(Rights::Client(Role::Viewer), method), Ok(()));
            assert_eq!(admit(Rights::Catalog, method), Ok(()));
        }
    }

    #[test]
    fn a_method_without_a_rule_is_for_administrators() {
        for method in ["", "x", "merlin.v1.Cluster/Explode", "other.Service/Call"] {
            assert!(admit(Rights::Client(Role::Operator), method).is_err());
            assert!(admit(Rights::Catalog, method).is_err());
        }
    }
}
