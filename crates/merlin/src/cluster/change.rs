//! `merlin cluster remove`, `promote`, `demote`, `transfer-leader`, `leave`, `cert renew` and
//! `ca rotate`.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use merlin_proto::v1::{
    DemoteNodeRequest, LeaveRequest, LeaveResponse, MembersResponse, PromoteNodeRequest,
    RemoveNodeRequest, RenewCertificateRequest, RotateAuthorityRequest, RotateAuthorityResponse,
    TransferLeaderRequest,
};

use super::ClusterArgs;
use super::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct NodeArg {
    /// Id of the node, or its name if no other node has the same
    node: String,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    #[command(flatten)]
    node: NodeArg,
    /// Even when too few of the voters that remain answer to decide anything
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct TransferArgs {
    /// Id or name of the voter that is to lead [default: whichever follows best]
    node: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct LeaveArgs {
    /// Also take the services of the catalog out of the kernel, which ends their connections
    #[arg(long)]
    flush: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum CertCommand {
    /// Give this node a new certificate now
    ///
    /// It does so by itself when two thirds of the 90 days are over. Connections that exist stay.
    Renew,
}

#[derive(Debug, Subcommand)]
pub(super) enum CaCommand {
    /// Replace the certificate authority, for instance when somebody may have copied its key
    ///
    /// First every member trusts the new authority and the former one, then every member shows a
    /// certificate of the new one. No connection is lost. It takes all members: what is away has to
    /// be brought back or removed, then run this again, and it goes on where it was.
    ///
    /// Clients on other hosts go on with the files they have. Afterwards revoke each of them and make
    /// it a new one (merlin cluster client revoke, create), then end this with --finish. Join tokens
    /// made before are of no use any more.
    Rotate {
        /// Trust the former authority no more; files of clients made before are of no use from then
        #[arg(long)]
        finish: bool,
    },
}

impl RemoveArgs {
    pub(super) async fn perform(&self, args: &ClusterArgs) -> Result<ExitCode, Failure> {
        let request = args.request(RemoveNodeRequest {
            node: self.node.node.clone(),
            force: self.force,
        });
        let removed = args.connect().await?.remove_node(request).await?;
        args.print(&removed.into_inner(), |removed| {
            let id = removed.node_id;
            changed("removed", "", removed)
                + &format!(
                    "nobody listens to node {id} any more; it serves on with the catalog it has\n"
                )
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

pub(super) async fn promote(args: &ClusterArgs, node: &NodeArg) -> Result<ExitCode, Failure> {
    let node = node.node.clone();
    let request = args.request(PromoteNodeRequest { node });
    let promoted = args.connect().await?.promote_node(request).await?;
    args.print(&promoted.into_inner(), |promoted| {
        changed("promoted", "a voter", promoted)
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn demote(args: &ClusterArgs, node: &NodeArg) -> Result<ExitCode, Failure> {
    let node = node.node.clone();
    let request = args.request(DemoteNodeRequest { node });
    let demoted = args.connect().await?.demote_node(request).await?;
    args.print(&demoted.into_inner(), |demoted| {
        changed("demoted", "a learner", demoted)
    })?;
    Ok(ExitCode::SUCCESS)
}

impl TransferArgs {
    pub(super) async fn perform(&self, args: &ClusterArgs) -> Result<ExitCode, Failure> {
        let node = self.node.clone().unwrap_or_default();
        let request = args.request(TransferLeaderRequest { node });
        let transferred = args.connect().await?.transfer_leader(request).await?;
        args.print(&transferred.into_inner(), |leader| {
            let already = if leader.already { " already" } else { "" };
            format!("node {} ({}) leads{already}\n", leader.node_id, leader.name)
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl LeaveArgs {
    pub(super) async fn perform(&self, args: &ClusterArgs) -> Result<ExitCode, Failure> {
        let request = args.request(LeaveRequest { flush: self.flush });
        let left = args.connect().await?.leave(request).await?;
        args.print(&left.into_inner(), |left| self.report(left))?;
        Ok(ExitCode::SUCCESS)
    }

    fn report(&self, left: &LeaveResponse) -> String {
        let kernel = if self.flush {
            "the services of the catalog are out of the kernel"
        } else {
            "the kernel keeps its rules, and health checks go on, until merlin is stopped here"
        };
        format!(
            "left the cluster; this node's state is in {}\n{kernel}\n\
             stop merlin on this host: started again, it would begin a cluster of its own\n",
            left.archive
        )
    }
}

impl CertCommand {
    pub(super) async fn perform(&self, args: &ClusterArgs) -> Result<ExitCode, Failure> {
        let Self::Renew = self;
        let request = args.request(RenewCertificateRequest {});
        let renewed = args.connect().await?.renew_certificate(request).await?;
        args.print(&renewed.into_inner(), |renewed| {
            let expires = renewed.expires.as_ref().map(ToString::to_string);
            format!(
                "this node's certificate is good until {}\n",
                expires.unwrap_or_default()
            )
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl CaCommand {
    pub(super) async fn perform(&self, args: &ClusterArgs) -> Result<ExitCode, Failure> {
        let Self::Rotate { finish } = *self;
        let request = args.request(RotateAuthorityRequest { finish });
        let rotated = args.connect().await?.rotate_authority(request).await?;
        args.print(&rotated.into_inner(), rotated_words)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn rotated_words(rotated: &RotateAuthorityResponse) -> String {
    let RotateAuthorityResponse { authority, former } = rotated;
    let mut text = format!("every member has a certificate of authority sha256 {authority}\n");
    if former.is_empty() {
        text.push_str("no other one is trusted\n");
    } else {
        let _ = write!(
            text,
            "the former one is still trusted, sha256 {former}\n\
             revoke clients on other hosts and make new ones (merlin cluster client), then run\n\
             merlin cluster ca rotate --finish\n"
        );
    }
    text
}

/// What became of a node, and of the voters with it.
fn changed(done: &str, is_now: &str, change: &MembersResponse) -> String {
    let MembersResponse {
        node_id,
        name,
        voters_before,
        voters_after,
        already,
    } = change;
    if *already {
        return format!("node {node_id} ({name}) is {is_now} already\n");
    }
    let mut text = format!("{done} node {node_id} ({name})\n");
    let list = |ids: &[u64]| {
        let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
        ids.join(", ")
    };
    let _ = if voters_before == voters_after {
        writeln!(text, "voters  {}, as before", list(voters_after))
    } else {
        let (before, after) = (list(voters_before), list(voters_after));
        writeln!(text, "voters  {after}, before: {before}")
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(before: &[u64], after: &[u64]) -> MembersResponse {
        MembersResponse {
            node_id: 3,
            name: "lb3".into(),
            voters_before: before.to_vec(),
            voters_after: after.to_vec(),
            already: false,
        }
    }

    #[test]
    fn a_change_shows_the_voters_before_and_after() {
        assert_eq!(
            changed("removed", "", &change(&[1, 2, 3], &[1, 2])),
            "removed node 3 (lb3)\nvoters  1, 2, before: 1, 2, 3\n"
        );
        assert_eq!(
            changed("removed", "", &change(&[1, 2], &[1, 2])),
            "removed node 3 (lb3)\nvoters  1, 2, as before\n"
        );
        let already = MembersResponse {
            already: true,
            ..change(&[1], &[1])
        };
        assert_eq!(
            changed("demoted", "a learner", &already),
            "node 3 (lb3) is a learner already\n"
        );
    }
}
