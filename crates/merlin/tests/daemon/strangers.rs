//! Whatever comes in by the network: garbage, too much, too little, too slowly. It is refused or
//! cut off, the daemon lives, its memory stays bounded, and other clients notice nothing.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use merlin_proto::types::merlin_client::MerlinClient;
use merlin_proto::v1::WatchRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tonic::Code;

use crate::support::requests::{numbered_server, service, weight};
use crate::support::{Daemon, Setup, eventually};

/// Bytes that are the beginning of nothing, or of something else.
const GARBAGE: [&[u8]; 6] = [
    // TLS to a port without, and a TLS that is none.
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /types.Merlin/List HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    // HTTP/2, and then a frame of 16 MiB of an unknown type.
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    // HTTP/2 with settings, then headers on stream 0, which is not allowed.
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x05\x01\x04\0\0\0\0hello",
    &[0xa5; 100_000],
];

/// How long a client that sends nothing useful may keep a connection, and time for a busy machine.
const PATIENCE: Duration = Duration::from_secs(25);

/// Other clients are served, and at once.
async fn serves(daemon: &Daemon) {
    let asked = Instant::now();
    daemon.merlin().await.list(()).await.unwrap();
    assert_eq!(daemon.page("/alive").await, "alive\n");
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
}

/// Ready when the other side has ended the connection.
async fn cut(mut stream: TcpStream) {
    let mut answer = [0; 4096];
    let ended = async {
        loop {
            match stream.read(&mut answer).await {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, ended)
        .await
        .expect("the connection was kept");
}

async fn connect_and_send(to: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // The daemon may hang up before it is all sent.
    let _ = stream.write_all(bytes).await;
    stream
}

#[tokio::test]
async fn garbage_is_cut_off_on_every_socket() {
    let setup = Setup::new();
    let mut daemon = setup.start().await;
    let before = daemon.resident();
    for _ in 0..20 {
        for garbage in GARBAGE {
            for at in [daemon.api(), daemon.http(), setup.peer.addr()] {
                let mut stream = connect_and_send(at, garbage).await;
                let _ = stream.shutdown().await;
                cut(stream).await;
            }
            let mut local = UnixStream::connect(setup.socket()).await.unwrap();
            let _ = local.write_all(garbage).await;
            let _ = local.shutdown().await;
            let _ = local.read_to_end(&mut Vec::new()).await;
        }
    }
    serves(&daemon).await;
    assert!(daemon.process.ended().is_none());
    let grown = daemon.resident().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB for strangers");
}

#[tokio::test]
async fn a_request_over_the_size_limit_is_refused_and_its_connection_goes_on() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    let before = daemon.resident();
    for _ in 0..20 {
        let huge = service(&"x".repeat(1 << 20), 80);
        let refused = merlin.create_service(huge).await.unwrap_err();
        let codes = [Code::OutOfRange, Code::ResourceExhausted];
        assert!(codes.contains(&refused.code()), "{refused}");
        merlin.list(()).await.unwrap();
    }
    let grown = daemon.resident().saturating_sub(before);
    assert!(
        grown < 16 * 1024,
        "{grown} KiB for requests that were refused"
    );

    // The same as a header of a page request.
    let request = format!("GET /health HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let mut stream = connect_and_send(daemon.http(), request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    serves(&daemon).await;
}

/// Nobody may keep a connection by being slow: not with nothing, not with half a request, not with
/// a byte now and then.
#[tokio::test]
async fn slow_clients_are_cut_off() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut slow = tokio::task::JoinSet::new();
    for (at, halves) in [
        (
            daemon.http(),
            [&b""[..], b"GET /health HTTP/1.1\r\nHost: x"],
        ),
        (daemon.api(), [&b""[..], &preface[..10]]),
        (setup.peer.addr(), [&b""[..], b"\x16\x03\x01\x02\x00\x01"]),
    ] {
        for half in halves {
            slow.spawn(async move { cut(connect_and_send(at, half).await).await });
        }
    }
    for (at, rest) in [
        (
            daemon.http(),
            &b"GET /health HTTP/1.1\r\nX-Header: and so on, and so on"[..],
        ),
        (daemon.api(), &preface[..]),
    ] {
        slow.spawn(async move {
            let mut stream = TcpStream::connect(at).await.unwrap();
            for byte in rest {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            panic!("{at} took a byte a second for {} seconds", rest.len());
        });
    }
    serves(&daemon).await;
    while let Some(ended) = slow.join_next().await {
        ended.unwrap();
    }
}

/// As many silent connections as a listener takes do not keep others out for long.
#[tokio::test]
async fn a_crowd_of_silent_clients_makes_room_again() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let before = daemon.resident();
    let mut crowd = Vec::new();
    for at in [daemon.api(), daemon.http()] {
        for _ in 0..1100 {
            crowd.push(TcpStream::connect(at).await.unwrap());
        }
    }
    let grown = daemon.resident().saturating_sub(before);
    assert!(grown < 96 * 1024, "{grown} KiB for silence");
    let list = async { daemon.merlin().await.list(()).await };
    let both = async { tokio::join!(list, daemon.get("/alive")) };
    let both = tokio::time::timeout(PATIENCE, both).await;
    let (list, page) = both.expect("nobody else is served");
    list.unwrap();
    assert_eq!(page.unwrap().status, 200);
}

/// A watch whose client does not read costs what the connection buffers, however much happens.
#[tokio::test]
async fn watches_that_are_not_read_cost_no_memory() {
    const WATCHES: usize = 50;
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut merlin = daemon.merlin().await;
    merlin.create_service(service("web", 80)).await.unwrap();
    for port in 1..=100 {
        merlin
            .create_server(numbered_server("web", port))
            .await
            .unwrap();
    }
    let mut watches = Vec::new();
    for _ in 0..WATCHES {
        // Each on a connection of its own, and then never polled again.
        let watch = daemon
            .node()
            .await
            .watch(WatchRequest::default())
            .await
            .unwrap();
        watches.push(watch.into_inner());
    }
    let before = daemon.resident();
    let channel = daemon.channel().await;
    let writers = (1..=100).map(|port| {
        let mut merlin = MerlinClient::new(channel.clone());
        async move {
            for value in 1..=40 {
                merlin
                    .update_server(weight("web", port, value + 1))
                    .await
                    .unwrap();
            }
        }
    });
    futures::future::join_all(writers).await;
    let grown = daemon.resident().saturating_sub(before);
    // 4,000 changes of some 100 bytes, 50 times, would be 20 MiB in their smallest form.
    assert!(grown < 48 * 1024, "{grown} KiB");
    serves(&daemon).await;
    // Whoever comes back to reading has missed nothing, or is told.
    let mut stream = watches.pop().unwrap();
    let mut seen = 101;
    while let Ok(Some(message)) = stream.message().await {
        assert!(
            message.revision <= seen + 1,
            "from {seen} to {}",
            message.revision
        );
        seen = message.revision;
        if seen == 101 + 4000 {
            break;
        }
    }
}

/// Requests that begin and never end are ended.
#[tokio::test]
async fn a_client_that_asks_and_does_not_read_the_answers_is_cut_off() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut stream = TcpStream::connect(daemon.http()).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    let asking = async {
        loop {
            if stream.write_all(&request).await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .expect("the connection was kept");
    serves(&daemon).await;
    eventually(async || {
        let kib = daemon.resident();
        if kib < 128 * 1024 { Ok(()) } else { Err(kib) }
    })
    .await;
}
