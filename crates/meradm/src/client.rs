//! Asking a node, and asking it again while there is time.
//!
//! A change carries a request id of its own, so that a retry of one that may have been applied is
//! answered as the first try was and never applied twice.

use std::time::Duration;

use merlin_model::command::{Mutation, Reply, RequestId};
use merlin_model::store::Consistency;
use merlin_model::{Invalid, Revision};
use merlin_proto::json::Json;
use merlin_proto::metadata::{self, Conditions};
use merlin_proto::status::{Meaning, ToStatus, meaning};
use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::types::{ListResponse, RealServer, VirtualService};
use merlin_proto::v1::cluster_client::ClusterClient;
use merlin_proto::v1::node_client::NodeClient;
use merlin_proto::v1::{
    AcceptRemovalRequest, AcceptRemovalResponse, AuditRequest, AuditResponse, LiveRequest,
    LiveResponse, StatusRequest, StatusResponse, WatchRequest, WatchResponse,
};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::cli::{Condition, Global};
use crate::connect;
use crate::failure::{Failure, in_words, say};

/// Between tries: soon at first, for a leader that is just being elected.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A change of the catalog, as the API takes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    CreateService(VirtualService),
    UpdateService(VirtualService),
    DeleteService(String),
    CreateServer(RealServer),
    UpdateServer(RealServer),
    DeleteServer(RealServer),
}

#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
    deadline: Instant,
    timeout: Duration,
    debug: bool,
}

impl Client {
    pub(crate) async fn connect(global: &Global) -> Result<Self, Failure> {
        let deadline = Instant::now() + global.timeout;
        Ok(Self {
            channel: connect::connect(global).await?,
            deadline,
            timeout: global.timeout,
            debug: global.debug,
        })
    }

    /// The same client with all of its time before it: one command can be many requests.
    pub(crate) fn again(&self) -> Self {
        Self {
            deadline: Instant::now() + self.timeout,
            ..self.clone()
        }
    }

    /// Makes a change. The reply is absent from nodes that know no revisions.
    pub(crate) async fn change(
        &self,
        change: &Change,
        condition: Condition,
    ) -> Result<Option<Reply>, Status> {
        let id = uuid::Uuid::now_v7().to_string();
        let conditions = Conditions {
            expected_revision: condition.expect_revision.map(Revision),
            request_id: Some(RequestId::new(&id).map_err(|e: Invalid| e.to_status())?),
        };
        self.debug(|| format!("request {id}: {}", change.describe()));
        let outcome = self
            .persist(self.deadline, |remaining| {
                let mut client = self.merlin();
                let conditions = &conditions;
                async move { change.send(&mut client, remaining, conditions).await }
            })
            .await;
        match outcome {
            Ok(response) => Ok(metadata::read_reply(response.metadata())),
            Err(status) => Err(honest(status)),
        }
    }

    pub(crate) async fn list(&self, consistency: Consistency) -> Result<ListResponse, Status> {
        let listing = self.persist(self.deadline, |remaining| {
            let mut client = self.merlin();
            let mut request = timed((), remaining);
            metadata::write_consistency(consistency, request.metadata_mut());
            async move { client.list(request).await }
        });
        listing.await.map(Response::into_inner)
    }

    pub(crate) async fn status(&self) -> Result<StatusResponse, Status> {
        let request = StatusRequest { local: false };
        self.persist(self.deadline, |remaining| {
            let mut client = self.node();
            async move { client.status(timed(request, remaining)).await }
        })
        .await
        .map(Response::into_inner)
    }

    pub(crate) async fn live(&self) -> Result<LiveResponse, Status> {
        self.persist(self.deadline, |remaining| {
            let mut client = self.node();
            async move { client.live(timed(LiveRequest::default(), remaining)).await }
        })
        .await
        .map(Response::into_inner)
    }

    pub(crate) async fn audit(&self, request: AuditRequest) -> Result<AuditResponse, Status> {
        self.persist(self.deadline, |remaining| {
            let mut client = ClusterClient::new(self.channel.clone());
            async move { client.audit(timed(request, remaining)).await }
        })
        .await
        .map(Response::into_inner)
    }

    /// Asked once: what is held back may be something else the second time.
    pub(crate) async fn accept_removal(
        &self,
        revision: u64,
    ) -> Result<AcceptRemovalResponse, Status> {
        let request = timed(AcceptRemovalRequest { revision }, self.timeout);
        let response = self.node().accept_removal(request).await?;
        Ok(response.into_inner())
    }

    /// Opens a stream of changes; the time to try is for the opening alone.
    pub(crate) async fn watch(
        &self,
        request: &WatchRequest,
    ) -> Result<Streaming<WatchResponse>, Status> {
        let deadline = Instant::now() + self.timeout;
        self.persist(deadline, |_| {
            let mut client = self.node();
            async move { client.watch(request.clone()).await }
        })
        .await
        .map(Response::into_inner)
    }

    /// Tries until there is an answer that trying again would not change, or no time left.
    async fn persist<T, F>(
        &self,
        deadline: Instant,
        attempt: impl Fn(Duration) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut pause = FIRST_PAUSE;
        // Once a try may have had an effect, a later one that had none does not undo that.
        let mut unknown = None;
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let status = match tokio::time::timeout(remaining, attempt(remaining)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("no answer within {:?}", self.timeout)),
            };
            self.debug(|| format!("{:?}: {}", status.code(), in_words(&status)));
            match meaning(&status) {
                Meaning::Unavailable => {}
                Meaning::Unknown => unknown = Some(status.clone()),
                Meaning::Rejected | Meaning::Failed => return Err(status),
            }
            if Instant::now() + pause >= deadline {
                return Err(unknown.unwrap_or(status));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// A large catalog is a large answer.
    fn merlin(&self) -> MerlinClient<Channel> {
        MerlinClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    fn debug(&self, words: impl FnOnce() -> String) {
        if self.debug {
            say(&format!("meradm: {}", words()));
        }
    }
}

impl Change {
    async fn send(
        &self,
        client: &mut MerlinClient<Channel>,
        remaining: Duration,
        conditions: &Conditions,
    ) -> Result<Response<()>, Status> {
        fn request<T: Clone>(message: &T, time: Duration, conditions: &Conditions) -> Request<T> {
            let mut request = timed(message.clone(), time);
            conditions.write(request.metadata_mut());
            request
        }
        let (time, with) = (remaining, conditions);
        match self {
            Self::CreateService(it) => client.create_service(request(it, time, with)).await,
            Self::UpdateService(it) => client.update_service(request(it, time, with)).await,
            Self::DeleteService(id) => client.delete_service(request(id, time, with)).await,
            Self::CreateServer(it) => client.create_server(request(it, time, with)).await,
            Self::UpdateServer(it) => client.update_server(request(it, time, with)).await,
            Self::DeleteServer(it) => client.delete_server(request(it, time, with)).await,
        }
    }

    /// The method and its message, for people who look closely.
    pub(crate) fn describe(&self) -> String {
        let json = |message: Json| serde_json::to_string(&message).unwrap_or_default();
        match self {
            Self::CreateService(it) => format!("CreateService {}", json(Json::terse(it))),
            Self::UpdateService(it) => format!("UpdateService {}", json(Json::terse(it))),
            Self::DeleteService(id) => format!("DeleteService {id:?}"),
            Self::CreateServer(it) => format!("CreateServer {}", json(Json::terse(it))),
            Self::UpdateServer(it) => format!("UpdateServer {}", json(Json::terse(it))),
            Self::DeleteServer(it) => format!("DeleteServer {}", json(Json::terse(it))),
        }
    }
}

impl From<&Mutation> for Change {
    fn from(mutation: &Mutation) -> Self {
        use merlin_proto::log::command::Mutation as Message;

        match Message::from(mutation) {
            Message::CreateService(it) => Self::CreateService(it),
            Message::UpdateService(it) => Self::UpdateService(it),
            Message::DeleteService(id) => Self::DeleteService(id),
            Message::CreateServer(it) => Self::CreateServer(it),
            Message::UpdateServer(it) => Self::UpdateServer(it),
            Message::DeleteServer(it) => Self::DeleteServer(it),
        }
    }
}

/// Tells the node how long its answer is wanted.
fn timed<T>(message: T, remaining: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(remaining);
    request
}

/// A change without an answer is not a change that failed.
fn honest(status: Status) -> Status {
    const WORDS: &str = "the change may or may not have been applied";
    if meaning(&status) != Meaning::Unknown || status.message().contains(WORDS) {
        return status;
    }
    Status::new(status.code(), format!("{WORDS}: {}", in_words(&status)))
}
