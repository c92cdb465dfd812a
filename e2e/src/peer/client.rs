//! Clients that ask once, and a survey that counts who answered.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

/// How a question travels. Every question is a new flow, so a load balancer schedules it anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Http,
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "http" => Ok(Self::Http),
            other => Err(format!("`{other}` is none of tcp, udp, http")),
        }
    }
}

/// Who answered how often, and what went wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    pub by_server: BTreeMap<String, usize>,
    pub failures: Vec<String>,
}

impl Answers {
    /// Answers from `server`.
    #[must_use]
    pub fn from(&self, server: &str) -> usize {
        self.by_server.get(server).copied().unwrap_or(0)
    }

    /// The servers that answered at all.
    #[must_use]
    pub fn servers(&self) -> Vec<&str> {
        self.by_server.keys().map(String::as_str).collect()
    }

    pub(super) fn record(&mut self, answer: io::Result<String>) {
        match answer {
            Ok(server) => *self.by_server.entry(server).or_default() += 1,
            Err(error) => self.failures.push(error.to_string()),
        }
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (server, answers) in &self.by_server {
            writeln!(f, "{server} {answers}")?;
        }
        writeln!(f, "failed {}", self.failures.len())?;
        // A failure rarely comes alone; the distinct ones tell the story.
        let mut distinct: BTreeMap<&str, usize> = BTreeMap::new();
        for failure in &self.failures {
            *distinct.entry(failure).or_default() += 1;
        }
        distinct
            .iter()
            .try_for_each(|(failure, times)| writeln!(f, "  {times} x {failure}"))
    }
}

/// Asks `questions` times, one after the other.
#[must_use]
pub fn survey(
    protocol: Protocol,
    target: SocketAddr,
    questions: usize,
    timeout: Duration,
) -> Answers {
    let mut answers = Answers::default();
    for _ in 0..questions {
        answers.record(ask(protocol, target, timeout));
    }
    answers
}

/// Asks once who is there.
pub fn ask(protocol: Protocol, target: SocketAddr, timeout: Duration) -> io::Result<String> {
    match protocol {
        Protocol::Tcp => Conversation::open(target, timeout)?.ask(),
        Protocol::Udp => ask_udp(target, timeout),
        Protocol::Http => get(target, "/", timeout).and_then(|(status, body)| match status {
            200 => Ok(body),
            _ => Err(io::Error::other(format!("HTTP status {status}"))),
        }),
    }
}

/// A TCP connection that stays open between questions.
#[derive(Debug)]
pub struct Conversation {
    stream: BufReader<TcpStream>,
}

impl Conversation {
    pub fn open(target: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&target, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    pub fn ask(&mut self) -> io::Result<String> {
        self.stream.get_mut().write_all(b"who\n")?;
        let mut answer = String::new();
        match self.stream.read_line(&mut answer) {
            Ok(0) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "closed by the server",
            )),
            Ok(_) => Ok(answer.trim_end().to_owned()),
            Err(error) => Err(named(error)),
        }
    }
}

fn ask_udp(target: SocketAddr, timeout: Duration) -> io::Result<String> {
    let any = match target {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    // Connected: only an answer from the address that was asked counts.
    socket.connect(target)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.send(b"who")?;
    let mut answer = [0; 2048];
    let length = socket.recv(&mut answer).map_err(named)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// One HTTP request on a connection of its own: status and body.
pub fn get(target: SocketAddr, path: &str, timeout: Duration) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&target, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    // A server may answer 1.1 in chunks.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {target}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response).map_err(named)?;
    let status = response
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    match (status, response.split_once("\r\n\r\n")) {
        (Some(status), Some((_, body))) => Ok((status, body.to_owned())),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not an HTTP response",
        )),
    }
}

/// A socket's read time-out shows as "Resource temporarily unavailable"; say what it means.
fn named(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
        _ => error,
    }
}
