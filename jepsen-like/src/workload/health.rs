//! A real server that says whether it is well, and sometimes is not.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::Shared;
use crate::client::health_port;
use crate::lab::network::HOST;
use crate::ops::Serial;

/// Answers until the lab is gone; from the stop on, it is well.
pub(super) async fn run(shared: Arc<Shared>, server: Serial, mut dice: StdRng) -> Result<()> {
    let listener = TcpListener::bind((HOST, health_port(server))).await;
    let listener = listener.context("listening for health checks")?;
    let mut well = true;
    let mut turn = Instant::now();
    // Health checks go on while everything settles, so nobody waits for this one.
    tokio::spawn(async move {
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    tokio::spawn(answer(stream, well || shared.stop.is_cancelled()));
                }
                () = sleep_until(turn) => {
                    well = !well;
                    let longest = if well { 8000 } else { 3000 };
                    turn += Duration::from_millis(dice.random_range(1000..longest));
                }
            }
        }
    });
    Ok(())
}

async fn answer(mut stream: TcpStream, well: bool) {
    let status = if well {
        "200 OK"
    } else {
        "503 Service Unavailable"
    };
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let exchange = async {
        let mut request = [0; 1024];
        // Whatever it is, it asks how this server is.
        let _length = stream.read(&mut request).await?;
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    };
    // Whoever asked may be gone, or frozen.
    let _ = timeout(Duration::from_secs(5), exchange).await;
}
