//! Exit codes, what is said on which stream, and what is tried again.

mod support;

use std::process::Stdio;

use support::{Fault, Node, Ran, meradm};

#[test]
fn senseless_command_lines_are_usage_errors() {
    for line in [
        "",
        "lisp",
        "service add service1 tcp 10.1.1.1:888",
        "service add service1 tcp -s rr",
        "service add service1 -s rr",
        "service add service1 icmp 10.1.1.1:888 -s rr",
        "service add service1 tcp 10.1.1.1 -s rr",
        "service add service1 tcp fd00::1:80 -s rr",
        "service add service1 tcp 10.1.1.1:99999 -s rr",
        "service add service1 fwmark 0 -s rr",
        "service add service1 fwmark x -s rr",
        "service add service1 tcp 10.1.1.1:888 -s rr --family ipv6",
        "service add service1 tcp 10.1.1.1:888 -s rr -M 255.0.255.0",
        "service edit",
        "server add service1 172.16.1.1:555",
        "server add service1 172.16.1.1:555 -w=2",
        "server add service1 172.16.1.1:555 -f=masq",
        "server add service1 172.16.1.1:555 -w=2 -f=teleport",
        "server add service1 172.16.1.1 -w=2 -f=masq",
        "server edit service1 172.16.1.1:555 --health-period 5",
        "server edit service1 172.16.1.1:555 --tun-port 6080",
        "server edit service1 172.16.1.1:555 --tun-type gue --tun-csum --tun-remcsum",
        "list --timeout soon",
        "list -o xml",
        "list --socket /tmp/x -H localhost",
    ] {
        let ran = Ran::of(meradm(line).output().unwrap());
        assert_eq!(ran.code, 2, "{line:?}");
        assert_eq!(ran.stdout, "", "{line:?}");
        assert!(ran.stderr.contains("--help"), "{line:?}: {}", ran.stderr);
    }
}

#[test]
fn help_and_version_are_results() {
    for line in [
        "--help",
        "service add --help",
        "help server",
        "--version",
        "-V",
    ] {
        let ran = Ran::of(meradm(line).output().unwrap());
        assert_eq!((ran.code, &*ran.stderr), (0, ""), "{line}");
    }
    let version = Ran::of(meradm("--version").output().unwrap()).stdout;
    assert!(version.contains("version 0."), "{version}");
}

#[test]
fn a_node_that_is_not_there_is_told_apart() {
    let gone = Node::start();
    let address = gone.address;
    let run_dir = gone.run_dir().to_owned();
    drop(gone);
    let ran = Ran::of(
        meradm(&format!("list -H=127.0.0.1 -P={}", address.port()))
            .output()
            .unwrap(),
    );
    assert_eq!((ran.code, &*ran.stdout), (3, ""));
    assert!(ran.stderr.contains(&address.to_string()), "{}", ran.stderr);
    let line = format!("list --socket {}/merlin.sock", run_dir.display());
    assert_eq!(Ran::of(meradm(&line).output().unwrap()).code, 3);
}

#[test]
fn what_the_catalog_refuses_is_rejected_in_its_words() {
    let node = Node::start();
    node.ok("service add web tcp 10.0.0.1:80 -s rr");
    node.ok("server add web 10.1.0.1:80 -w 1 -f masq");
    for (line, words) in [
        (
            "service add web tcp 10.0.0.2:80 -s rr",
            "service web already exists",
        ),
        (
            "service add other tcp 10.0.0.1:80 -s rr",
            "TCP 10.0.0.1:80 already belongs to service web",
        ),
        (
            "service add x tcp 10.0.0.2:80 -s fastest",
            "config.scheduler: unknown scheduler",
        ),
        (
            "service add x tcp 10.0.0.2:80 -s rr -b sh-port",
            "config.flags: \"sh-port\" is",
        ),
        (
            "service add x tcp 10.0.0.2:0 -s rr",
            "key.port: must be 1 to 65535",
        ),
        ("service edit nobody -s rr", "service nobody does not exist"),
        (
            "server add nobody 10.1.0.1:80 -w 1 -f masq",
            "service nobody does not exist",
        ),
        (
            "server add web 10.1.0.1:80 -w 1 -f masq",
            "10.1.0.1:80 of service web already exists",
        ),
        (
            "server add web 10.1.0.2:80 -w 65536 -f masq",
            "config.weight: 65536 is out of range",
        ),
        (
            "server edit web 10.1.0.2:80 -w 1",
            "service web has no real server 10.1.0.2:80",
        ),
        (
            "server edit web 10.1.0.1:80 --tun-type gre",
            "config.tunnel: only goes with",
        ),
        (
            "service edit web -s wrr --expect-revision 7",
            "expected revision 7, but the object last changed at revision 1",
        ),
        ("service del web --expect-revision 0", "expected revision 0"),
    ] {
        let ran = node.run(line);
        assert_eq!((ran.code, &*ran.stdout), (4, ""), "{line}");
        assert!(ran.stderr.starts_with("meradm: "), "{line}: {}", ran.stderr);
        assert!(ran.stderr.contains(words), "{line}: {}", ran.stderr);
    }
    node.ok("service edit web -s wrr --expect-revision 1");
    node.ok("service add new tcp 10.0.0.9:80 -s rr --expect-revision 0");
}

#[test]
fn deleting_what_is_not_there_is_fine_and_noted() {
    let node = Node::start();
    for line in ["service del web", "server del web 10.1.0.1:80"] {
        let ran = node.run(line);
        assert_eq!((ran.code, &*ran.stdout), (0, ""), "{line}");
        assert!(ran.stderr.contains("nothing to delete"), "{}", ran.stderr);
    }
}

#[test]
fn the_local_nodes_socket_is_found_by_its_directory() {
    let node = Node::start();
    node.ok("service add web tcp 10.0.0.1:80 -s rr");
    let ran = meradm("list")
        .env("MERLIN_RUN_DIR", node.run_dir())
        .output();
    let ran = Ran::of(ran.unwrap());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("web"));
    let line = format!("list -X --socket {}", node.socket().display());
    let ran = Ran::of(meradm(&line).output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("merlin.sock"), "{}", ran.stderr);
}

#[test]
fn a_change_is_tried_again_while_there_is_no_leader() {
    let node = Node::start();
    node.store
        .fail_with(&[Fault::Unavailable, Fault::Unavailable]);
    node.ok("service add web tcp 10.0.0.1:80 -s rr");
    assert_eq!(node.store.faults_left(), 0);
    assert_eq!(node.store.catalog().revision().0, 1);
}

#[test]
fn a_change_whose_answer_is_lost_is_made_once() {
    let node = Node::start();
    node.store.fail_with(&[Fault::AnswerLost]);
    node.ok("service add web tcp 10.0.0.1:80 -s rr");
    node.store
        .fail_with(&[Fault::AnswerLost, Fault::Unavailable]);
    node.ok("server add web 10.1.0.1:80 -w 1 -f masq");
    assert_eq!(node.store.catalog().revision().0, 2);
    node.store.fail_with(&[Fault::AnswerLost]);
    let ran = node.run("server del web 10.1.0.1:80");
    assert_eq!(
        (ran.code, &*ran.stderr),
        (0, ""),
        "it was there at the first try"
    );
}

#[test]
fn without_an_answer_in_time_nothing_is_claimed() {
    let node = Node::start();
    node.store.fail_with(&[Fault::Unavailable; 100]);
    let ran = node.run("service add web tcp 10.0.0.1:80 -s rr --timeout 300ms");
    assert_eq!(ran.code, 3);
    assert!(
        ran.stderr
            .contains("the store is not available: on purpose"),
        "{}",
        ran.stderr
    );

    let node = Node::start();
    node.store.fail_with(&[Fault::AnswerLost]);
    node.store.fail_with(&[Fault::Unavailable; 100]);
    let ran = node.run("service add web tcp 10.0.0.1:80 -s rr --timeout 300ms");
    assert_eq!(ran.code, 3);
    assert!(
        ran.stderr.contains("may or may not have been applied"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let node = Node::start();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ran = node
        .command("list")
        .stdout(Stdio::from(writer))
        .stderr(Stdio::piped())
        .output();
    let ran = Ran::of(ran.unwrap());
    assert_eq!((ran.code, &*ran.stderr), (0, ""));
}

#[test]
fn completions_and_manual_pages_are_made_from_the_definitions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = Ran::of(meradm(&format!("completions {shell}")).output().unwrap());
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains("health-endpoint"), "{shell}");
    }
    let page = Ran::of(meradm("man").output().unwrap()).stdout;
    assert!(page.contains(".TH meradm 1"), "{page}");
    let dir = tempfile::tempdir().unwrap();
    let line = format!("man --out-dir {}", dir.path().display());
    assert_eq!(Ran::of(meradm(&line).output().unwrap()).code, 0);
    let page = std::fs::read_to_string(dir.path().join("meradm-server-add.1")).unwrap();
    assert!(page.contains("health"), "{page}");
}
