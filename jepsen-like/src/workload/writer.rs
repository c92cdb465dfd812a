//! A client that writes and reads, at any node.
//!
//! Its operations cover what an operator's tools do: edits of a service with and without an
//! expected revision (a register), adding and deleting servers (a set), creations that race for
//! one name or one port, deletions that cascade, reads of both kinds. A write either carries a
//! request id and is sent again until its outcome is known, or it is sent once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep, timeout};

use super::{Shared, Site, Speaks};
use crate::checker::Law;
use crate::model::{CHECKED, Catalog, View};
use crate::ops::{Action, Node, Outcome, ReadRecord, Write, WriteRecord};

/// Longer than an election, so that a write can outlast one; shorter than a partition.
const PATIENCE: Duration = Duration::from_millis(1500);
/// What the server says is worth a little more patience than what it was told to have.
const GRACE: Duration = Duration::from_millis(300);
/// A retry is given up after so long, as people do.
const RETRY: Duration = Duration::from_secs(8);
/// Few enough that clients meet at them.
const PORTS: std::ops::Range<u16> = 8001..8009;
/// Few enough to be read in no time.
const MOST_SERVERS: usize = 8;

struct Writer<S: Site> {
    shared: Arc<Shared<S>>,
    clients: Vec<S::Client>,
    dice: StdRng,
}

pub(crate) async fn run<S: Site>(
    shared: Arc<Shared<S>>,
    pause: Duration,
    dice: StdRng,
) -> Result<()> {
    let nodes = 1..=shared.lab.size();
    let mut writer = Writer {
        clients: nodes.map(|node| shared.lab.client(node)).collect(),
        shared,
        dice,
    };
    while !writer.shared.stop.is_cancelled() {
        match writer.dice.random_range(0..100) {
            0..20 => writer.read(false).await,
            20..32 => writer.read(true).await,
            _ => writer.write().await,
        }
        let pause = pause.mul_f64(2.0 * writer.dice.random::<f64>());
        tokio::select! {
            () = sleep(pause) => {}
            () = writer.shared.stop.cancelled() => {}
        }
    }
    Ok(())
}

impl<S: Site> Writer<S> {
    fn client(&self, node: Node) -> &S::Client {
        &self.clients[usize::from(node) - 1]
    }

    /// After a silence the connection may be dead without knowing it.
    fn reconnect(&mut self, node: Node) {
        self.clients[usize::from(node) - 1] = self.shared.lab.client(node);
    }

    async fn read(&mut self, stale: bool) {
        let node = self.shared.any_node(&mut self.dice);
        let life = self.shared.lab.life(node);
        let recorder = Arc::clone(&self.shared.recorder);
        let start = recorder.clock.now();
        let reading = self.client(node).read(stale, PATIENCE);
        match timeout(PATIENCE + GRACE, reading).await {
            Ok(Ok(Ok((revision, content)))) => {
                let end = recorder.clock.now();
                // It may have been the next process that answered.
                let life_after = self.shared.lab.life(node);
                if life == life_after {
                    recorder.read(ReadRecord {
                        start,
                        end,
                        node,
                        life,
                        stale,
                        revision,
                        content: Arc::new(content),
                    });
                }
            }
            Ok(Ok(Err(odd))) => self.shared.odd(node, &odd),
            Ok(Err(_)) => recorder.failed_read(),
            Err(_) => {
                recorder.failed_read();
                self.reconnect(node);
            }
        }
    }

    async fn write(&mut self) {
        let catalog = self.shared.recorder.newest();
        let action = self.action(&catalog);
        let expected = self.expected(&catalog, &action);
        let write = Write { action, expected };
        let id = format!("{:x}-{}", self.shared.run, self.shared.serial());
        let carries_id = self.dice.random_ratio(2, 3) && self.shared.lab.has_transactions();
        let id = carries_id.then_some(id);
        let recorder = Arc::clone(&self.shared.recorder);
        let start = recorder.clock.now();
        let begun = Instant::now();
        let mut node = self.shared.any_node(&mut self.dice);
        let mut attempts = 1;
        let mut outcome = self.attempt(node, &write, id.as_deref()).await;
        if id.is_some() {
            // Unknown once, unknown until somebody knows: a later promise that nothing happened
            // speaks of that attempt alone.
            while matches!(outcome, Outcome::Unknown | Outcome::Nothing)
                && begun.elapsed() < RETRY
                && !self.shared.stop.is_cancelled()
            {
                sleep(Duration::from_millis(self.dice.random_range(10..100))).await;
                node = self.shared.any_node(&mut self.dice);
                attempts += 1;
                let again = self.attempt(node, &write, id.as_deref()).await;
                if (outcome, again) != (Outcome::Unknown, Outcome::Nothing) {
                    outcome = again;
                }
            }
            if self.dice.random_ratio(1, 8) {
                self.again(&write, id.as_deref(), outcome).await;
            }
        }
        recorder.write(WriteRecord {
            start,
            end: recorder.clock.now(),
            node,
            write,
            attempts,
            outcome,
        });
    }

    /// A network can deliver a request twice. The answer must be the first one's.
    async fn again(&mut self, write: &Write, id: Option<&str>, first: Outcome) {
        let node = self.shared.any_node(&mut self.dice);
        if !matches!(first, Outcome::Done { .. } | Outcome::Refused(_)) {
            return;
        }
        let second = self.attempt(node, write, id).await;
        if matches!(second, Outcome::Done { .. } | Outcome::Refused(_)) && second != first {
            let what =
                format!("`{write}` was {first}; with the same request id at n{node} {second}");
            self.shared.recorder.violation(Law::AtMostOnce, what);
        }
    }

    async fn attempt(&mut self, node: Node, write: &Write, id: Option<&str>) -> Outcome {
        let writing = self.client(node).write(write, id, PATIENCE);
        match timeout(PATIENCE + GRACE, writing).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(odd)) => {
                self.shared.odd(node, &odd);
                Outcome::Unknown
            }
            Err(_) => {
                self.reconnect(node);
                Outcome::Unknown
            }
        }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        match from.len() {
            0 => None,
            n => Some(from[self.dice.random_range(0..n)]),
        }
    }

    fn action(&mut self, catalog: &Catalog) -> Action {
        let services: Vec<_> = catalog.services.keys().copied().collect();
        let Some(service) = self.pick(&services) else {
            return self.create_service(catalog);
        };
        let held = catalog.services.get(&service);
        let servers: Vec<_> = held.map_or_else(Vec::new, |s| s.servers.keys().copied().collect());
        let crowded = servers.len() >= MOST_SERVERS;
        let server = self.pick(&servers);
        let value = self.shared.serial();
        match (self.dice.random_range(0..100), server) {
            (0..12, _) => self.create_service(catalog),
            (12..16, _) if self.shared.lab.has_transactions() => Action::DeleteService { service },
            (16..46, _) => Action::EditService { service, value },
            (46..76, Some(server)) if !crowded || self.dice.random_ratio(1, 2) => {
                Action::EditServer {
                    service,
                    server,
                    value,
                }
            }
            (76..88, Some(server)) => Action::DeleteServer { service, server },
            (_, Some(server)) if crowded => Action::DeleteServer { service, server },
            _ => {
                let server = match self.dice.random_ratio(1, 4) {
                    true => self.dice.random_range(CHECKED),
                    false => self.shared.serial(),
                };
                Action::CreateServer {
                    service,
                    server,
                    value,
                }
            }
        }
    }

    /// For a port that others want too, and sometimes by the name that others use.
    fn create_service(&mut self, catalog: &Catalog) -> Action {
        let free: Vec<u16> = PORTS
            .filter(|port| catalog.holder(*port).is_none())
            .collect();
        let taken: Vec<u16> = PORTS.collect();
        let port = match self.pick(&free) {
            Some(port) if self.dice.random_ratio(9, 10) => port,
            _ => self.pick(&taken).unwrap_or(PORTS.start),
        };
        let value = self.shared.serial();
        // The names that clients agree upon without talking: it changes now and then.
        let common = 2_000_000 + value / 64 * 16 + u32::from(port % 16);
        let service = match self.dice.random_ratio(1, 2) {
            true => common,
            false => self.shared.serial(),
        };
        Action::CreateService {
            service,
            port,
            value,
        }
    }

    fn expected(&mut self, catalog: &Catalog, action: &Action) -> Option<u64> {
        if !self.dice.random_ratio(1, 3) {
            return None;
        }
        let known = match action.server() {
            Some(server) => catalog.server(action.service(), server),
            None => catalog.service(action.service()),
        };
        Some(known.unwrap_or(0))
    }
}
