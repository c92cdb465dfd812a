//! The driver with real servers on loopback: what a catalog's reader gets to see.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, helpers too")]

#[path = "support/catalog.rs"]
mod catalog;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use merlin_health::Metrics;
use merlin_model::{Catalog, HealthView, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use catalog::{Declarations, check, id};

const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";

/// Far beyond what anything here takes.
const AMPLE: Duration = Duration::from_secs(20);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A driver under test, and both ends of its channels.
struct Node {
    declared: Declarations,
    catalog: watch::Sender<Arc<Catalog>>,
    view: watch::Receiver<HealthView>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    driver: JoinHandle<()>,
}

impl Node {
    fn start() -> Self {
        let (catalog, catalog_receiver) = watch::channel(Arc::default());
        let (view_sender, view) = watch::channel(HealthView::default());
        let metrics = Arc::new(Metrics::default());
        let shutdown = CancellationToken::new();
        let driver = tokio::spawn(merlin_health::run(
            catalog_receiver,
            view_sender,
            Arc::clone(&metrics),
            shutdown.clone(),
        ));
        Self {
            declared: Declarations::default(),
            catalog,
            view,
            metrics,
            shutdown,
            driver,
        }
    }

    /// Changes the declarations and publishes the catalog.
    fn change(&mut self, change: impl FnOnce(&mut Declarations)) {
        change(&mut self.declared);
        self.catalog.send_replace(Arc::new(self.declared.0.clone()));
    }

    /// Declares a server that is checked often, at the address that is checked.
    fn declare(&mut self, service: &str, server: SocketAddr) {
        let endpoint = format!("http://:{}/health", server.port());
        let millis = Duration::from_millis;
        let check = check(&endpoint, millis(20), millis(10_000), (2, 2));
        self.change(|declared| declared.declare(service, server, check));
    }

    async fn see(&mut self, what: &str, seen: impl FnMut(&HealthView) -> bool) -> HealthView {
        if let Ok(view) = tokio::time::timeout(AMPLE, self.view.wait_for(seen)).await {
            return view.expect("the driver runs").clone();
        }
        panic!("never seen: {what}; instead {:?}", self.view.borrow());
    }

    async fn see_verdict(&mut self, service: &str, server: SocketAddr, verdict: Verdict) {
        let what = format!("{service} {server} {verdict:?}");
        let service = id(service);
        self.see(&what, |view| {
            view.verdict(&service, &server.into()) == verdict
        })
        .await;
    }

    async fn stop(self) -> Arc<Metrics> {
        self.shutdown.cancel();
        tokio::time::timeout(AMPLE, self.driver)
            .await
            .expect("the driver stops")
            .expect("the driver does not panic");
        self.metrics
    }
}

/// A web server whose status can be changed, stopped by dropping it.
struct Server {
    address: SocketAddr,
    status: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(at: &str) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let status = Arc::new(AtomicUsize::new(200));
        let requests = Arc::new(AtomicUsize::new(0));
        let (answer, count) = (Arc::clone(&status), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                if !matches!(stream.read(&mut request).await, Ok(1..)) {
                    continue;
                }
                count.fetch_add(1, Ordering::Relaxed);
                let status = answer.load(Ordering::Relaxed);
                let response = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
                let _ = stream.write_all(response.as_bytes()).await;
            }
        });
        Self {
            address,
            status,
            requests,
            task,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn verdicts_follow_the_servers_and_say_why() {
    for at in [V4, V6] {
        let mut node = Node::start();
        let server = Server::start(at).await;
        let address = server.address;
        node.declare("web", address);
        node.see_verdict("web", address, Verdict::Up).await;

        server.status.store(503, Ordering::Relaxed);
        let reason = |view: &HealthView| {
            let health = view.get(&id("web"), &address.into())?;
            let reason = health.last_failure.as_deref()?.to_owned();
            (health.verdict == Verdict::Down).then_some(reason)
        };
        let is =
            |words: &'static str| move |view: &HealthView| reason(view).as_deref() == Some(words);
        node.see("status 503", is("status 503")).await;

        drop(server);
        node.see("a refusal", is("connection refused")).await;

        let _back = Server::start(&address.to_string()).await;
        node.see_verdict("web", address, Verdict::Up).await;

        let counts = node.stop().await.read();
        assert_eq!(counts.transitions, 3, "{counts:?}");
        assert!(counts.succeeded >= 4 && counts.failed >= 3, "{counts:?}");
        assert_eq!(
            (counts.inconclusive, counts.in_flight),
            (0, 0),
            "{counts:?}"
        );
    }
}

#[tokio::test]
async fn a_removed_check_leaves_the_published_view() {
    let mut node = Node::start();
    let server = Server::start(V4).await;
    node.declare("web", server.address);
    node.declare("api", server.address);
    node.see_verdict("web", server.address, Verdict::Up).await;
    node.change(|declared| declared.remove_service("web"));
    let view = node.see("only api", |view| view.iter().count() == 1).await;
    assert!(view.get(&id("api"), &server.address.into()).is_some());
    node.change(|declared| declared.switch_off("api", server.address));
    node.see("nothing", |view| view.iter().next().is_none())
        .await;
    node.stop().await;
}

#[tokio::test]
async fn services_that_share_a_server_share_its_probes() {
    let mut node = Node::start();
    let server = Server::start(V4).await;
    let address = server.address;
    let endpoint = format!("http://:{}/", address.port());
    let check = check(&endpoint, DAY, AMPLE, (1, 1));
    node.change(|declared| {
        for service in ["a", "b", "c"] {
            declared.declare(service, address, check.clone());
        }
    });
    for service in ["a", "b", "c"] {
        node.see_verdict(service, address, Verdict::Up).await;
    }
    let counts = node.stop().await.read();
    assert_eq!(server.requests.load(Ordering::Relaxed), 1);
    assert_eq!((counts.started, counts.transitions), (1, 3));
}

#[tokio::test]
async fn losing_the_catalog_does_not_stop_the_checks() {
    let mut node = Node::start();
    let server = Server::start(V4).await;
    let address = server.address;
    node.declare("web", address);
    node.see_verdict("web", address, Verdict::Up).await;
    node.catalog = watch::channel(Arc::default()).0;
    drop(server);
    node.see_verdict("web", address, Verdict::Down).await;
    node.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_probes_in_flight() {
    let mut node = Node::start();
    // Its backlog takes the connections, but nobody answers.
    let silent = TcpListener::bind(V4).await.unwrap();
    let address = silent.local_addr().unwrap();
    let endpoint = format!("http://:{}/", address.port());
    let check = check(&endpoint, Duration::from_millis(10), DAY, (1, 1));
    node.change(|declared| declared.declare("web", address, check));
    let _connection = silent.accept().await.unwrap();
    let counts = node.stop().await.read();
    assert_eq!((counts.started, counts.in_flight), (1, 0));
}
