//! Disks of a cluster's nodes that are full, or gone.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::mounts::Mounts;
use crate::node::{Hosts, Node, catalog, declare, insist};
use crate::support::{SOON, eventually, server};

/// The small disk of a node. Commands that need no daemon do not see it.
struct SmallDisk {
    mounts: Arc<Mounts>,
    data: PathBuf,
}

impl SmallDisk {
    fn of(node: &mut Node) -> Self {
        let data = node.data();
        std::fs::create_dir(&data).unwrap();
        let mounts = Arc::new(Mounts::new());
        mounts.mount(&["-t", "tmpfs", "-o", "size=8m", "none"], &data);
        let place = Arc::clone(&mounts);
        node.place = Some(Box::new(move |program| place.enter(program)));
        Self { mounts, data }
    }

    /// A file that takes the rest of the space.
    fn filler(&self) -> PathBuf {
        self.mounts.see(&self.data.join("filler"))
    }

    fn fill(&self) {
        let mut filler = std::fs::File::create(self.filler()).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

/// Two nodes that take writes, and one with a small disk, which leads or does not.
async fn with_full_disk(leads: bool) {
    let hosts = Hosts::new();
    let [mut small, mut b, mut c] = ["small", "b", "c"].map(|name| hosts.host(name));
    let disk = SmallDisk::of(&mut small);
    if leads {
        small.start();
        join_with(&mut b, &small);
        join_with(&mut c, &small);
        small.awaits_voters(3);
    } else {
        b.start();
        join_with(&mut c, &b);
        // On its own host, where its disk is, as on any other.
        let line = b.succeeds(&["token", "create", "--name", "small"]);
        let token = hosts.file("token");
        std::fs::write(&token, line.split_whitespace().last().unwrap()).unwrap();
        let token = token.to_str().unwrap().to_owned();
        small.env.push(("MERLIN_JOIN_TOKEN_FILE".to_owned(), token));
        small.start();
        b.awaits_voters(3);
    }
    declare(&b, "web", 1).await;

    disk.fill();
    let mut acknowledged = Vec::new();
    let mut ended = None;
    let deadline = tokio::time::Instant::now() + SOON * 2;
    for number in 0..=u16::MAX {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the node never ended"
        );
        let [high, low] = number.to_be_bytes();
        let ip = format!("10.2.{high}.{low}");
        // What the leader has under way when it ends may or may not have happened.
        let create = b.client().await.create_server(server("web", &ip, 80)).await;
        if create.is_ok() {
            acknowledged.push(ip);
        }
        ended = ended.or_else(|| small.ended());
        // The others go on without it.
        if ended.is_some() && create.is_ok() {
            break;
        }
    }
    assert_eq!(ended.unwrap().code(), Some(1));
    let log = small.log();
    assert!(
        log.contains("full") && log.contains("free some space"),
        "{log}"
    );
    let words = small.fails_to_start();
    assert!(words.contains("full"), "{words}");

    disk.make_room();
    small.start();
    small.awaits_voters(3);
    for node in [&small, &b, &c] {
        let held = servers(node).await;
        let lost = acknowledged.iter().find(|ip| !held.contains(ip));
        assert_eq!(lost, None, "{} has lost what was acknowledged", node.name);
    }
}

fn join_with(node: &mut Node, member: &Node) {
    node.join(member);
    node.start();
}

async fn servers(node: &Node) -> Vec<String> {
    let listed = insist(async || node.client().await.list(()).await).await;
    let servers = listed.items.into_iter().flat_map(|item| item.servers);
    servers.map(|server| server.key.unwrap().ip).collect()
}

#[tokio::test]
async fn a_full_disk_ends_its_node_and_the_others_go_on() {
    with_full_disk(false).await;
}

#[tokio::test]
async fn a_full_disk_ends_the_leader_and_another_takes_over() {
    with_full_disk(true).await;
}

#[tokio::test]
async fn a_data_directory_that_is_gone_is_not_begun_anew_where_something_is_left_of_it() {
    let hosts = Hosts::new();
    let [a, mut b] = hosts.cluster(["a", "b"]);
    declare(&a, "web", 1).await;
    b.stop();
    for lost in ["log", "node.json"] {
        let aside = hosts.file("aside");
        std::fs::rename(b.data().join(lost), &aside).unwrap();
        let words = b.fails_to_start();
        for expected in [b.data().to_str().unwrap(), lost, "join"] {
            assert!(words.contains(expected), "{words}");
        }
        std::fs::rename(&aside, b.data().join(lost)).unwrap();
    }
    b.start();
    eventually("all is as before", || a.takes_writes());
    assert_eq!(catalog(&b).await.1, ["web"]);

    // With nothing left of it, it is a host on its first day: no member of the old cluster.
    b.lose();
    b.start();
    assert_ne!(a.status()["clusterId"], b.status()["clusterId"]);
    tokio::time::timeout(Duration::from_secs(1), async { catalog(&b).await })
        .await
        .map(|(revision, services)| assert_eq!((revision, services.len()), (0, 0)))
        .unwrap();
}
