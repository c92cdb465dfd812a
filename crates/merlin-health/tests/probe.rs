//! Probes against real sockets: what they send, and what they make of every kind of answer.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, helpers too")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::FutureExt;
use merlin_health::probe::Stage;
use merlin_health::{ProbeError, ProbeSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";

/// Far beyond what any of these exchanges takes, so that reaching it is a failure.
const AMPLE: Duration = Duration::from_secs(20);

async fn probe(target: SocketAddr, path: &str, timeout: Duration) -> Result<(), ProbeError> {
    let spec = ProbeSpec {
        target,
        endpoint: format!("http://:{}{path}", target.port()).parse().unwrap(),
        period: Duration::from_secs(5),
        timeout,
    };
    merlin_health::probe::probe(&spec).await
}

async fn listen(at: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Accepts a connection and reads the head of its request.
async fn accept(listener: &TcpListener) -> (TcpStream, String) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    (stream, String::from_utf8(request).unwrap())
}

/// Probes a server that answers with exactly these bytes and then closes.
async fn answer(bytes: &[u8]) -> Result<(), ProbeError> {
    let (listener, address) = listen(V4).await;
    let serve = async {
        let (mut stream, _) = accept(&listener).await;
        stream.write_all(bytes).await.unwrap();
    };
    let (result, ()) = tokio::join!(probe(address, "/", AMPLE), serve);
    result
}

/// Writes the same bytes until the other side has had enough, and says how many it took.
async fn pour(stream: &mut TcpStream, bytes: &[u8]) -> usize {
    let mut poured = 0;
    while stream.write_all(bytes).await.is_ok() {
        poured += bytes.len();
    }
    poured
}

#[tokio::test]
async fn the_request_is_these_bytes_and_the_connection_is_not_kept() {
    for (at, path, target) in [
        (V4, "", "/"),
        (V4, "/health?deep=1&name=a%20b", "/health?deep=1&name=a%20b"),
        (V4, "?x", "/?x"),
        (V6, "/health?deep=1", "/health?deep=1"),
    ] {
        let (listener, address) = listen(at).await;
        let serve = async {
            let (mut stream, request) = accept(&listener).await;
            let response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(response).await.unwrap();
            // The server would have kept the connection; the end is the prober's.
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
            request
        };
        let (result, request) = tokio::join!(probe(address, path, AMPLE), serve);
        result.unwrap();
        assert_eq!(
            request,
            format!(
                "GET {target} HTTP/1.1\r\n\
                 Host: {address}\r\n\
                 User-Agent: merlin-health\r\n\
                 Connection: close\r\n\r\n"
            )
        );
    }
}

#[tokio::test]
async fn any_2xx_is_success_and_every_other_status_is_a_failure_with_its_code() {
    for good in [200, 201, 204, 206, 299] {
        let response = format!("HTTP/1.1 {good} Whatever\r\n\r\n");
        answer(response.as_bytes()).await.unwrap();
    }
    for bad in [300, 301, 304, 307, 400, 404, 429, 500, 503, 599] {
        let response = format!("HTTP/1.1 {bad} Whatever\r\n\r\n");
        let error = answer(response.as_bytes()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("status {bad}"));
        assert!(!error.is_local());
    }
}

#[tokio::test]
async fn old_and_informational_responses_are_understood() {
    answer(b"HTTP/1.0 200 OK\r\n\r\nfine").await.unwrap();
    answer(b"HTTP/1.1 200\r\n\r\n").await.unwrap();
    let hinted = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
    answer(hinted).await.unwrap();
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_is_not_followed() {
    let (elsewhere, address) = listen(V4).await;
    let response = format!("HTTP/1.1 302 Found\r\nLocation: http://{address}/\r\n\r\n");
    let error = answer(response.as_bytes()).await.unwrap_err();
    assert_eq!(error.to_string(), "status 302");
    assert!(elsewhere.accept().now_or_never().is_none());
}

#[tokio::test]
async fn a_huge_body_is_not_read() {
    let (listener, address) = listen(V4).await;
    let serve = async {
        let (mut stream, _) = accept(&listener).await;
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n";
        stream.write_all(head).await.unwrap();
        pour(&mut stream, &[b'x'; 64 * 1024]).await
    };
    let (result, poured) = tokio::join!(probe(address, "/", AMPLE), serve);
    result.unwrap();
    // What the socket buffers of both ends take, and no more.
    assert!(poured < 64 << 20, "{poured}");
}

#[tokio::test]
async fn an_endless_head_is_cut_off() {
    for line in ["X-Noise: 0123456789\r\n", "0123456789"] {
        let (listener, address) = listen(V4).await;
        let serve = async {
            let (mut stream, _) = accept(&listener).await;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nX-Noise: ")
                .await
                .unwrap();
            pour(&mut stream, line.repeat(100).as_bytes()).await
        };
        let (result, _) = tokio::join!(probe(address, "/", AMPLE), serve);
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "the response head is too large");
    }
}

#[tokio::test]
async fn what_is_not_http_is_called_that() {
    for garbage in [
        &b"SSH-2.0-OpenSSH_9.9\r\n"[..],
        b"\x16\x03\x01\x00\x02\x01\x00\x00\x00\x00",
        b"HTTP/1.1 abc Nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
    ] {
        let error = answer(garbage).await.unwrap_err();
        assert_eq!(error.to_string(), "the response is not HTTP", "{garbage:?}");
    }
}

#[tokio::test]
async fn a_connection_that_closes_early_is_a_failure() {
    for start in ["", "HTTP/1.1 200 OK\r\nContent-Le"] {
        let error = answer(start.as_bytes()).await.unwrap_err();
        assert_eq!(error.to_string(), "connection closed before a response");
    }
}

#[tokio::test]
async fn a_connection_that_is_reset_is_a_failure() {
    let (listener, address) = listen(V4).await;
    let serve = async {
        // Closing with the request unread resets the connection.
        let (stream, _) = listener.accept().await.unwrap();
        stream.peek(&mut [0; 1]).await.unwrap();
    };
    let (result, ()) = tokio::join!(probe(address, "/", AMPLE), serve);
    assert_eq!(result.unwrap_err().to_string(), "connection reset by peer");
}

#[tokio::test]
async fn nobody_listening_is_refused_on_either_family() {
    for at in [V4, V6] {
        let (listener, address) = listen(at).await;
        drop(listener);
        let error = probe(address, "/", AMPLE).await.unwrap_err();
        assert_eq!(error.to_string(), "connection refused");
        assert!(!error.is_local());
    }
}

#[tokio::test]
async fn a_server_that_never_answers_times_out() {
    let timeout = Duration::from_millis(150);
    let (listener, address) = listen(V4).await;
    let began = Instant::now();
    let probed = probe(address, "/", timeout);
    let (result, (mut stream, _)) = tokio::join!(probed, accept(&listener));
    assert!(began.elapsed() >= timeout);
    let words = "timed out after 150ms waiting for the response";
    assert_eq!(result.unwrap_err().to_string(), words);
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn the_timeout_spans_a_head_that_trickles_in() {
    let (listener, address) = listen(V4).await;
    let trickle = async {
        let (mut stream, _) = accept(&listener).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        while stream.write_all(b"A: b\r\n").await.is_ok() {
            pace.tick().await;
        }
    };
    let timeout = Duration::from_millis(150);
    let probed = probe(address, "/", timeout);
    let (result, ()) = tokio::join!(probed, trickle);
    let stage = match result {
        Err(ProbeError::Timeout { stage, .. }) => stage,
        other => panic!("{other:?}"),
    };
    assert_eq!(stage, Stage::Responding);
}

#[tokio::test]
async fn a_server_that_does_not_accept_times_out_while_connecting() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    // The one connection that a backlog of nothing takes; the next one's handshake stays open.
    let _first = TcpStream::connect(address).await.unwrap();
    let error = probe(address, "/", Duration::from_millis(150))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "timed out after 150ms connecting");
}
