//! What lies on the disk is for the daemon's user alone.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::node::Hosts;

/// Files with keys below a directory that others could use, were they moved out of it.
fn exposed(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            found.extend(exposed(&entry.path()));
        }
        let mode = metadata.permissions().mode() & 0o777;
        let name = entry.path().display().to_string();
        let secret = ["/identity", ".snap", "/snapshots"]
            .iter()
            .any(|part| name.contains(part));
        if secret && mode & 0o077 != 0 {
            found.push(format!("{name}: {mode:o}"));
        }
    }
    found
}

#[test]
fn the_data_directory_is_closed_even_if_it_was_made_open() {
    let hosts = Hosts::new();
    let mut node = hosts.host("n1");
    std::fs::create_dir(node.data()).unwrap();
    std::fs::set_permissions(node.data(), std::fs::Permissions::from_mode(0o755)).unwrap();
    node.start();
    let mode = std::fs::metadata(node.data()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(exposed(&node.data()), [""; 0]);

    let copy = hosts.file("copy.snap");
    node.succeeds(&["snapshot", "save", copy.to_str().unwrap()]);
    let mode = std::fs::metadata(&copy).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds the cluster's keys");

    let context = hosts.file("ana.toml");
    let out = context.to_str().unwrap();
    node.succeeds(&["client", "create", "ana", "--role", "admin", "--out", out]);
    let mode = std::fs::metadata(&context).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
