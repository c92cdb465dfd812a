//! A node to administer: the API on a real catalog, in this process, and the program under test.

#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use futures::Stream;
use futures::stream::BoxStream;
use merlin_model::command::{Command as CatalogCommand, Mutation, Timestamp};
use merlin_model::store::ProposeError;
use merlin_model::{Catalog, EventRing, Revision};
use merlin_proto::metadata::{self, Conditions};
use merlin_proto::status::ToStatus;
use merlin_proto::types::merlin_server::{Merlin, MerlinServer};
use merlin_proto::types::{ListResponse, RealServer, VirtualService};
use merlin_proto::v1::node_server::{Node as NodeApi, NodeServer};
use merlin_proto::v1::{
    AcceptRemovalRequest, AcceptRemovalResponse, LiveRequest, LiveResponse, NodeStatus, NodeTable,
    StatusRequest, StatusResponse, WatchRequest, WatchResponse,
};
use merlin_proto::{listing, server, service};
use tokio::sync::{oneshot, watch};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream, WatchStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// How the store behind the node misbehaves, once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// There is no leader; nothing happens.
    Unavailable,
    /// The change is made, but its answer is lost.
    AnswerLost,
    /// The client's role does not reach.
    Denied,
}

/// The catalog outlives the node that serves it, as a store does.
#[derive(Clone, Debug)]
pub(crate) struct Store(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    catalog: Catalog,
    ring: watch::Sender<EventRing>,
    faults: VecDeque<Fault>,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            catalog: Catalog::default(),
            ring: watch::Sender::default(),
            faults: VecDeque::new(),
        })))
    }

    pub(crate) fn fail_with(&self, faults: &[Fault]) {
        self.0.lock().unwrap().faults.extend(faults);
    }

    pub(crate) fn faults_left(&self) -> usize {
        self.0.lock().unwrap().faults.len()
    }

    pub(crate) fn catalog(&self) -> Catalog {
        self.0.lock().unwrap().catalog.clone()
    }

    fn propose<T, E: ToStatus>(
        &self,
        request: Request<T>,
        parse: impl FnOnce(&T) -> Result<Mutation, E>,
    ) -> Result<Response<()>, Status> {
        let mut state = self.0.lock().unwrap();
        let fault = state.faults.pop_front();
        let reason = "on purpose".to_owned();
        if let Some(Fault::Unavailable) = fault {
            return Err(ProposeError::Unavailable { reason }.to_status());
        }
        if let Some(Fault::Denied) = fault {
            let words = "CreateService needs role admin, this client's is viewer";
            return Err(Status::permission_denied(words));
        }
        let conditions = Conditions::read(request.metadata()).map_err(|e| e.to_status())?;
        let mutation = parse(request.get_ref()).map_err(|e| e.to_status())?;
        let command = CatalogCommand {
            request_id: conditions.request_id,
            expected_revision: conditions.expected_revision,
            ..CatalogCommand::new(Timestamp(0), mutation)
        };
        let applied = state.catalog.apply(&command);
        let applied = applied.map_err(|rejection| rejection.to_status())?;
        if !applied.changes.is_empty() {
            let revision = state.catalog.revision();
            state
                .ring
                .send_modify(|ring| ring.push(revision, applied.changes));
        }
        if let Some(Fault::AnswerLost) = fault {
            return Err(ProposeError::Unknown { reason }.to_status());
        }
        let mut response = Response::new(());
        metadata::write_reply(&applied.reply, response.metadata_mut());
        Ok(response)
    }
}

#[tonic::async_trait]
impl Merlin for Store {
    async fn create_service(
        &self,
        request: Request<VirtualService>,
    ) -> Result<Response<()>, Status> {
        self.propose(request, service::create)
    }

    async fn update_service(
        &self,
        request: Request<VirtualService>,
    ) -> Result<Response<()>, Status> {
        self.propose(request, service::update)
    }

    async fn delete_service(&self, request: Request<String>) -> Result<Response<()>, Status> {
        self.propose(request, |id| service::delete(id))
    }

    async fn create_server(&self, request: Request<RealServer>) -> Result<Response<()>, Status> {
        self.propose(request, server::create)
    }

    async fn update_server(&self, request: Request<RealServer>) -> Result<Response<()>, Status> {
        self.propose(request, server::update)
    }

    async fn delete_server(&self, request: Request<RealServer>) -> Result<Response<()>, Status> {
        self.propose(request, server::delete)
    }

    async fn list(&self, request: Request<()>) -> Result<Response<ListResponse>, Status> {
        metadata::read_consistency(request.metadata()).map_err(|e| e.to_status())?;
        Ok(Response::new((&self.catalog()).into()))
    }
}

#[tonic::async_trait]
impl NodeApi for Store {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let ring = self.0.lock().unwrap().ring.subscribe();
        let now = ring.borrow().newest();
        let from = request.into_inner().from_revision.map_or(now, Revision);
        if let Err(compacted) = ring.borrow().after(from) {
            return Err(compacted.to_status());
        }
        Ok(Response::new(Box::pin(changes(ring, from))))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let revision = self.catalog().revision().0;
        Ok(Response::new(StatusResponse {
            nodes: vec![NodeStatus {
                name: "lb1".into(),
                version: "0.3.0".into(),
                catalog_revision: revision,
                programmed_revision: revision,
                reconciling: true,
                ..Default::default()
            }],
        }))
    }

    async fn accept_removal(
        &self,
        _: Request<AcceptRemovalRequest>,
    ) -> Result<Response<AcceptRemovalResponse>, Status> {
        Err(Status::failed_precondition("no removal is held back"))
    }

    async fn live(&self, _: Request<LiveRequest>) -> Result<Response<LiveResponse>, Status> {
        // A node without a data plane holds nothing.
        Ok(Response::new(LiveResponse {
            nodes: vec![NodeTable {
                name: "lb1".into(),
                ..Default::default()
            }],
        }))
    }
}

fn changes(
    ring: watch::Receiver<EventRing>,
    from: Revision,
) -> impl Stream<Item = Result<WatchResponse, Status>> {
    use futures::StreamExt;

    let mut seen = from;
    let greeting = WatchResponse {
        revision: from.0,
        incarnation: "1".into(),
        events: Vec::new(),
    };
    let groups = WatchStream::new(ring).flat_map(move |ring| {
        let groups: Vec<_> = match ring.after(seen) {
            Ok(groups) => groups
                .map(|group| Ok(listing::watch_response(group, "1")))
                .collect(),
            Err(compacted) => vec![Err(compacted.to_status())],
        };
        seen = ring.newest();
        futures::stream::iter(groups)
    });
    futures::stream::iter([Ok(greeting)]).chain(groups)
}

/// A node that serves a store on a TCP port and a unix socket, on a thread of its own.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) store: Store,
    pub(crate) address: SocketAddr,
    dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::serving(Store::new(), ([127, 0, 0, 1], 0).into())
    }

    pub(crate) fn serving(store: Store, at: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("merlin.sock");
        let (bound, address) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let served = store.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let tcp = tokio::net::TcpListener::bind(at).await.unwrap();
                let unix = tokio::net::UnixListener::bind(socket).unwrap();
                bound.send(tcp.local_addr().unwrap()).unwrap();
                let router = || {
                    Server::builder()
                        .add_service(MerlinServer::new(served.clone()))
                        .add_service(NodeServer::new(served.clone()))
                };
                // Dropped when told to stop: connections end as they do when a node dies.
                tokio::select! {
                    served = router().serve_with_incoming(TcpListenerStream::new(tcp)) => {
                        served.unwrap();
                    }
                    served = router().serve_with_incoming(UnixListenerStream::new(unix)) => {
                        served.unwrap();
                    }
                    _ = stopped => {}
                }
            });
        });
        Self {
            store,
            address: address.recv().unwrap(),
            dir,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn run_dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("merlin.sock")
    }

    /// The program with this node named by its port, the way old scripts name it.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = meradm(line);
        command.arg("-H=127.0.0.1");
        command.arg(format!("-P={}", self.address.port()));
        command
    }

    pub(crate) fn run(&self, line: &str) -> Ran {
        Ran::of(self.command(line).output().unwrap())
    }

    /// Runs a command that must succeed and returns what it printed.
    pub(crate) fn ok(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "{line}: {}", ran.stderr);
        ran.stdout
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The program, with a command line whose words are split at spaces; `''` is an empty word.
pub(crate) fn meradm(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meradm"));
    command
        .args(
            line.split(' ')
                .map(|word| if word == "''" { "" } else { word }),
        )
        .env_remove("MERLIN_RUN_DIR")
        .stdin(Stdio::null());
    command
}
