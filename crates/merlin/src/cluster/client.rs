//! `merlin cluster client ...`: who administers the cluster from other hosts.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Subcommand;
use merlin_client::Context;
use merlin_client::context::Parts;
use merlin_proto::v1::{
    CreateClientRequest, CreateClientResponse, ListClientsRequest, RevokeClientRequest,
};
use merlin_raft::identity::NodeKey;

use super::failure::Failure;
use super::{ClusterArgs, tables};
use crate::cli::parse_duration;

#[derive(Debug, Subcommand)]
pub(super) enum ClientCommand {
    /// Make a client and write the file it logs in with (meradm login FILE)
    ///
    /// The file holds a private key, which is made here and kept nowhere else: whoever has the file
    /// is the client.
    Create {
        /// What the client is called in lists and in the audit trail
        name: String,
        /// What it may do: a viewer reads, an operator changes weights and health checks too, an
        /// admin does everything
        #[arg(long, value_parser = ["viewer", "operator", "admin"])]
        role: String,
        /// How long it is good for
        #[arg(long, value_name = "DURATION", default_value = "90days", value_parser = parse_duration)]
        ttl: Duration,
        /// File to write, readable by its owner only; - for standard output [default: NAME.toml]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// List clients
    List,
    /// Have every node refuse a client from now on
    Revoke {
        /// Its name, or the id that `client list` shows
        client: String,
    },
}

impl ClientCommand {
    pub(super) async fn perform(&self, args: &ClusterArgs) -> Result<ExitCode, Failure> {
        match self {
            Self::Create {
                name,
                role,
                ttl,
                out,
            } => {
                let file = out.clone().unwrap_or_else(|| format!("{name}.toml").into());
                let to_stdout = file.as_os_str() == "-";
                if !to_stdout && file.exists() {
                    let file = file.display();
                    return Err(anyhow!("--out: {file} exists already").into());
                }
                let mut cluster = args.connect().await?;
                let key = NodeKey::generate().context("making a key")?;
                let csr = key.signing_request().context("making a key")?;
                let request = CreateClientRequest {
                    name: name.clone(),
                    role: role.clone(),
                    ttl: prost_types::Duration::try_from(*ttl).ok(),
                    csr: csr.to_vec(),
                };
                let created = cluster.create_client(args.request(request)).await?;
                let created = created.into_inner();
                let context = context(name, role, &key, &created);
                if to_stdout {
                    io::stdout()
                        .lock()
                        .write_all(context.to_text().as_bytes())?;
                } else {
                    context.write(&file, false).map_err(|error| {
                        let id = &created.id;
                        let undo = format!("run `merlin cluster client revoke {id}`");
                        anyhow!(error).context(format!("the client was made, {undo}"))
                    })?;
                    args.print(&created, |created| {
                        tables::created_client(name, role, &file, created)
                    })?;
                }
                if created.nodes.is_empty() {
                    let _ = writeln!(
                        io::stderr(),
                        "merlin: no node answers clients on other hosts: run the daemons with \
                         --api-addr 0.0.0.0:4282, and name one with meradm -H"
                    );
                }
            }
            Self::List => {
                let mut cluster = args.connect().await?;
                let request = args.request(ListClientsRequest {});
                let listed = cluster.list_clients(request).await?;
                args.print(&listed.into_inner(), tables::clients)?;
            }
            Self::Revoke { client } => {
                let mut cluster = args.connect().await?;
                let client = client.clone();
                let request = args.request(RevokeClientRequest { client });
                cluster.revoke_client(request).await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn context(name: &str, role: &str, key: &NodeKey, created: &CreateClientResponse) -> Context {
    Context::new(Parts {
        client: name.to_owned(),
        role: role.to_owned(),
        cluster_id: created.cluster_id.clone(),
        nodes: created.nodes.clone(),
        ca_certificates: std::iter::once(&created.ca_certificate)
            .chain(&created.also_trusted)
            .cloned()
            .collect(),
        certificate: created.certificate.clone(),
        private_key: key.der().to_vec(),
    })
}
