//! The way from the earlier system to this one, and from one store to another, with the built program
//! and a real etcd. The commands are those of deploy/coming-from-the-go-merlin.md.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, helpers too")]
#![allow(clippy::print_stderr, reason = "a failed test shows the daemon's log")]
#![allow(dead_code, reason = "every test program uses a part of the support")]

#[path = "../support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};

use merlin_proto::types::ListResponse;
use nix::sys::signal::Signal;
use support::{Home, eventually, workspace};
use tempfile::TempDir;

struct Etcd {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Etcd {
    fn start() -> Self {
        let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [address, peer] = sockets.map(|socket| socket.local_addr().unwrap());
        let (client, peer) = (format!("http://{address}"), format!("http://{peer}"));
        let dir = TempDir::new().unwrap();
        let child = Command::new("etcd")
            .args(["--enable-v2=true", "--name", "m", "--log-level", "error"])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let etcd = Self {
            child,
            address,
            _dir: dir,
        };
        eventually("etcd is healthy", || {
            etcd.ask("GET", "/health", "").contains("\"true\"")
        });
        etcd
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn ask(&self, method: &str, path: &str, form: &str) -> String {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(self.address)?;
            write!(
                stream,
                "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                 Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
                form.len()
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().unwrap_or_default()
    }

    /// A record as the earlier system puts it: base64 of its bytes, here escaped for a form.
    fn put(&self, path: &str, base64: &str) {
        let form = base64.replace('+', "%2B").replace('=', "%3D");
        let answer = self.ask("PUT", &format!("/v2/keys{path}"), &format!("value={form}"));
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }

    /// service1, TCP 10.1.1.1:888, wrr with flag-1 and flag-2; 172.16.1.1:555, weight 2, MASQ, with
    /// the check http://:556/health every 5s for 1s, 2 up and 1 down. Bytes of the earlier system.
    fn fill(&self) {
        self.put(
            "/merlin/services/service1",
            "CghzZXJ2aWNlMRIPCggxMC4xLjEuMRD4BhgBGhUKA3dychIGZmxhZy0xEgZmbGFnLTI=",
        );
        self.put(
            "/merlin/servers/service1/172.16.1.1:555",
            "CghzZXJ2aWNlMRIPCgoxNzIuMTYuMS4xEKsEGgYKAggCEAMiIgoUChJodHRwOi8vOjU1Ni9oZWFsdGgSAggFGgIIASACKAE=",
        );
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is declared, without the revisions, which are each store's own.
async fn listed(home: &Home) -> ListResponse {
    let mut client = home.client().await;
    let mut listing = client.list(()).await.unwrap().into_inner();
    listing.revision = 0;
    for item in &mut listing.items {
        let service = item.service.as_mut().unwrap();
        (service.created_revision, service.changed_revision) = (0, 0);
        for server in &mut item.servers {
            (server.created_revision, server.changed_revision) = (0, 0);
        }
    }
    listing
}

/// Runs a command line of the page, with the test's etcd in place of the page's.
fn page(home: &Home, etcd: &Etcd, line: &str) -> Output {
    let text =
        std::fs::read_to_string(workspace().join("deploy/coming-from-the-go-merlin.md")).unwrap();
    assert!(
        text.lines().any(|there| there == line),
        "not on the page: {line}"
    );
    let words = line.split(' ').skip(1);
    let words = words.map(|word| match word {
        "http://10.0.0.1:2379" => etcd.url(),
        word => word.to_owned(),
    });
    Command::new(env!("CARGO_BIN_EXE_merlin"))
        .env_clear()
        .env("MERLIN_RUN_DIR", home.path("run"))
        .args(words)
        .output()
        .unwrap()
}

fn ok(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stop(mut daemon: support::Daemon) {
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().0.success());
}

#[tokio::test]
async fn the_page_about_coming_from_the_go_merlin_is_true() {
    let etcd = Etcd::start();
    etcd.fill();
    let home = Home::new();

    // Replace the binary.
    let url = etcd.url();
    let daemon = home.start(&[
        "-store-backend",
        "etcd2",
        "-store-endpoints",
        &url,
        "-debug",
    ]);
    let declared = listed(&home).await;
    let service = declared.items[0].service.as_ref().unwrap();
    assert_eq!((declared.items.len(), &*service.id), (1, "service1"));
    assert_eq!(declared.items[0].servers.len(), 1);
    stop(daemon);

    // To etcd 3, which records there decide for from now on.
    let line = "merlin migrate --from etcd2 --from-endpoints http://10.0.0.1:2379 --to etcd3 \
                --to-endpoints http://10.0.0.1:2379";
    let out = ok(&page(&home, &etcd, line));
    assert!(
        out.ends_with("checked: both hold the same 1 services and 1 real servers\n"),
        "{out}"
    );
    let daemon = home.start(&["-store-endpoints", &url]);
    assert_eq!(listed(&home).await, declared);
    stop(daemon);

    // Leave etcd.
    let daemon = home.start(&["--reconcile=false"]);
    let dry =
        "merlin migrate --from etcd2 --from-endpoints http://10.0.0.1:2379 --to raft --dry-run";
    let out = ok(&page(&home, &etcd, dry));
    assert_eq!(
        out,
        "\
+ service service1: key TCP 10.1.1.1:888, config.scheduler wrr, config.flags flag-1+flag-2
+ server service1 172.16.1.1:555: config.weight 2, config.forward MASQ, \
         healthCheck.endpoint http://:556/health, healthCheck.period 5s, healthCheck.timeout 1s, \
         healthCheck.upThreshold 2, healthCheck.downThreshold 1
2 added, 0 edited, 0 removed (dry run: nothing was done)
"
    );
    assert!(listed(&home).await.items.is_empty());
    let line = "merlin migrate --from etcd2 --from-endpoints http://10.0.0.1:2379 --to raft";
    let out = ok(&page(&home, &etcd, line));
    assert!(out.contains("2 added, 0 edited, 0 removed\n"), "{out}");
    assert_eq!(listed(&home).await, declared);
    let out = ok(&page(&home, &etcd, line));
    assert_eq!(
        out,
        "nothing to do\nchecked: both hold the same 1 services and 1 real servers\n"
    );
    stop(daemon);
    let daemon = home.start(&[]);
    assert_eq!(listed(&home).await, declared);
    stop(daemon);
}

#[tokio::test]
async fn a_migration_that_could_hurt_is_refused_in_words() {
    let etcd = Etcd::start();
    etcd.fill();
    let url = etcd.url();
    let home = Home::new();
    let migrate = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_merlin"))
            .env_clear()
            .env("MERLIN_RUN_DIR", home.path("run"))
            .arg("migrate")
            .args(args)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        stderr
    };
    let from = ["--from", "etcd2", "--from-endpoints", &url];
    let with = |more: &[&'static str]| [&from[..], more].concat();
    let raft = with(&["--to", "raft"]);
    let offline = migrate(&raft);
    assert!(offline.contains("a daemon that runs"), "{offline}");
    let nowhere = migrate(&["--from", "etcd2", "--to", "raft"]);
    assert!(
        nowhere.contains("--from-endpoints: say where etcd is"),
        "{nowhere}"
    );

    let daemon = home.start(&[]);
    let programs = migrate(&raft);
    assert!(programs.contains("--reconcile=false"), "{programs}");
    assert!(listed(&home).await.items.is_empty());
    stop(daemon);

    let daemon = home.start(&["--store-backend", "etcd2", "--store-endpoints", &url]);
    let other = migrate(&raft);
    assert!(other.contains("keeps its catalog in etcd2"), "{other}");
    stop(daemon);

    // What only the destination has stays until somebody says otherwise.
    let daemon = home.start(&["--reconcile=false"]);
    let mut client = home.client().await;
    client
        .create_service(support::service("mine", 80))
        .await
        .unwrap();
    let extra = migrate(&raft);
    assert!(
        extra.contains("service mine") && extra.contains("--prune"),
        "{extra}"
    );
    assert_eq!(listed(&home).await.items.len(), 1);
    stop(daemon);
}
