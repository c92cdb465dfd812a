//! The two ends of a migration: an etcd, or the raft store behind a running daemon.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use merlin_client::{Contexts, Wish};
use merlin_etcd::EtcdStore;
use merlin_model::difference::Step;
use merlin_model::store::Consistency;
use merlin_model::{Catalog, Command, RequestId};
use merlin_proto::log::command::Mutation as Message;
use merlin_proto::metadata::Conditions;
use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::v1::StatusRequest;
use merlin_proto::v1::node_client::NodeClient;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::{MigrateArgs, StoreKind};
use crate::cli::{Settings, StoreBackend};
use crate::{clock, config};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    From,
    To,
}

#[derive(Debug)]
pub(super) struct End {
    place: Place,
    timeout: Duration,
}

#[derive(Debug)]
enum Place {
    Etcd(EtcdStore),
    Daemon(Channel),
}

impl End {
    pub(super) async fn open(args: &MigrateArgs, side: Side) -> Result<Self> {
        args.check()?;
        let kind = match side {
            Side::From => args.from,
            Side::To => args.to,
        };
        let place = match kind {
            StoreKind::Raft => Place::Daemon(daemon(args).await?),
            StoreKind::Etcd3 => Place::Etcd(etcd(args, side, StoreBackend::Etcd3).await?),
            StoreKind::Etcd2 => Place::Etcd(etcd(args, side, StoreBackend::Etcd2).await?),
        };
        Ok(Self {
            place,
            timeout: args.timeout,
        })
    }

    pub(super) async fn close(self) {
        if let Place::Etcd(store) = self.place {
            store.shutdown().await;
        }
    }

    /// Records that cannot be read, and so cannot be moved.
    pub(super) fn passed_over(&self) -> Vec<String> {
        match &self.place {
            Place::Etcd(store) => {
                let problems = store.status().problems;
                problems.iter().map(ToString::to_string).collect()
            }
            Place::Daemon(_) => Vec::new(),
        }
    }

    /// The catalog as it is now.
    pub(super) async fn read(&self) -> Result<Catalog> {
        match &self.place {
            Place::Etcd(store) => {
                let read = store.read(Consistency::Linearizable, self.timeout);
                Ok((*read.await?).clone())
            }
            Place::Daemon(channel) => {
                let mut client = MerlinClient::new(channel.clone());
                client = client.max_decoding_message_size(usize::MAX);
                let listing = client.list(self.timed(())).await.map_err(said)?;
                Ok(Catalog::try_from(listing.into_inner())?)
            }
        }
    }

    /// Makes one change, unless somebody else changed the object meanwhile.
    pub(super) async fn make(&self, step: &Step) -> Result<()> {
        let id = format!("migrate-{:032x}", rand::random::<u128>());
        let request_id = Some(RequestId::new(&id)?);
        match &self.place {
            Place::Etcd(store) => {
                let command = Command {
                    request_id,
                    expected_revision: Some(step.expected),
                    ..Command::new(clock::now(), step.mutation.clone())
                };
                store.propose(command, self.timeout).await?;
            }
            Place::Daemon(channel) => {
                let conditions = Conditions {
                    expected_revision: Some(step.expected),
                    request_id,
                };
                let mutation = Message::from(&step.mutation);
                self.send(channel, mutation, &conditions)
                    .await
                    .map_err(said)?;
            }
        }
        Ok(())
    }

    async fn send(
        &self,
        channel: &Channel,
        mutation: Message,
        conditions: &Conditions,
    ) -> Result<(), Status> {
        let mut client = MerlinClient::new(channel.clone());
        macro_rules! call {
            ($method:ident, $message:expr) => {{
                let mut request = self.timed($message);
                conditions.write(request.metadata_mut());
                client.$method(request).await.map(drop)
            }};
        }
        match mutation {
            Message::CreateService(it) => call!(create_service, it),
            Message::UpdateService(it) => call!(update_service, it),
            Message::DeleteService(id) => call!(delete_service, id),
            Message::CreateServer(it) => call!(create_server, it),
            Message::UpdateServer(it) => call!(update_server, it),
            Message::DeleteServer(it) => call!(delete_server, it),
        }
    }

    /// Refuses to fill a catalog that some node makes its kernel match: it would take away what has
    /// not come yet.
    pub(super) async fn nobody_programs_from_it(&self) -> Result<()> {
        let Place::Daemon(channel) = &self.place else {
            return Ok(());
        };
        let mut client = NodeClient::new(channel.clone());
        let status = client.status(self.timed(StatusRequest { local: false }));
        let nodes = status.await.map_err(said)?.into_inner().nodes;
        for node in nodes {
            let name = node.name;
            ensure!(
                node.error.is_empty(),
                "whether node {name} programs its kernel is not known: {}",
                node.error
            );
            ensure!(
                !node.reconciling,
                "node {name} programs its kernel from the catalog that is to be filled, and would \
                 take away what has not come yet: start it with --reconcile=false, run this, and \
                 start it again without"
            );
        }
        Ok(())
    }

    fn timed<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}

fn said(status: Status) -> anyhow::Error {
    anyhow!("{}", status.message())
}

async fn daemon(args: &MigrateArgs) -> Result<Channel> {
    let wish = Wish {
        host: args.host.clone(),
        port: args.port,
        socket: args
            .host
            .is_none()
            .then(|| args.run_dir.join("merlin.sock")),
        run_dir: args.run_dir.clone(),
        context: None,
        plaintext: false,
    };
    let connected = merlin_client::connect(&wish, &Contexts::of_user(), args.timeout, |_| {}).await;
    let channel = connected.context(
        "the raft store is reached through a daemon that runs: start one on this host, or name \
         another with -H",
    )?;
    let mut client = NodeClient::new(channel.clone());
    let mut request = Request::new(StatusRequest { local: true });
    request.set_timeout(args.timeout);
    let status = client.status(request).await.map_err(said)?.into_inner();
    let store = status.nodes.into_iter().find_map(|node| node.store);
    let backend = store.unwrap_or_default().backend;
    if backend != "raft" {
        bail!(
            "the daemon keeps its catalog in {backend}, not in raft: start it without --store-endpoints"
        );
    }
    Ok(channel)
}

async fn etcd(args: &MigrateArgs, side: Side, backend: StoreBackend) -> Result<EtcdStore> {
    let (name, endpoints, settings) = match side {
        Side::From => (
            "from",
            &args.from_endpoints,
            settings(
                [
                    &args.from_ca,
                    &args.from_cert,
                    &args.from_key,
                    &args.from_password_file,
                ],
                &args.from_prefix,
                &args.from_user,
            ),
        ),
        Side::To => (
            "to",
            &args.to_endpoints,
            settings(
                [
                    &args.to_ca,
                    &args.to_cert,
                    &args.to_key,
                    &args.to_password_file,
                ],
                &args.to_prefix,
                &args.to_user,
            ),
        ),
    };
    let settings = Settings {
        store_backend: Some(backend),
        store_endpoints: endpoints.clone(),
        // What is read here is told to nobody but the operator.
        max_removal: Some(100),
        ..settings
    };
    let config = config::etcd(&settings).map_err(|error| {
        anyhow!(
            "{}",
            format!("{error:#}").replace("--store-", &format!("--{name}-"))
        )
    })?;
    let config = config.context("etcd has endpoints")?;
    let endpoints = config.endpoints.join(",");
    let store = EtcdStore::open(config);
    let connected = async {
        while !store.status().is_connected() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(args.timeout, connected).await.is_err() {
        let reason = store.status().unavailable.unwrap_or_default();
        bail!("--{name}-endpoints: {endpoints}: {reason}");
    }
    Ok(store)
}

fn settings(
    [ca, cert, key, password_file]: [&Option<PathBuf>; 4],
    prefix: &Option<String>,
    user: &Option<String>,
) -> Settings {
    Settings {
        store_prefix: prefix.clone(),
        store_ca: ca.clone(),
        store_cert: cert.clone(),
        store_key: key.clone(),
        store_user: user.clone(),
        store_password_file: password_file.clone(),
        ..Settings::default()
    }
}
