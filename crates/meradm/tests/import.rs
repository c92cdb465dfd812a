//! The catalog goes into a file and comes out of it.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use support::{Fault, Node, Ran};

/// A node with some of everything.
fn furnished() -> Node {
    let node = Node::start();
    node.ok("service add web tcp 10.0.0.1:80 -s wrr -b flag-1,flag-2");
    node.ok(
        "server add web 10.1.0.2:80 -w 2 -f masq --health-endpoint=http://:556/health \
         --health-period=5s --health-timeout=1500ms --health-up=2 --health-down=1",
    );
    node.ok("server add web 10.1.0.1:80 -w 0 -f masq");
    node.ok("service add dns udp [fd00::1]:53 -s rr -p 300 -M 64 --ops=false");
    node.ok("server add dns 10.1.0.1:53 -w 1 -f tunnel --tun-type gue --tun-port 6080 --tun-csum");
    node.ok("service add mark fwmark 7 --family ipv6 -s sh");
    node
}

/// The node's run directory is a place for the test's files too.
fn file(node: &Node, name: &str, text: &str) -> PathBuf {
    let path = node.run_dir().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn import(node: &Node, text: &str, more: &str) -> Ran {
    let path = file(node, "catalog", text);
    node.run(format!("import {} {more}", path.display()).trim_end())
}

const EXPORTED: &str = "\
# The catalog of a merlin cluster. `meradm import` makes a cluster hold it.
format: merlin-catalog/1
revision: 6
items:
- service:
    id: dns
    key:
      ip: fd00::1
      port: 53
      protocol: UDP
    config:
      scheduler: rr
      persistence:
        timeoutSeconds: 300
        netmask: 64
  servers:
  - key:
      ip: 10.1.0.1
      port: 53
    config:
      weight: 1
      forward: TUNNEL
      tunnel:
        type: GUE
        port: 6080
        checksum: FULL
- service:
    id: mark
    key:
      fwmark: 7
      family: IPV6
    config:
      scheduler: sh
  servers: []
- service:
    id: web
    key:
      ip: 10.0.0.1
      port: 80
      protocol: TCP
    config:
      scheduler: wrr
      flags:
      - flag-1
      - flag-2
  servers:
  - key:
      ip: 10.1.0.1
      port: 80
    config:
      weight: 0
      forward: MASQ
  - key:
      ip: 10.1.0.2
      port: 80
    config:
      weight: 2
      forward: MASQ
    healthCheck:
      endpoint: http://:556/health
      period: 5s
      timeout: 1.500s
      upThreshold: 2
      downThreshold: 1
";

#[test]
fn an_export_is_sorted_and_says_what_is_declared() {
    let node = furnished();
    assert_eq!(node.ok("export"), EXPORTED);
    assert_eq!(node.ok("export -o yaml"), EXPORTED);
    let json: serde_json::Value = serde_json::from_str(&node.ok("export -o json")).unwrap();
    let yaml: serde_json::Value = serde_norway::from_str(EXPORTED).unwrap();
    assert_eq!(json, yaml);
}

#[test]
fn importing_an_export_changes_nothing() {
    let node = furnished();
    for form in [
        "export",
        "export -o json",
        "list -o json",
        "list --live -o yaml",
    ] {
        let before = node.store.catalog();
        let ran = import(&node, &node.ok(form), "--prune");
        assert_eq!(
            (ran.code, &*ran.stdout, &*ran.stderr),
            (0, "nothing to do\n", ""),
            "{form}"
        );
        assert_eq!(node.store.catalog(), before);
    }
}

#[test]
fn an_empty_node_takes_an_export_whole() {
    let (from, to) = (furnished(), Node::start());
    let exported = from.ok("export");
    let ran = import(&to, &exported, "");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ran.stdout,
        "\
+ service dns: key UDP [fd00::1]:53, config.scheduler rr, config.persistence 300s/64
+ service mark: key FWM 7 IPv6, config.scheduler sh
+ service web: key TCP 10.0.0.1:80, config.scheduler wrr, config.flags flag-1+flag-2
+ server dns 10.1.0.1:53: config.weight 1, config.forward TUNNEL, config.tunnel GUE 6080 FULL
+ server web 10.1.0.1:80: config.weight 0, config.forward MASQ
+ server web 10.1.0.2:80: config.weight 2, config.forward MASQ, \
         healthCheck.endpoint http://:556/health, healthCheck.period 5s, \
         healthCheck.timeout 1.5s, healthCheck.upThreshold 2, healthCheck.downThreshold 1
6 added, 0 edited, 0 removed
"
    );
    assert_eq!(to.ok("export"), exported);
    assert_eq!(import(&to, &exported, "").stdout, "nothing to do\n");
}

const EDITED: &str = r#"
items:
- service: {id: web, key: {ip: 10.0.0.1, port: 80, protocol: TCP}, config: {scheduler: rr}}
  servers:
  - key: {ip: 10.1.0.3, port: 80}
    config: {weight: 1, forward: MASQ}
  - key: {ip: 10.1.0.2, port: 80}
    config: {weight: 5, forward: MASQ}
    healthCheck: {endpoint: ""}
- service: {id: new, key: {ip: 10.0.0.9, port: 80, protocol: TCP}, config: {scheduler: rr}}
"#;

const PUT: &str = "\
+ service new: key TCP 10.0.0.9:80, config.scheduler rr
~ service web: config.scheduler wrr -> rr, config.flags flag-1+flag-2 -> none
~ server web 10.1.0.2:80: config.weight 2 -> 5, healthCheck.endpoint http://:556/health -> none
+ server web 10.1.0.3:80: config.weight 1, config.forward MASQ
";

const REMOVED: &str = "\
- server web 10.1.0.1:80
- service dns
- service mark
";

#[test]
fn a_dry_run_prints_and_changes_nothing() {
    let node = furnished();
    let before = node.store.catalog();
    let ran = import(&node, EDITED, "--dry-run --prune");
    let summary = "2 added, 2 edited, 3 removed (dry run: nothing was done)\n";
    assert_eq!(
        (ran.code, ran.stdout),
        (0, format!("{PUT}{REMOVED}{summary}"))
    );
    assert_eq!(node.store.catalog(), before);
}

#[test]
fn only_pruning_removes() {
    let node = furnished();
    let ran = import(&node, EDITED, "");
    let summary = "2 added, 2 edited, 0 removed\n";
    assert_eq!((ran.code, ran.stdout), (0, format!("{PUT}{summary}")));
    let kept = "meradm: not in the file and kept: 3; --prune removes them\n";
    assert_eq!(ran.stderr, kept);
    let again = import(&node, EDITED, "");
    assert_eq!((&*again.stdout, &*again.stderr), ("nothing to do\n", kept));

    let ran = import(&node, EDITED, "--prune");
    let summary = "0 added, 0 edited, 3 removed\n";
    assert_eq!((ran.code, ran.stdout), (0, format!("{REMOVED}{summary}")));
    let again = import(&node, EDITED, "--prune");
    assert_eq!((&*again.stdout, &*again.stderr), ("nothing to do\n", ""));
}

#[test]
fn programs_get_the_difference_as_json() {
    let node = furnished();
    let ran = import(&node, EDITED, "--prune -o json");
    let value: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(value["added"], 2);
    assert_eq!(
        value["changes"][2],
        serde_json::json!({
            "action": "edit",
            "service": "web",
            "server": "10.1.0.2:80",
            "fields": [
                {"field": "config.weight", "before": "2", "after": "5"},
                {"field": "healthCheck.endpoint", "before": "http://:556/health", "after": ""},
            ],
        })
    );
}

#[test]
fn a_bad_file_is_told_where_it_is_bad_and_nothing_is_done() {
    let node = furnished();
    let before = node.store.catalog();
    let good = "items:\n- service: {id: a, key: {ip: 10.0.0.7, port: 1, protocol: TCP}, config: {scheduler: rr}}\n";
    let server = |words: &str| format!("{good}  servers:\n  - {words}\n");
    for (text, words) in [
        ("items: [".to_owned(), "line 2"),
        ("services: []".to_owned(), "unknown field `services`"),
        ("{\"items\": [}".to_owned(), "line 1 column 12"),
        (
            "format: merlin-catalog/9\nitems: []".to_owned(),
            "format: \"merlin-catalog/9\" is not known",
        ),
        (
            good.replace("rr", "fastest"),
            "service a: config.scheduler: unknown scheduler \"fastest\"",
        ),
        (good.replace("rr", "fastest"), "items[0].service"),
        (good.replace("rr", "fastest"), "line 2"),
        (
            good.replace("scheduler", "schedule"),
            "unrecognized field name 'schedule'",
        ),
        (
            good.replace("10.0.0.7", "10.0.0.777"),
            "key.ip: \"10.0.0.777\"",
        ),
        (good.replace("TCP", "TPC"), "TPC"),
        (
            format!("{good}{}", &good[7..]),
            "items[1]: service a: service a already exists",
        ),
        (
            format!("{good}{}", good[7..].replace("id: a", "id: b")),
            "items[1]: service b: TCP 10.0.0.7:1 already belongs to service a",
        ),
        (
            server("{key: {ip: 10.1.0.1, port: 80}, config: {weight: 70000, forward: MASQ}}"),
            "items[0].servers[0]: server 10.1.0.1 port 80: config.weight: 70000 is out of range: 0 to 65535 at line 4",
        ),
        (
            server("{key: {ip: fd00::7, port: 80}, config: {weight: 1, forward: MASQ}}"),
            "items[0]: server a [fd00::7]:80: key.ip: must be of the service's address family",
        ),
        (
            server(
                "{serviceID: web, key: {ip: 10.1.0.1, port: 80}, config: {weight: 1, forward: MASQ}}",
            ),
            "server a 10.1.0.1:80: serviceID: web is not the service above it",
        ),
        (
            good.replace("10.0.0.7, port: 1,", "10.0.0.1, port: 80,"),
            "service a: key: TCP 10.0.0.1:80 belongs to service web",
        ),
    ] {
        let ran = import(&node, &text, "--prune");
        assert_eq!((ran.code, &*ran.stdout), (4, ""), "{text}: {}", ran.stderr);
        assert!(ran.stderr.contains(words), "{text}: {}", ran.stderr);
        assert!(ran.stderr.starts_with("meradm: /"), "{}", ran.stderr);
    }
    assert_eq!(node.store.catalog(), before);
    let ran = node.run("import /nowhere.yaml");
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("/nowhere.yaml"), "{}", ran.stderr);
}

#[test]
fn standard_input_is_a_file_too() {
    let node = Node::start();
    let mut command = node.command("import -");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(EDITED.as_bytes()).unwrap();
    drop(input);
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.ends_with("4 added, 0 edited, 0 removed\n"));
}

#[test]
fn an_import_rides_out_a_change_of_leader() {
    let node = Node::start();
    node.store
        .fail_with(&[Fault::Unavailable, Fault::AnswerLost, Fault::AnswerLost]);
    let ran = import(&node, EXPORTED, "");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(node.store.faults_left(), 0);
    assert_eq!(import(&node, EXPORTED, "--prune").stdout, "nothing to do\n");
}

#[test]
fn thousands_of_services_are_imported() {
    use std::fmt::Write;

    let node = Node::start();
    let mut text = "items:\n".to_owned();
    for n in 0..2000 {
        let (high, low) = (n / 250, n % 250);
        writeln!(
            text,
            "- service: {{id: s{n}, key: {{ip: 10.0.{high}.{low}, port: 80, protocol: TCP}}, \
             config: {{scheduler: rr}}}}\n  servers:\n  \
             - {{key: {{ip: 10.1.{high}.{low}, port: 80}}, config: {{weight: 1, forward: MASQ}}}}"
        )
        .unwrap();
    }
    let ran = import(&node, &text, "");
    assert!(
        ran.stdout.ends_with("4000 added, 0 edited, 0 removed\n"),
        "{}",
        ran.stderr
    );
    assert_eq!(import(&node, &text, "--prune").stdout, "nothing to do\n");
}
