//! What a probe costs: `cargo run --release -p merlin-health --example probes [RATE] [SECONDS]`.
//!
//! Runs the whole driver on one thread against RATE real servers, each checked every second, and
//! divides the finished probes by the CPU time this process took. The servers are different paths
//! on a few loopback addresses, answered by a second process. On loopback whoever sends also does
//! the receiver's part of the kernel's work, so a prober on a real network does better than this.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark talks to whoever runs it"
)]

#[path = "../tests/support/catalog.rs"]
mod catalog;

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use merlin_health::Metrics;
use merlin_model::HealthView;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use catalog::{Declarations, check};

/// First argument of the process that plays the servers.
const SERVE: &str = "serve";
/// Enough of them that no address runs out of ports to be connected from.
const LISTENERS: usize = 64;

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let mut arguments = env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some(SERVE) {
        return serve().await;
    }
    let number = |argument: Option<String>, default| {
        argument.map_or(default, |text| text.parse().expect("a number"))
    };
    let rate = number(first, 5_000);
    let seconds = number(arguments.next(), 10);
    let servers = Servers::start()?;
    let declared = declare(rate, &servers.addresses);
    measure(declared, Duration::from_secs(seconds.into())).await;
    Ok(())
}

async fn measure(declared: Declarations, time: Duration) {
    let metrics = Arc::new(Metrics::default());
    let (_catalog, catalog) = watch::channel(Arc::new(declared.0));
    let (view, _view) = watch::channel(HealthView::default());
    let shutdown = CancellationToken::new();
    let run = merlin_health::run(catalog, view, Arc::clone(&metrics), shutdown.clone());
    let driver = tokio::spawn(run);

    // The first probes of all servers and the second ones, which find their rhythm.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (before, cpu_before, began) = (metrics.read(), cpu_time(), Instant::now());
    tokio::time::sleep(time).await;
    let (after, cpu_after, took) = (metrics.read(), cpu_time(), began.elapsed());
    shutdown.cancel();
    driver.await.expect("the driver ends");

    let [user, system] = [0, 1].map(|i| (cpu_after[i] - cpu_before[i]).as_secs_f64());
    let failed = after.failed - before.failed + after.inconclusive - before.inconclusive;
    let finished = f64::from(u32::try_from(after.succeeded - before.succeeded).unwrap());
    let cpu = user + system;
    println!(
        "{:.0} probes per second, {failed} failed",
        finished / took.as_secs_f64()
    );
    println!(
        "{:.1} us of CPU time per probe: {:.1} user, {:.1} system",
        cpu / finished * 1e6,
        user / finished * 1e6,
        system / finished * 1e6,
    );
    println!("{:.0} probes per second and core", finished / cpu);
}

/// As many real servers, dealt out among the addresses and told apart by their paths.
fn declare(count: u32, addresses: &[SocketAddr]) -> Declarations {
    let second = Duration::from_secs(1);
    let mut declared = Declarations::default();
    for (n, address) in (0..count).zip(addresses.iter().cycle()) {
        let endpoint = format!("http://:{}/health?server={n}", address.port());
        let check = check(&endpoint, second, second, (2, 2));
        let service = format!("service-{}", n / 1000);
        let port = u16::try_from(n % 1000 + 1).unwrap();
        declared.declare(&service, SocketAddr::new(address.ip(), port), check);
    }
    declared
}

/// User and system time of this process so far, all threads together.
fn cpu_time() -> [Duration; 2] {
    /// Clock ticks are 10 ms to user space on every Linux.
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    // The second field is a name in parentheses; times are the 14th and 15th.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    [11, 12].map(|i| TICK * fields[i].parse::<u32>().unwrap())
}

/// The other process, ended with this one.
struct Servers {
    process: Child,
    addresses: Vec<SocketAddr>,
}

impl Servers {
    fn start() -> io::Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .arg(SERVE)
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(process.stdout.take().unwrap());
        let addresses = output
            .lines()
            .take(LISTENERS)
            .map(|line| line.unwrap().parse().unwrap())
            .collect();
        Ok(Self { process, addresses })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn serve() -> io::Result<()> {
    let mut listeners = JoinSet::new();
    for _ in 0..LISTENERS {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        listeners.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream));
            }
        });
    }
    listeners.join_all().await;
    Ok(())
}

async fn answer(mut stream: TcpStream) {
    let mut request = [0; 1024];
    if matches!(stream.read(&mut request).await, Ok(1..)) {
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";
        let _ = stream.write_all(response).await;
    }
}
