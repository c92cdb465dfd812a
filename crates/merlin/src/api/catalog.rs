//! `types.Merlin`: declaring services and servers.

use merlin_model::{Command, Mutation};
use merlin_proto::metadata::{self, Conditions};
use merlin_proto::status::ToStatus;
use merlin_proto::types::merlin_server::Merlin;
use merlin_proto::types::{ListResponse, RealServer, VirtualService};
use merlin_proto::{server, service};
use tonic::{Code, Request, Response, Status};

use super::access::Caller;
use super::metadata::timeout;
use crate::clock::now;
use crate::metrics::{Method, Requests};
use crate::node::Node;

#[derive(Debug)]
pub(super) struct CatalogApi {
    node: Node,
    requests: Requests,
}

impl CatalogApi {
    pub(super) fn new(node: Node, requests: Requests) -> Self {
        Self { node, requests }
    }

    async fn mutate<T, E: ToStatus>(
        &self,
        method: Method,
        request: Request<T>,
        parse: impl FnOnce(&T) -> Result<Mutation, E>,
    ) -> Result<Response<()>, Status> {
        let answer = self.propose(request, parse).await;
        self.count(method, &answer);
        answer
    }

    async fn propose<T, E: ToStatus>(
        &self,
        request: Request<T>,
        parse: impl FnOnce(&T) -> Result<Mutation, E>,
    ) -> Result<Response<()>, Status> {
        let conditions = Conditions::read(request.metadata()).map_err(|e| e.to_status())?;
        let mutation = parse(request.get_ref()).map_err(|e| e.to_status())?;
        let caller = Caller::of(&request)?;
        caller.may(&mutation)?;
        let command = Command {
            at: now(),
            by: caller.actor,
            request_id: conditions.request_id,
            expected_revision: conditions.expected_revision,
            mutation,
        };
        let timeout = timeout(request.metadata());
        let proposed = self.node.store().propose(command, timeout).await;
        let reply = proposed.map_err(|e| e.to_status())?;
        let mut response = Response::new(());
        metadata::write_reply(&reply, response.metadata_mut());
        Ok(response)
    }

    async fn read(&self, request: &Request<()>) -> Result<Response<ListResponse>, Status> {
        let consistency =
            metadata::read_consistency(request.metadata()).map_err(|e| e.to_status())?;
        let timeout = timeout(request.metadata());
        let read = self.node.store().read(consistency, timeout).await;
        let catalog = read.map_err(|e| e.to_status())?;
        Ok(Response::new((&*catalog).into()))
    }

    fn count<T>(&self, method: Method, answer: &Result<T, Status>) {
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.requests.count(method, code);
    }
}

#[tonic::async_trait]
impl Merlin for CatalogApi {
    async fn create_service(
        &self,
        request: Request<VirtualService>,
    ) -> Result<Response<()>, Status> {
        self.mutate(Method::CreateService, request, service::create)
            .await
    }

    async fn update_service(
        &self,
        request: Request<VirtualService>,
    ) -> Result<Response<()>, Status> {
        self.mutate(Method::UpdateService, request, service::update)
            .await
    }

    async fn delete_service(&self, request: Request<String>) -> Result<Response<()>, Status> {
        let parse = |id: &String| service::delete(id);
        self.mutate(Method::DeleteService, request, parse).await
    }

    async fn create_server(&self, request: Request<RealServer>) -> Result<Response<()>, Status> {
        self.mutate(Method::CreateServer, request, server::create)
            .await
    }

    async fn update_server(&self, request: Request<RealServer>) -> Result<Response<()>, Status> {
        self.mutate(Method::UpdateServer, request, server::update)
            .await
    }

    async fn delete_server(&self, request: Request<RealServer>) -> Result<Response<()>, Status> {
        self.mutate(Method::DeleteServer, request, server::delete)
            .await
    }

    async fn list(&self, request: Request<()>) -> Result<Response<ListResponse>, Status> {
        let answer = self.read(&request).await;
        self.count(Method::List, &answer);
        answer
    }
}
