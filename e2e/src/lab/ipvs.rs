//! The kernel's table as others see it: through `ipvsadm`, and through `/proc/net/ip_vs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Host;

/// Between two looks of a [`WeightWatch`]; one look costs some 100 microseconds.
const WATCH_PERIOD: Duration = Duration::from_millis(5);

impl Host {
    /// Runs `ipvsadm` with these words on this host.
    pub fn ipvsadm(&self, words: &str) -> Result<String> {
        self.namespace
            .output(Command::new("ipvsadm").args(words.split_whitespace()))
    }

    /// The rules in the kernel, as lines of `ipvsadm --save -n`.
    pub fn rules(&self) -> Result<BTreeSet<String>> {
        let saved = self.ipvsadm("--save -n")?;
        Ok(saved
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect())
    }

    /// How many connections this host's kernel has given to each real server so far. The kernel
    /// adds them up every two seconds.
    pub fn connections(&self) -> Result<BTreeMap<SocketAddr, u64>> {
        let listed = self.ipvsadm("--list --numeric --stats --exact")?;
        let mut connections = BTreeMap::new();
        for (server, count) in listed.lines().filter_map(parse_connections) {
            *connections.entry(server).or_default() += count;
        }
        Ok(connections)
    }

    /// Starts recording every weight that a real server of this host's table has, and had.
    pub fn watch_weights(&self) -> Result<WeightWatch> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = self.namespace.enter(|| {
            let stop = Arc::clone(&stop);
            // A thread starts in the namespace of the one that starts it.
            Ok(thread::spawn(move || {
                let mut changes = WeightChanges::default();
                while !stop.load(Ordering::Relaxed) {
                    changes.observe(&read_table()?);
                    thread::sleep(WATCH_PERIOD);
                }
                Ok(changes)
            }))
        })?;
        Ok(WeightWatch {
            stop,
            thread: Some(thread),
        })
    }
}

/// A recording of weights under way. Dropping it ends it.
#[derive(Debug)]
pub struct WeightWatch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<WeightChanges>>>,
}

impl WeightWatch {
    pub fn stop(mut self) -> Result<WeightChanges> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self
            .thread
            .take()
            .context("the recording was stopped before")?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for WeightWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Which weights each real server was seen with, in order. Absent counts as a value: a rule that
/// goes away and comes back shows as three.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct WeightChanges {
    looks: usize,
    seen: BTreeMap<(String, String), Vec<Option<u32>>>,
}

impl WeightChanges {
    /// How often the table was looked at.
    #[must_use]
    pub fn looks(&self) -> usize {
        self.looks
    }

    /// Whether every rule seen at all had one and the same weight at every look.
    #[must_use]
    pub fn none(&self) -> bool {
        self.looks > 0 && self.seen.values().all(|weights| weights.len() == 1)
    }

    /// The weights each rule was seen with, in the order of their addresses.
    pub fn histories(&self) -> impl Iterator<Item = &[Option<u32>]> {
        self.seen.values().map(Vec::as_slice)
    }

    fn observe(&mut self, table: &str) {
        let now: BTreeMap<_, _> = parse_weights(table).collect();
        for (rule, weights) in &mut self.seen {
            let weight = now.get(rule).copied();
            if weights.last() != Some(&weight) {
                weights.push(weight);
            }
        }
        for (rule, weight) in now {
            let late = self.looks > 0;
            self.seen.entry(rule).or_insert_with(|| {
                if late {
                    vec![None, Some(weight)]
                } else {
                    vec![Some(weight)]
                }
            });
        }
        self.looks += 1;
    }
}

impl fmt::Display for WeightChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} looks at the table:", self.looks)?;
        for ((service, server), weights) in &self.seen {
            let weights: Vec<String> = weights
                .iter()
                .map(|weight| weight.map_or("absent".to_owned(), |weight| weight.to_string()))
                .collect();
            writeln!(f, "  {service} {server}: {}", weights.join(", "))?;
        }
        Ok(())
    }
}

/// `/proc/net` itself would be the namespace of the process, not of the thread.
fn read_table() -> Result<String> {
    fs::read_to_string("/proc/thread-self/net/ip_vs").context("reading the kernel's table")
}

/// (service, real server) and weight of every line like
/// `  -> 0A02 0015:0050      Masq    1      0          0`; addresses stay as the kernel spells them.
fn parse_weights(table: &str) -> impl Iterator<Item = ((String, String), u32)> + '_ {
    let mut service = String::new();
    table.lines().filter_map(move |line| {
        let mut words = line.split_whitespace();
        match words.next()? {
            "->" => {
                let server = words.next()?;
                let weight = words.nth(1)?.parse().ok()?;
                Some(((service.clone(), server.to_owned()), weight))
            }
            protocol @ ("TCP" | "UDP" | "SCTP" | "FWM") => {
                service = format!("{protocol} {}", words.next()?);
                None
            }
            _ => None,
        }
    })
}

/// Real server and connections of every line like `  -> 10.1.0.21:80    7   42   0   2394   0`.
fn parse_connections(line: &str) -> Option<(SocketAddr, u64)> {
    let mut words = line.split_whitespace();
    match (words.next()?, words.next()?, words.next()?) {
        ("->", server, count) => Some((server.parse().ok()?, count.parse().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_read_from_the_lines_of_real_servers_alone() {
        let parsed = |line| parse_connections(line);
        let server = "10.1.0.21:80".parse().unwrap();
        assert_eq!(
            parsed("  -> 10.1.0.21:80     7   42   0   2394   0"),
            Some((server, 7))
        );
        assert_eq!(parsed("  -> RemoteAddress:Port"), None);
        assert_eq!(parsed("TCP  10.9.0.1:80   21  126  0  7182  0"), None);
    }

    fn table(servers: &[(&str, u32)]) -> String {
        let mut table = "IP Virtual Server version 1.2.1 (size=4096)\n\
             Prot LocalAddress:Port Scheduler Flags\n  \
             -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
             TCP  0A090001:0050 rr \n"
            .to_owned();
        for (server, weight) in servers {
            table += &format!("  -> {server}:0050      Masq    {weight}      0          7\n");
        }
        table
    }

    #[test]
    fn connections_coming_and_going_are_no_change() {
        let mut changes = WeightChanges::default();
        changes.observe(&table(&[("0A020015", 3)]).replace("  7\n", "  8\n"));
        changes.observe(&table(&[("0A020015", 3)]));
        assert!(changes.none(), "{changes}");
    }

    #[test]
    fn a_weight_a_disappearance_and_a_late_arrival_are_changes() {
        let steady = table(&[("0A020015", 3)]);
        for other in [
            table(&[("0A020015", 0)]),
            table(&[]),
            table(&[("0A020015", 3), ("B", 1)]),
        ] {
            let mut changes = WeightChanges::default();
            changes.observe(&steady);
            changes.observe(&other);
            changes.observe(&steady);
            assert!(!changes.none(), "{changes}");
        }
    }

    #[test]
    fn a_table_never_seen_is_not_a_steady_one() {
        assert!(!WeightChanges::default().none());
    }
}
