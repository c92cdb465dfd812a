//! Services and servers come, change and go, as old scripts make them.

mod support;

use support::Node;

/// Whether one line has all the words in their order, as the old scripts' patterns look.
fn has(listing: &str, words: &[&str]) -> bool {
    listing.lines().any(|line| {
        let mut rest = line;
        words.iter().all(|word| match rest.split_once(word) {
            Some((_, behind)) => {
                rest = behind;
                true
            }
            None => false,
        })
    })
}

#[test]
fn a_service_is_added_edited_and_deleted() {
    let node = Node::start();
    node.ok("service add service1 tcp 10.1.1.1:888 -s=wrr -b=flag-1,flag-2");
    let list = node.ok("list");
    let words = ["service1", "TCP", "10.1.1.1:888", "wrr", "flag-1,flag-2"];
    assert!(has(&list, &words), "{list}");

    node.ok("service edit service1 -s=sh -b=flag-3");
    let list = node.ok("list");
    assert!(
        has(&list, &["service1", "10.1.1.1:888", "sh", "(flag-3)"]),
        "{list}"
    );

    node.ok("service edit service1 -b ''");
    assert!(has(&node.ok("list"), &["service1", "sh", "()"]));
    node.ok("service edit service1 -b sh-port");
    node.ok("service edit service1 -b=");
    assert!(has(&node.ok("list"), &["service1", "sh", "()"]));

    node.ok("service del service1");
    assert!(!node.ok("list").contains("service1"));
}

#[test]
fn a_server_is_added_edited_and_deleted() {
    let node = Node::start();
    node.ok("service add service1 tcp 10.1.1.1:888 -s=wrr");
    node.ok("server add service1 172.16.1.1:555 -w=2 -f=masq");
    assert!(has(&node.ok("list"), &["172.16.1.1:555", "MASQ", "2"]));

    node.ok("server edit service1 172.16.1.1:555 -w=5");
    node.ok("server edit service1 172.16.1.1:555 -f=route");
    let list = node.ok("list");
    assert!(has(&list, &["172.16.1.1:555", "ROUTE", "5"]), "{list}");
    assert!(!list.contains("MASQ"));

    node.ok("server edit service1 172.16.1.1:555 -w 0");
    assert!(has(&node.ok("list"), &["172.16.1.1:555", "ROUTE", "0"]));

    node.ok("server del service1 172.16.1.1:555");
    assert!(!node.ok("list").contains("172.16.1.1"));
}

#[test]
fn a_health_check_is_set_edited_in_part_and_switched_off() {
    let node = Node::start();
    node.ok("service add service1 tcp 10.1.1.1:888 -s=wrr");
    node.ok(
        "server add service1 172.16.1.1:555 -w=2 -f=masq --health-endpoint=http://:556/health \
         --health-period=5s --health-timeout=1s --health-up=2 --health-down=1",
    );
    let list = node.ok("list");
    assert!(
        has(&list, &["http://:556/health", "5s", "1s", "2/1"]),
        "{list}"
    );

    node.ok("server edit service1 172.16.1.1:555 --health-period=1m30s");
    assert!(has(
        &node.ok("list"),
        &["http://:556/health", "1m30s", "1s", "2/1"]
    ));

    node.ok("server edit service1 172.16.1.1:555 --health-endpoint=");
    assert!(!node.ok("list").contains("2/1"));

    node.ok("server edit service1 172.16.1.1:555 --health-endpoint http://:80/");
    assert!(has(
        &node.ok("list"),
        &["http://:80/", "1m30s", "1s", "2/1"]
    ));
}

#[test]
fn everything_can_be_asked_for_and_is_listed() {
    let node = Node::start();
    node.ok("service add sip udp 10.0.0.1:5060 -s wlc -p 300 -M 255.255.255.0 --pe sip --ops");
    node.ok("service add six TCP [fd00::1]:80 -s mh -b mh-port,mh-fallback -p 60 -M 64");
    node.ok("service add mark fwmark 7 --family ipv6 -s rr");
    node.ok("service add every sctp 10.0.0.2:0 -s lc -p 30");
    node.ok(
        "server add six 10.1.0.1:80 -w 1 -f tunnel --tun-type gue --tun-port 6080 --tun-remcsum",
    );
    node.ok("server add six [fd00::2]:80 -w 10 -f MASQ -x 100 -y 50");
    node.ok("server add mark [fd00::2]:0 -w 1 -f route");
    assert_eq!(
        node.ok("list"),
        "\
ID    Prot LocalAddress:Port  Scheduler    Flags
           -> RemoteAddress:Port Forward   Weight
              HealthEndpoint     Period    Timeout Up/Down
every SCTP 10.0.0.2:0         lc           () persistent 30 netmask 32
mark  FWM  7 IPv6             rr           ()
           -> [fd00::2]:0        ROUTE     1
sip   UDP  10.0.0.1:5060      wlc          () persistent 300 netmask 24 pe sip ops
six   TCP  [fd00::1]:80       mh           (flag-1,flag-2) persistent 60 netmask 64
           -> 10.1.0.1:80        TUNNEL    1 gue port 6080 remcsum
           -> [fd00::2]:80       MASQ      10 limit 100/50
"
    );
    node.ok("service edit sip --ops=false --pe ''");
    node.ok("service edit six -p 0");
    let list = node.ok("list");
    assert!(
        has(&list, &["sip", "netmask 24"]) && !list.contains("ops"),
        "{list}"
    );
    assert!(list.contains("(flag-1,flag-2)\n"), "{list}");
}

#[test]
fn programs_get_the_apis_json() {
    let node = Node::start();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&node.ok("list -o json")).unwrap(),
        serde_json::json!({"revision": 0, "items": []})
    );
    let reply = node.ok("service add web tcp 10.0.0.1:80 -s rr -o json");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&reply).unwrap(),
        serde_json::json!({"revision": 1, "changed": true})
    );
    node.ok("server add web 10.1.0.1:80 -w 0 -f masq");
    node.ok("service add empty tcp 10.0.0.2:80 -s rr");
    let json = node.ok("list -o json");
    let expected = serde_json::json!({
        "revision": 3,
        "items": [
            {
                "service": {
                    "id": "empty",
                    "key": {"ip": "10.0.0.2", "port": 80, "protocol": "TCP"},
                    "config": {"scheduler": "rr"},
                    "createdRevision": 3,
                    "changedRevision": 3,
                },
                "servers": [],
            },
            {
                "service": {
                    "id": "web",
                    "key": {"ip": "10.0.0.1", "port": 80, "protocol": "TCP"},
                    "config": {"scheduler": "rr"},
                    "createdRevision": 1,
                    "changedRevision": 1,
                },
                "servers": [{
                    "serviceID": "web",
                    "key": {"ip": "10.1.0.1", "port": 80},
                    "config": {"weight": 0, "forward": "MASQ"},
                    "healthCheck": {},
                    "createdRevision": 2,
                    "changedRevision": 2,
                }],
            },
        ],
    });
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value, expected);
    assert!(
        json.starts_with("{\n  \"revision\": 3,\n  \"items\": ["),
        "{json}"
    );
    let yaml: serde_json::Value = serde_norway::from_str(&node.ok("list -o yaml")).unwrap();
    assert_eq!(yaml, expected);
    let live: serde_json::Value = serde_json::from_str(&node.ok("list --live -o json")).unwrap();
    assert_eq!(live["nodes"][0]["name"], "lb1");
    let status: serde_json::Value = serde_json::from_str(&node.ok("status -o json")).unwrap();
    assert_eq!(status["nodes"][0]["catalogRevision"], 3);
}

#[test]
fn a_stale_listing_says_how_old_it_is() {
    let node = Node::start();
    node.ok("service add web tcp 10.0.0.1:80 -s rr");
    assert!(node.ok("list --stale").ends_with("as of revision 1\n"));
}
