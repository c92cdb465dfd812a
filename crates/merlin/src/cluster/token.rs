//! `merlin cluster token ...`: what lets new nodes in.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use merlin_proto::v1::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest};

use super::failure::Failure;
use super::{ClusterArgs, tables};
use crate::cli::parse_duration;

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token and print the command that joins a new node with it
    ///
    /// The token is a secret: whoever has it can join a node. It is shown once.
    Create {
        /// Whom the token is for
        #[arg(long, default_value = "")]
        name: String,
        /// What the new node becomes: a voter counts for the quorum, a learner only follows
        #[arg(long, default_value = "voter", value_parser = ["voter", "learner"])]
        role: String,
        /// How long the token is good for
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
        ttl: Duration,
        /// How many nodes may join with it
        #[arg(long, default_value_t = 1)]
        uses: u32,
    },
    /// List tokens; their secrets are not kept
    List,
    /// Make a token worthless
    Revoke {
        /// The id that `token list` shows
        id: String,
    },
}

impl TokenCommand {
    pub(super) async fn perform(&self, args: &ClusterArgs) -> Result<ExitCode, Failure> {
        let mut cluster = args.connect().await?;
        match self {
            Self::Create {
                name,
                role,
                ttl,
                uses,
            } => {
                let request = CreateTokenRequest {
                    name: name.clone(),
                    role: role.clone(),
                    ttl: prost_types::Duration::try_from(*ttl).ok(),
                    uses: *uses,
                };
                let created = cluster.create_token(args.request(request)).await?;
                args.print(&created.into_inner(), |created| {
                    format!("merlin cluster join {}\n", created.token)
                })?;
            }
            Self::List => {
                let request = args.request(ListTokensRequest {});
                let listed = cluster.list_tokens(request).await?;
                args.print(&listed.into_inner(), tables::tokens)?;
            }
            Self::Revoke { id } => {
                let request = RevokeTokenRequest { id: id.clone() };
                cluster.revoke_token(args.request(request)).await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
