//! Golden timelines: scripts of declarations and answers, and the trace they must give.
//!
//! A script is a line per command, `---`, and the trace up to the next empty line, as often as it
//! takes. `UPDATE_TIMELINES=1` rewrites the traces; the change is then read as a diff.
//!
//! ```text
//! at 2s declare web 10.0.0.1:80 http://:9000/health 5s 1s 2/1    period, timeout, up/down
//! at 2s answer 10.0.0.1:9000 [after 3s] ok | short | REASON      from now on; `short` is local
//! at 2s switch-off web 10.0.0.1:80 | weigh web 10.0.0.1:80 7 | remove web [10.0.0.1:80]
//! at 2s room 1 | stall | restart | show | wait
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::Path;

use super::*;

struct World {
    epoch: Instant,
    now: Instant,
    declared: Declarations,
    checker: Checker,
    room: usize,
    answers: HashMap<SocketAddr, (Duration, String)>,
    in_flight: BTreeMap<(Instant, ProbeId), (Arc<ProbeSpec>, Outcome)>,
    trace: String,
}

impl World {
    fn new() -> Self {
        let epoch = Instant::now();
        Self {
            epoch,
            now: epoch,
            declared: Declarations::default(),
            checker: Checker::new(epoch),
            room: usize::MAX,
            answers: HashMap::new(),
            in_flight: BTreeMap::new(),
            trace: String::new(),
        }
    }

    fn execute(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["at", time, command @ ..] = &words[..] else {
            panic!("{line:?} does not begin with a time");
        };
        let until = self.epoch + duration(time);
        if command != ["stall"] {
            self.run(until);
        }
        self.now = until;
        match command {
            [
                "declare",
                service,
                server,
                endpoint,
                period,
                timeout,
                thresholds,
            ] => {
                let (up, down) = thresholds.split_once('/').unwrap();
                let thresholds = (up.parse().unwrap(), down.parse().unwrap());
                let check = check(endpoint, duration(period), duration(timeout), thresholds);
                self.declared.declare(service, at(server), check);
            }
            ["switch-off", service, server] => self.declared.switch_off(service, at(server)),
            ["weigh", service, server, weight] => {
                self.declared
                    .weigh(service, at(server), weight.parse().unwrap());
            }
            ["remove", service, server] => self.declared.remove_server(service, at(server)),
            ["remove", service] => self.declared.remove_service(service),
            ["answer", target, "after", latency, answer @ ..] => {
                self.answers
                    .insert(at(target), (duration(latency), answer.join(" ")));
            }
            ["answer", target, answer @ ..] => {
                self.answers
                    .insert(at(target), (Duration::from_millis(1), answer.join(" ")));
            }
            ["room", room] => self.room = room.parse().unwrap(),
            ["restart"] => {
                self.in_flight.clear();
                self.checker = Checker::new(self.now);
            }
            ["show"] => self.show(),
            ["wait" | "stall"] => {}
            _ => panic!("{line:?} is not a command"),
        }
        self.checker.sync(&self.declared.0, self.now);
        assert_consistent(&self.checker);
    }

    /// Jumps from event to event.
    fn run(&mut self, until: Instant) {
        loop {
            let room = self.room - self.in_flight.len();
            let start = self.checker.next_deadline().filter(|_| room > 0);
            let finish = self.in_flight.keys().next().map(|(at, _)| *at);
            let Some(event) = start.into_iter().chain(finish).min() else {
                return;
            };
            if event > until {
                return;
            }
            self.now = self.now.max(event);
            if Some(event) == finish {
                self.finish();
            } else {
                self.start(room);
            }
            assert_consistent(&self.checker);
        }
    }

    fn start(&mut self, room: usize) {
        for Probe { id, spec } in self.checker.start_due(self.now, room) {
            self.note(&format!("probe {} {}", spec.target.ip(), spec.endpoint));
            let default = (Duration::from_millis(1), "ok".to_owned());
            let (latency, answer) = self.answers.get(&spec.target).unwrap_or(&default);
            let outcome = match answer.as_str() {
                _ if *latency > spec.timeout => Outcome::Failure("timed out".into()),
                "ok" => Outcome::Success,
                "short" => Outcome::Inconclusive("too many open files".into()),
                reason => Outcome::Failure(reason.into()),
            };
            let finish = self.now + *latency.min(&spec.timeout);
            self.in_flight.insert((finish, id), (spec, outcome));
        }
    }

    fn finish(&mut self) {
        let ((_, id), (spec, outcome)) = self.in_flight.pop_first().unwrap();
        let words = match &outcome {
            Outcome::Success => "ok",
            Outcome::Failure(reason) | Outcome::Inconclusive(reason) => reason,
        };
        self.note(&format!("  from {}: {words}", spec.target));
        for t in self.checker.finish(id, outcome, self.now) {
            let reason = t.reason.map(|r| format!(", {r}")).unwrap_or_default();
            let (from, to) = (t.from, t.to);
            self.note(&format!(
                "  {} {}: {from:?} to {to:?}{reason}",
                t.service, t.server
            ));
        }
    }

    fn show(&mut self) {
        let lines: Vec<_> = self
            .checker
            .view()
            .iter()
            .map(|(service, server, health)| {
                let reason = health.last_failure.as_deref();
                let reason = reason
                    .map(|r| format!(", last failure: {r}"))
                    .unwrap_or_default();
                format!("{service} {server} {:?}{reason}", health.verdict)
            })
            .collect();
        if lines.is_empty() {
            self.note("nothing is checked");
        }
        lines.iter().for_each(|line| self.note(line));
    }

    fn note(&mut self, text: &str) {
        let at = self.now.duration_since(self.epoch);
        writeln!(self.trace, "{:>7.3} {text}", at.as_secs_f64()).unwrap();
    }
}

fn duration(text: &str) -> Duration {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap();
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "s" => 1.0,
        "ms" => 0.001,
        _ => panic!("{text:?} is not a duration"),
    };
    Duration::from_secs_f64(number.parse::<f64>().unwrap() * seconds)
}

/// Runs a script and returns it with the trace it gave.
fn play(script: &str) -> String {
    let mut world = World::new();
    let mut played = String::new();
    let mut in_trace = false;
    for line in script.lines() {
        match line {
            "---" => {
                in_trace = true;
                let trace = std::mem::take(&mut world.trace);
                writeln!(played, "---\n{trace}").unwrap();
            }
            "" => {
                if !in_trace {
                    played.push('\n');
                }
                in_trace = false;
            }
            _ if in_trace => {}
            _ => {
                writeln!(played, "{line}").unwrap();
                if !line.starts_with('#') {
                    world.execute(line);
                }
            }
        }
    }
    format!("{}\n", played.trim_end())
}

#[test]
fn every_timeline_is_as_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/checker/tests/timelines");
    let mut played = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let script = std::fs::read_to_string(&path).unwrap();
        let result = play(&script);
        if std::env::var_os("UPDATE_TIMELINES").is_some() {
            std::fs::write(&path, result).unwrap();
        } else {
            let name = path.file_name().unwrap().display();
            assert!(result == script, "{name} now gives:\n{result}");
        }
        played += 1;
    }
    assert!(played > 0);
}
