//! What command lines ask the node for.

use std::fmt::Write;

use clap::{CommandFactory, Parser};

use super::{server, service};
use crate::cli::{Cli, Command};
use crate::output::snapshot;

/// The request that a command line makes, or why it makes none.
fn request(line: &str) -> String {
    let words = line
        .split(' ')
        .map(|word| if word == "''" { "" } else { word });
    let cli = match Cli::try_parse_from(["meradm"].into_iter().chain(words)) {
        Ok(cli) => cli,
        Err(error) => return first_line(&error),
    };
    let change = match cli.command {
        Command::Service(command) => service::change(&command),
        Command::Server(command) => Ok(server::change(&command)),
        other => panic!("{other:?} changes nothing"),
    };
    match change {
        Ok((change, condition)) => match condition.expect_revision {
            None => change.describe(),
            Some(revision) => format!("{} at {revision}", change.describe()),
        },
        Err(crate::failure::Failure::Usage(error)) => first_line(&error),
        Err(other) => panic!("{other:?}"),
    }
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

fn requests(lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines {
        writeln!(text, "{line}\n    {}", request(line)).unwrap();
    }
    text
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn service_commands() {
    snapshot!(requests(&[
        "service add web tcp 10.0.0.1:80 -s=wrr -b=flag-1,flag-2",
        "service add web TCP 10.0.0.1:80 -swrr",
        "service add web udp [fd00::1]:53 --scheduler rr --ops",
        "service add web sctp 10.0.0.1:0 -s rr -p 300 -M 255.255.255.0 --pe sip",
        "service add web tcp 10.0.0.1:80 -s rr -M 24",
        "service add web fwmark 7 -s rr",
        "service add web fwmark 7 -s rr --family ipv6 --expect-revision 0",
        "service add web fwmark 4294967296 -s rr",
        "service add web tcp 10.0.0.1:80 -s rr --family ipv4",
        "service add web tcp 10.0.0.1 -s rr",
        "service edit web",
        "service edit web -s sh",
        "service edit web -b flag-3",
        "service edit web -b ''",
        "service edit web -b=",
        "service edit web -p 0",
        "service edit web --pe ''",
        "service edit web --ops=false",
        "service del web --expect-revision 9",
    ]));
}

#[test]
fn server_commands() {
    snapshot!(requests(&[
        "server add web 10.1.0.1:80 -w=2 -f=masq",
        "server add web [fd00::1]:80 -w 0 -f ROUTE -x 100 -y 50",
        "server add web 10.1.0.1:80 -w 1 -f tunnel",
        "server add web 10.1.0.1:80 -w 1 --forward tunnel --tun-type gue --tun-port 6080 --tun-csum",
        "server add web 10.1.0.1:80 -w 1 -f tunnel --tun-type gre --tun-nocsum",
        "server add web 10.1.0.1:80 -w 1 -f tunnel --tun-type gue --tun-port 1 --tun-remcsum",
        "server add web 10.1.0.1:80 -w 1 -f masq --health-endpoint=http://:556/health \
         --health-period=5s --health-timeout=200ms --health-up=2 --health-down=1",
        "server edit web 10.1.0.1:80",
        "server edit web 10.1.0.1:80 -w 0",
        "server edit web 10.1.0.1:80 -x 0",
        "server edit web 10.1.0.1:80 --health-endpoint ''",
        "server edit web 10.1.0.1:80 --health-period 1m30s",
        "server edit web 10.1.0.1:80 --health-period 90",
        "server del web 10.1.0.1:80",
    ]));
}

#[test]
fn help() {
    let mut text = String::new();
    let mut describe = |command: &mut clap::Command| {
        let help = command.render_help().to_string();
        // They are the same everywhere: once is enough.
        let (help, _global) = help.split_once("\nGlobal options:").unwrap();
        writeln!(text, "{help}").unwrap();
    };
    let mut root = Cli::command();
    root.build();
    let whole = root.render_help().to_string();
    for path in [
        &["list"][..],
        &["export"],
        &["import"],
        &["status"],
        &["watch"],
        &["service", "add"],
        &["service", "edit"],
        &["server", "add"],
        &["server", "edit"],
        &["server", "del"],
    ] {
        let command = path.iter().fold(&mut root, |command, name| {
            command.find_subcommand_mut(name).unwrap()
        });
        describe(command);
    }
    snapshot!(whole + "\n" + &text);
}
