//! What generic gRPC tools ask for: reflection and health.

use prost::Message;
use prost_types::FileDescriptorProto;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::support::requests::refused;
use crate::support::{Daemon, Setup, eventually};

const SERVICES: [&str; 3] = ["types.Merlin", "merlin.v1.Node", "grpc.health.v1.Health"];

async fn reflect(daemon: &Daemon, question: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question),
    };
    let mut client = ServerReflectionClient::new(daemon.channel().await);
    let answers = client.server_reflection_info(tokio_stream::once(request));
    let answer = answers.await.unwrap().into_inner().message().await.unwrap();
    answer.unwrap().message_response.unwrap()
}

/// The file that defines a symbol, and what it needs.
async fn describe(daemon: &Daemon, symbol: &str) -> Vec<FileDescriptorProto> {
    let question = MessageRequest::FileContainingSymbol(symbol.to_owned());
    let MessageResponse::FileDescriptorResponse(files) = reflect(daemon, question).await else {
        panic!("{symbol} is not described");
    };
    let files = files.file_descriptor_proto.into_iter();
    files
        .map(|file| FileDescriptorProto::decode(&*file).unwrap())
        .collect()
}

#[tokio::test]
async fn reflection_lists_every_service_and_describes_it() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let question = MessageRequest::ListServices(String::new());
    let MessageResponse::ListServicesResponse(listed) = reflect(&daemon, question).await else {
        panic!("services are not listed");
    };
    let listed: Vec<_> = listed
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for name in SERVICES {
        assert!(
            listed.iter().any(|listed| listed == name),
            "{name}: {listed:?}"
        );
    }
    for name in listed {
        let files = describe(&daemon, &name).await;
        let (package, service) = name.rsplit_once('.').unwrap();
        let defined = files.iter().any(|file| {
            file.package() == package && file.service.iter().any(|s| s.name() == service)
        });
        assert!(defined, "{name}: {files:?}");
    }
    // A tool that has a method follows its types from there.
    for symbol in [
        "types.Merlin.List",
        "types.RealServer.HealthCheck",
        "merlin.v1.LiveServer",
    ] {
        assert!(!describe(&daemon, symbol).await.is_empty(), "{symbol}");
    }
}

#[tokio::test]
async fn the_health_service_says_serving_and_knows_what_it_does_not_know() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut client = HealthClient::new(daemon.channel().await);
    let mut check = async |service: &str| {
        let service = service.to_owned();
        client.check(HealthCheckRequest { service }).await
    };
    for service in ["", "types.Merlin", "merlin.v1.Node"] {
        eventually(async || match check(service).await {
            Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
            other => Err(other),
        })
        .await;
    }
    refused(check("types.Wizard").await, Code::NotFound, "");
}
