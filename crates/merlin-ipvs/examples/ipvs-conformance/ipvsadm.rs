//! The table seen by `ipvsadm`, which shares no code with ours.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use merlin_ipvs::conformance::samples::{
    additions, at, fwmark, key, service, table, tcp, to, tunnel,
};
use merlin_ipvs::{Dataplane, Kernel};
use merlin_model::Family;
use merlin_model::table::{ForwardMethod, Key, Operation, Service, Table, flags};

use crate::{checks, command};

checks![
    ipvsadm_sees_what_we_wrote,
    ipvsadm_sees_the_thresholds_we_wrote,
    we_see_what_ipvsadm_wrote,
    what_ipvsadm_changes_changes_the_fingerprint,
];

/// What `ipvsadm -Sn` prints for [`rules`], line by line.
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

fn rules() -> Table {
    use ForwardMethod::{Masq, Route, Tunnel};

    let with = |key: Key, scheduler: &str, bits, timeout, netmask| Service {
        flags: bits,
        timeout,
        netmask,
        ..service(&key, scheduler)
    };
    let web = tcp("10.0.0.1", 80);
    let servers = vec![
        (at("192.168.0.1", 8080), to(Masq, 1)),
        (at("192.168.0.2", 80), to(Route, 65_535)),
        (at("192.168.0.3", 80), to(Tunnel, 0)),
        (at("192.168.0.4", 80), tunnel(1, 6080, 0)),
        (at("192.168.0.5", 80), tunnel(1, 6080, 1)),
        (at("192.168.0.6", 80), tunnel(1, 6080, 2)),
        (at("192.168.0.7", 80), tunnel(2, 0, 0)),
        (at("192.168.0.8", 80), tunnel(2, 0, 1)),
    ];
    let (sip, dns) = (key(17, "10.0.0.1", 5060), key(17, "10.0.0.1", 53));
    let calls = Service {
        engine: Some("sip".to_owned()),
        ..with(sip, "wrr", flags::PERSISTENT, 600, 32)
    };
    let sctp = key(132, "10.0.0.1", 80);
    let (maglev, hashed) = (tcp("10.0.0.2", 80), tcp("10.0.0.3", 80));
    let both = flags::SCHEDULER_1 | flags::SCHEDULER_2;
    let port = flags::PERSISTENT | flags::SCHEDULER_2;
    let web6 = tcp("2001:db8::1", 80);
    let servers6 = vec![
        (at("2001:db8::101", 80), to(Masq, 3)),
        (at("192.168.0.1", 80), to(Tunnel, 1)),
    ];
    let (mark, mark6) = (fwmark(Family::Ipv4, 7), fwmark(Family::Ipv6, 7));
    table([
        (web, service(&web, "rr"), servers),
        (sip, calls, vec![]),
        (dns, with(dns, "rr", flags::ONE_PACKET, 0, 32), vec![]),
        (sctp, service(&sctp, "lc"), vec![]),
        (maglev, with(maglev, "mh", both, 0, 32), vec![]),
        (hashed, with(hashed, "sh", port, 300, 24), vec![]),
        (web6, with(web6, "wlc", flags::PERSISTENT, 60, 64), servers6),
        (
            mark,
            service(&mark, "rr"),
            vec![(at("192.168.0.1", 0), to(Route, 1))],
        ),
        (
            mark6,
            service(&mark6, "rr"),
            vec![(at("2001:db8::102", 0), to(Route, 1))],
        ),
    ])
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
    apply(kernel, &additions(&rules()));
    assert_eq!(lines(&command("ipvsadm", &["-Sn"])), lines(RULES));
}

fn ipvsadm_sees_the_thresholds_we_wrote(kernel: &mut Kernel) {
    let key = tcp("10.0.0.1", 80);
    let mut table = rules();
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
    assert_eq!(kernel.dump().expect("the table can be read"), rules());
}

fn what_ipvsadm_changes_changes_the_fingerprint(kernel: &mut Kernel) {
    apply(kernel, &additions(&rules()));
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
