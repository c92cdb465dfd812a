//! Declares a virtual service with one real server and lists the catalog.

#![expect(clippy::print_stdout, reason = "an example shows its result")]

use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::types::{ForwardMethod, Protocol, RealServer, VirtualService};
use merlin_proto::types::{real_server, virtual_service};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let node = std::env::args()
        .nth(1)
        .unwrap_or("http://localhost:4282".into());
    let mut merlin = MerlinClient::connect(node).await?;

    merlin
        .create_service(VirtualService {
            id: "rust".into(),
            key: Some(virtual_service::Key {
                ip: "10.0.0.1".into(),
                port: 8080,
                protocol: Protocol::Tcp.into(),
                ..Default::default()
            }),
            config: Some(virtual_service::Config {
                scheduler: "wrr".into(),
                ..Default::default()
            }),
            ..Default::default()
        })
        .await?;
    merlin
        .create_server(RealServer {
            service_id: "rust".into(),
            key: Some(real_server::Key {
                ip: "10.1.0.1".into(),
                port: 8080,
            }),
            config: Some(real_server::Config {
                weight: Some(1),
                forward: ForwardMethod::Masq.into(),
                ..Default::default()
            }),
            ..Default::default()
        })
        .await?;

    let catalog = merlin.list(()).await?.into_inner();
    for item in catalog.items {
        let service = item.service.unwrap_or_default();
        println!("{} has {} real server(s)", service.id, item.servers.len());
    }
    Ok(())
}
