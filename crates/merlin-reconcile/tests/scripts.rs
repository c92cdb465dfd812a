//! Runs the scripts in `tests/scripts`: what is declared and observed, then what it leads to.
//!
//! A script is a list of blocks: commands, `---`, and what they print. State lives on from block
//! to block. `UPDATE_SCRIPTS=1 cargo test` writes the output anew, for review as a diff.
//!
//! ```text
//! service ID IP:PORT SCHEDULER      declare          kernel service IP:PORT SCHEDULER
//! server ID IP:PORT WEIGHT [checked]                 kernel server IP:PORT IP:PORT WEIGHT
//! scheduler ID SCHEDULER                             kernel delete IP:PORT
//! weight ID IP:PORT WEIGHT
//! move ID IP:PORT                   to another key   up|down ID IP:PORT     a verdict
//! remove ID [IP:PORT]                                restart                forget every verdict
//! foreign keep|delete                                plan                   print and carry out
//! ```

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may, and the lint only spares the tests themselves"
)]

mod support;

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use merlin_model::table::{
    Destination, Encapsulation, ForwardMethod, Key, Operation, Service, Table,
};
use merlin_model::{Catalog, HealthCheck, HealthView, Verdict};
use merlin_reconcile::desired::desired;
use merlin_reconcile::plan::{Foreign, plan};

use support::*;

#[derive(Default)]
struct World {
    catalog: Catalog,
    /// What the catalog was at the last plan.
    planned: Catalog,
    health: HealthView,
    kernel: Table,
    foreign: Foreign,
}

impl World {
    fn run(&mut self, command: &str) -> String {
        let words: Vec<_> = command.split_whitespace().collect();
        let declare = match words[..] {
            ["service", name, at, scheduler] => {
                create_service(name, tcp(at), scheduler.parse().unwrap())
            }
            ["server", name, at, weight] => {
                create_server(name, at, weight.parse().unwrap(), HealthCheck::default())
            }
            ["server", name, at, weight, "checked"] => {
                create_server(name, at, weight.parse().unwrap(), checked())
            }
            ["scheduler", name, scheduler] => set_scheduler(name, scheduler.parse().unwrap()),
            ["weight", name, at, weight] => set_weight(name, at, weight.parse().unwrap()),
            ["move", name, at] => move_service(name, tcp(at)),
            ["remove", name] => delete_service(name),
            ["remove", name, at] => delete_server(name, at),
            _ => return self.observe(&words),
        };
        change(&mut self.catalog, [declare]);
        String::new()
    }

    fn observe(&mut self, words: &[&str]) -> String {
        let key = |at| Key::from(&tcp(at));
        let operation = match *words {
            ["kernel", "service", at, scheduler] => {
                let service = Service {
                    scheduler: scheduler.to_owned(),
                    flags: 0,
                    timeout: 0,
                    netmask: 32,
                    engine: None,
                };
                Operation::AddService(key(at), service)
            }
            ["kernel", "server", service, at, weight] => {
                let destination = Destination {
                    forward: ForwardMethod::Route,
                    weight: weight.parse().unwrap(),
                    upper_threshold: 0,
                    lower_threshold: 0,
                    encapsulation: Encapsulation::default(),
                };
                Operation::AddDestination(key(service), server(at), destination)
            }
            ["kernel", "delete", at] => Operation::DeleteService(key(at)),
            ["up", name, at] => {
                judge(&mut self.health, name, at, Verdict::Up);
                return String::new();
            }
            ["down", name, at] => {
                judge(&mut self.health, name, at, Verdict::Down);
                return String::new();
            }
            ["restart"] => {
                self.health = HealthView::default();
                self.planned = self.catalog.clone();
                return String::new();
            }
            ["foreign", "keep"] => {
                self.foreign = Foreign::Keep;
                return String::new();
            }
            ["plan"] => return self.plan(),
            _ => panic!("unknown command {words:?}"),
        };
        carry_out(&mut self.kernel, &operation).unwrap();
        String::new()
    }

    fn plan(&mut self) -> String {
        let released: Vec<_> = self
            .planned
            .services()
            .filter(|service| self.catalog.holder(&service.key).is_none())
            .map(|service| (&service.key, &service.id))
            .collect();
        let desired = desired(&self.catalog, &self.health).releasing(released);
        let plan = plan(&desired, &self.kernel, self.foreign);
        let mut lines = String::new();
        for operation in &plan.operations {
            let owner = desired.owner(operation.key());
            let owner = owner.map_or("(foreign)", |id| id.as_str());
            writeln!(lines, "{owner}: {operation}").unwrap();
            carry_out(&mut self.kernel, operation).unwrap();
        }
        if plan.operations.is_empty() {
            lines.push_str("nothing to do\n");
        }
        for key in &plan.foreign {
            writeln!(lines, "(foreign) {key} stays").unwrap();
        }
        self.planned = self.catalog.clone();
        lines
    }
}

/// Runs a script and gives it back with the output it should hold.
fn play(script: &str) -> String {
    let mut world = World::default();
    let mut played = String::new();
    let mut expected = false;
    for line in script.lines() {
        match line {
            "---" => expected = true,
            "" => {
                expected = false;
                played.push('\n');
            }
            _ if expected => {}
            _ => writeln!(played, "{line}").unwrap(),
        }
        if line == "plan" {
            let output = world.run(line);
            write!(played, "---\n{output}").unwrap();
        } else if !expected && !line.is_empty() && !line.starts_with('#') {
            world.run(line);
        }
    }
    played
}

#[test]
fn scripts_print_what_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut scripts: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    for path in scripts {
        let script = fs::read_to_string(&path).unwrap();
        let played = play(&script);
        if env::var_os("UPDATE_SCRIPTS").is_some() {
            fs::write(&path, &played).unwrap();
        } else {
            let name = path.file_name().unwrap().display();
            assert_eq!(
                script, played,
                "{name}: UPDATE_SCRIPTS=1 accepts the difference"
            );
        }
    }
}
