//! Changes of the cluster in one line of words, for the audit trail. Those of the catalog have
//! theirs in the model.

use crate::cluster::{ClusterAnswer, ClusterChange};
use crate::identity::{
    CaFingerprint, ClientAnswer, ClientCommand, EnrollmentAnswer, EnrollmentCommand,
};
use crate::rotation::Turn;

/// What a change did; nothing when it was refused.
pub(crate) fn words(change: &ClusterChange, answer: &ClusterAnswer) -> Option<String> {
    match (change, answer) {
        (ClusterChange::Found(founding), _) => {
            Some(format!("found the cluster {}", founding.cluster))
        }
        (ClusterChange::Enrollment(command), ClusterAnswer::Enrollment(answer)) => {
            enrollment(command, answer)
        }
        (ClusterChange::Client(command), ClusterAnswer::Client(answer)) => client(command, answer),
        (ClusterChange::Raise(level), _) => Some(format!("agree on commands of level {level}")),
        (ClusterChange::Rotate(step, turn), ClusterAnswer::Rotated(reached)) => {
            (*reached == step + 1).then(|| rotation(turn))
        }
        (
            ClusterChange::Enrollment(_) | ClusterChange::Client(_) | ClusterChange::Rotate(..),
            _,
        ) => None,
    }
}

fn rotation(turn: &Turn) -> String {
    match turn {
        Turn::Begin(next) => {
            let next = CaFingerprint::of(&next.certificate);
            format!("trust a new certificate authority, sha256 {next}")
        }
        Turn::Reissue => "sign with the new certificate authority".to_owned(),
        Turn::Finish => "trust the former certificate authority no more".to_owned(),
    }
}

fn client(command: &ClientCommand, answer: &ClientAnswer) -> Option<String> {
    match (command, answer) {
        (_, ClientAnswer::Refused(_)) => None,
        (ClientCommand::Create(id, client), _) => Some(format!(
            "create client {} ({}), id {id}",
            client.name, client.role
        )),
        (ClientCommand::Revoke(who), _) => Some(format!("revoke client {who}")),
    }
}

fn enrollment(command: &EnrollmentCommand, answer: &EnrollmentAnswer) -> Option<String> {
    if let EnrollmentAnswer::Refused(_) = answer {
        return None;
    }
    Some(match command {
        EnrollmentCommand::CreateToken(id, token) => {
            let (role, uses) = (token.role, token.uses_left);
            let named = match token.name.as_str() {
                "" => String::new(),
                name => format!(" for {name}"),
            };
            format!("create join token {id}{named}: {role}, {uses} use(s)")
        }
        EnrollmentCommand::RevokeToken(id) => format!("revoke join token {id}"),
        EnrollmentCommand::Redeem(redemption) => {
            let (name, addr, token) = (&redemption.name, &redemption.addr, redemption.token);
            match answer {
                EnrollmentAnswer::Admitted(admission) => {
                    let (node, role) = (admission.node, admission.role);
                    format!("admit node {node} ({name}, {addr}) as a {role} by join token {token}")
                }
                _ => format!("admit {name} by join token {token}"),
            }
        }
        EnrollmentCommand::RemoveNode(node) => format!("remove node {node}"),
        EnrollmentCommand::SetRole(node, role) => format!("make node {node} a {role}"),
        EnrollmentCommand::Move { node, name, addr } => {
            format!("node {node} is called {name} and reached at {addr}")
        }
    })
}
