//! Who may change what.
//!
//! A role is what the cluster remembers of a client it has issued a certificate to; roles are
//! ordered, and each may do what the ones before it may. Which calls of the API a role opens is
//! the API's business; what a mutation may contain is decided here.

use std::fmt;
use std::str::FromStr;

use crate::command::{Mutation, ServerPatch};
use crate::service::Invalid;

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Changes weights and health checks of real servers that exist, too.
    Operator,
    /// Does everything.
    Admin,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// Whether this role may do what `needed` may. `what` says what was asked for, as in "needs".
    pub fn require(self, needed: Self, what: &str) -> Result<(), Denied> {
        if self >= needed {
            Ok(())
        } else {
            Err(Denied {
                what: what.to_owned(),
                needed,
                role: self,
            })
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let role = Self::ALL.into_iter().find(|role| role.name() == text);
        role.ok_or_else(|| {
            let reason = format!("unknown role {text:?}: one of admin, operator, viewer");
            Invalid::new("role", reason)
        })
    }
}

/// The role does not reach.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} needs role {needed}, this client's is {role}")]
pub struct Denied {
    pub what: String,
    pub needed: Role,
    pub role: Role,
}

/// Decides about a mutation. An operator steers traffic between the servers there are, and leaves
/// what there is to an admin.
pub fn allows(role: Role, mutation: &Mutation) -> Result<(), Denied> {
    let (needed, what) = match mutation {
        Mutation::CreateService { .. } => (Role::Admin, "adding a service"),
        Mutation::UpdateService { .. } => (Role::Admin, "changing a service"),
        Mutation::DeleteService { .. } => (Role::Admin, "deleting a service"),
        Mutation::CreateServer { .. } => (Role::Admin, "adding a real server"),
        Mutation::DeleteServer { .. } => (Role::Admin, "deleting a real server"),
        Mutation::UpdateServer { patch, .. } => match patch {
            ServerPatch {
                weight: _,
                check: _,
                forwarding: None,
                upper_threshold: None,
                lower_threshold: None,
            } => (Role::Operator, "changing weights and health checks"),
            ServerPatch {
                forwarding: Some(_),
                ..
            } => (Role::Admin, "changing a real server's forwarding method"),
            _ => (Role::Admin, "changing a real server's thresholds"),
        },
    };
    role.require(needed, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{CheckPatch, ForwardingPatch, ServicePatch};
    use crate::server::{
        Forwarding, HealthCheck, RealServerConfig, RealServerKey, Thresholds, Weight,
    };
    use crate::service::{Protocol, ServiceConfig, ServiceId, ServiceKey};

    fn mutations() -> Vec<(Mutation, Role)> {
        let service = ServiceId::new("web").unwrap();
        let key = RealServerKey {
            address: [10, 1, 0, 1].into(),
            port: 80,
        };
        let config = RealServerConfig {
            weight: Weight::new(1).unwrap(),
            forwarding: Forwarding::Masq,
            thresholds: Thresholds::default(),
        };
        let update = |patch| Mutation::UpdateServer {
            service: ServiceId::new("web").unwrap(),
            key,
            patch,
        };
        let weight = Some(Weight::new(0).unwrap());
        vec![
            (
                Mutation::CreateService {
                    id: service.clone(),
                    key: ServiceKey::Address {
                        address: [10, 0, 0, 1].into(),
                        port: 80,
                        protocol: Protocol::Tcp,
                    },
                    config: ServiceConfig::new("rr".parse().unwrap()),
                },
                Role::Admin,
            ),
            (
                Mutation::UpdateService {
                    id: service.clone(),
                    patch: ServicePatch::default(),
                },
                Role::Admin,
            ),
            (
                Mutation::DeleteService {
                    id: service.clone(),
                },
                Role::Admin,
            ),
            (
                Mutation::CreateServer {
                    service: service.clone(),
                    key,
                    config,
                    check: HealthCheck::default(),
                },
                Role::Admin,
            ),
            (
                Mutation::DeleteServer {
                    service: service.clone(),
                    key,
                },
                Role::Admin,
            ),
            (update(ServerPatch::default()), Role::Operator),
            (
                update(ServerPatch {
                    weight,
                    ..ServerPatch::default()
                }),
                Role::Operator,
            ),
            (
                update(ServerPatch {
                    weight,
                    check: CheckPatch {
                        endpoint: Some(Some("http://:80/".parse().unwrap())),
                        ..CheckPatch::default()
                    },
                    ..ServerPatch::default()
                }),
                Role::Operator,
            ),
            (
                update(ServerPatch {
                    weight,
                    forwarding: Some(ForwardingPatch::Route),
                    ..ServerPatch::default()
                }),
                Role::Admin,
            ),
            (
                update(ServerPatch {
                    upper_threshold: Some(5),
                    ..ServerPatch::default()
                }),
                Role::Admin,
            ),
            (
                update(ServerPatch {
                    lower_threshold: Some(5),
                    ..ServerPatch::default()
                }),
                Role::Admin,
            ),
        ]
    }

    #[test]
    fn each_mutation_needs_its_role_and_names_it() {
        for (mutation, needed) in mutations() {
            for role in Role::ALL {
                match allows(role, &mutation) {
                    Ok(()) => assert!(role >= needed, "{role}: {mutation:?}"),
                    Err(denied) => {
                        assert!(role < needed, "{role}: {mutation:?}");
                        assert_eq!(denied.needed, needed);
                        let words = denied.to_string();
                        assert!(words.contains(&format!("needs role {needed}")), "{words}");
                    }
                }
            }
        }
    }

    #[test]
    fn roles_read_back_as_they_are_written() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        let error = "root".parse::<Role>().unwrap_err();
        assert!(error.to_string().contains("operator"), "{error}");
    }
}
