//! The table seen by `ipvsadm`, which shares no code with ours.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use merlin_ipvs::{Dataplane, Kernel};
use merlin_model::Family;
use merlin_model::table::{
    Destination, DestinationKey, Encapsulation, Entry, ForwardMethod, Key, Operation, Service,
    Table, flags,
};

use crate::{checks, command};

checks![
    ipvsadm_sees_what_we_wrote,
    ipvsadm_sees_the_thresholds_we_wrote,
    we_see_what_ipvsadm_wrote,
    what_ipvsadm_changes_changes_the_fingerprint,
];

/// What `ipvsadm -Sn` prints for [`table`], line by line.
const RULES: &str = "\
-A -t 10.0.0.1:80 -s rr
-a -t 10.0.0.1:80 -r 192.168.0.1:8080 -m -w 1
-a -t 10.0.0.1:80 -r 192.168.0.2:80 -g -w 65535
-a -t 10.0.0.1:80 -r 192.168.0.3:80 -i -w 0 --tun-type ipip
-a -t 10.0.0.1:80 -r 192.168.0.4:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-nocsum
-a -t 10.0.0.1:80 -r 192.168.0.5:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-csum
-a -t 10.0.0.1:80 -r 192.168.0.6:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-remcsum
-a -t 10.0.0.1:80 -r 192.168.0.7:80 -i -w 1 --tun-type gre --tun-nocsum
-a -t 10.0.0.1:80 -r 192.168.0.8:80 -i -w 1 --tun-type gre --tun-csum
-A -u 10.0.0.1:5060 -s wrr -p 600 --pe sip
-A -u 10.0.0.1:53 -s rr -o
-A --sctp-service 10.0.0.1:80 -s lc
-A -t 10.0.0.2:80 -s mh -b mh-fallback,mh-port
-A -t 10.0.0.3:80 -s sh -p 300 -M 255.255.255.0 -b sh-port
-A -t [2001:db8::1]:80 -s wlc -p 60 -M 64
-a -t [2001:db8::1]:80 -r [2001:db8::101]:80 -m -w 3
-a -t [2001:db8::1]:80 -r 192.168.0.1:80 -i -w 1 --tun-type ipip
-A -f 7 -s rr
-a -f 7 -r 192.168.0.1:0 -g -w 1
-A -f 7 -6 -s rr
-a -f 7 -6 -r [2001:db8::102]:0 -g -w 1
";

fn address(protocol: u16, at: &str, port: u16) -> Key {
    let address: IpAddr = at.parse().expect("a sample is an address");
    Key::Address {
        protocol,
        address,
        port,
    }
}

fn table() -> Table {
    let mut table = Table::default();
    let mut add = |key: Key, scheduler: &str, change: fn(&mut Service), servers| {
        let mut service = Service {
            scheduler: scheduler.to_owned(),
            flags: 0,
            timeout: 0,
            netmask: key.family().bits(),
            engine: None,
        };
        change(&mut service);
        let servers: Vec<(&str, u16, ForwardMethod, u32, (u8, u16, u16))> = servers;
        let servers = servers
            .into_iter()
            .map(|(at, port, forward, weight, tunnel)| {
                let at = at.parse().expect("a sample is an address");
                let (kind, tunnel_port, flags) = tunnel;
                let to = Destination {
                    forward,
                    weight,
                    upper_threshold: 0,
                    lower_threshold: 0,
                    encapsulation: Encapsulation {
                        kind,
                        port: tunnel_port,
                        flags,
                    },
                };
                (DestinationKey::new(at, port), to)
            });
        let destinations = servers.collect();
        let entry = Entry {
            service,
            destinations,
        };
        table.services.insert(key, entry);
    };
    use ForwardMethod::{Masq, Route, Tunnel};
    let plain: fn(&mut Service) = |_| {};
    let none = (0, 0, 0);
    add(
        address(6, "10.0.0.1", 80),
        "rr",
        plain,
        vec![
            ("192.168.0.1", 8080, Masq, 1, none),
            ("192.168.0.2", 80, Route, 65_535, none),
            ("192.168.0.3", 80, Tunnel, 0, none),
            ("192.168.0.4", 80, Tunnel, 1, (1, 6080, 0)),
            ("192.168.0.5", 80, Tunnel, 1, (1, 6080, 1)),
            ("192.168.0.6", 80, Tunnel, 1, (1, 6080, 2)),
            ("192.168.0.7", 80, Tunnel, 1, (2, 0, 0)),
            ("192.168.0.8", 80, Tunnel, 1, (2, 0, 1)),
        ],
    );
    let sip: fn(&mut Service) = |service| {
        service.flags = flags::PERSISTENT;
        service.timeout = 600;
        service.engine = Some("sip".to_owned());
    };
    add(address(17, "10.0.0.1", 5060), "wrr", sip, vec![]);
    let one_packet: fn(&mut Service) = |service| service.flags = flags::ONE_PACKET;
    add(address(17, "10.0.0.1", 53), "rr", one_packet, vec![]);
    add(address(132, "10.0.0.1", 80), "lc", plain, vec![]);
    let maglev: fn(&mut Service) =
        |service| service.flags = flags::SCHEDULER_1 | flags::SCHEDULER_2;
    add(address(6, "10.0.0.2", 80), "mh", maglev, vec![]);
    let by_net: fn(&mut Service) = |service| {
        service.flags = flags::PERSISTENT | flags::SCHEDULER_2;
        service.timeout = 300;
        service.netmask = 24;
    };
    add(address(6, "10.0.0.3", 80), "sh", by_net, vec![]);
    let by_net6: fn(&mut Service) = |service| {
        service.flags = flags::PERSISTENT;
        service.timeout = 60;
        service.netmask = 64;
    };
    add(
        address(6, "2001:db8::1", 80),
        "wlc",
        by_net6,
        vec![
            ("2001:db8::101", 80, Masq, 3, none),
            ("192.168.0.1", 80, Tunnel, 1, none),
        ],
    );
    for (family, server) in [
        (Family::Ipv4, "192.168.0.1"),
        (Family::Ipv6, "2001:db8::102"),
    ] {
        let key = Key::Fwmark { family, mark: 7 };
        add(key, "rr", plain, vec![(server, 0, Route, 1, none)]);
    }
    table
}

fn additions(table: &Table) -> Vec<Operation> {
    let mut operations = Vec::new();
    for (key, entry) in &table.services {
        operations.push(Operation::AddService(*key, entry.service.clone()));
        let servers = entry.destinations.iter();
        operations.extend(servers.map(|(at, to)| Operation::AddDestination(*key, *at, *to)));
    }
    operations
}

#[track_caller]
pub(crate) fn apply(kernel: &mut Kernel, operations: &[Operation]) {
    let answers = kernel.apply(operations).expect("the table can be changed");
    for (operation, answer) in operations.iter().zip(answers) {
        answer.unwrap_or_else(|refusal| panic!("{operation}: {refusal}"));
    }
}

fn lines(text: &str) -> BTreeSet<&str> {
    text.lines().map(str::trim_end).collect()
}

fn ipvsadm_sees_what_we_wrote(kernel: &mut Kernel) {
    apply(kernel, &additions(&table()));
    assert_eq!(lines(&command("ipvsadm", &["-Sn"])), lines(RULES));
}

fn ipvsadm_sees_the_thresholds_we_wrote(kernel: &mut Kernel) {
    let key = address(6, "10.0.0.1", 80);
    let mut table = table();
    table.services.retain(|other, _| *other == key);
    let entry = table.services.get_mut(&key).expect("it is in the table");
    entry.destinations.retain(|at, _| at.port == 8080);
    for to in entry.destinations.values_mut() {
        to.upper_threshold = 2_000;
        to.lower_threshold = 1_000;
    }
    apply(kernel, &additions(&table));
    let printed = command("ipvsadm", &["-Ln", "--thresholds"]);
    let line = printed.lines().find(|line| line.contains("192.168.0.1"));
    let words: Vec<_> = line.expect("it is listed").split_whitespace().collect();
    assert_eq!(
        words[..4],
        ["->", "192.168.0.1:8080", "2000", "1000"],
        "{printed}"
    );
}

fn we_see_what_ipvsadm_wrote(kernel: &mut Kernel) {
    let restore = Command::new("ipvsadm")
        .arg("-R")
        .stdin(Stdio::piped())
        .spawn();
    let mut restore = restore.expect("ipvsadm is installed");
    let mut input = restore.stdin.take().expect("its input is a pipe");
    input
        .write_all(RULES.as_bytes())
        .expect("it reads its input");
    drop(input);
    assert!(restore.wait().expect("it ends").success());
    assert_eq!(kernel.dump().expect("the table can be read"), table());
}

fn what_ipvsadm_changes_changes_the_fingerprint(kernel: &mut Kernel) {
    apply(kernel, &additions(&table()));
    let before = kernel.fingerprint().expect("there is a fingerprint");
    let edit = [
        "-e",
        "-t",
        "10.0.0.1:80",
        "-r",
        "192.168.0.2:80",
        "-g",
        "-w",
        "9",
    ];
    command("ipvsadm", &edit);
    assert_ne!(kernel.fingerprint().expect("there is one"), before);
    let back = [
        "-e",
        "-t",
        "10.0.0.1:80",
        "-r",
        "192.168.0.2:80",
        "-g",
        "-w",
        "65535",
    ];
    command("ipvsadm", &back);
    assert_eq!(kernel.fingerprint().expect("there is one"), before);
}
