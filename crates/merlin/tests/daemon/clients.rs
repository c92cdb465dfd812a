//! Programs that others write: clients of earlier versions, and what README.md shows.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::support::process::{PROGRAM, run};
use crate::support::{Daemon, Setup, workspace};

/// The system's own interpreter: it has the system's packages, others may not.
const PYTHON: &str = "/usr/bin/python3";

/// Generates the classes of one file of the API.
fn classes(proto: &str) -> TempDir {
    let classes = tempfile::tempdir().unwrap();
    let file = workspace().join(proto);
    let mut protoc = Command::new("protoc");
    protoc
        .arg("--proto_path")
        .arg(file.parent().unwrap())
        .arg("--python_out")
        .arg(classes.path())
        .arg(&file);
    run(&mut protoc, "apt-get install protobuf-compiler");
    classes
}

fn python(program: &str, proto: &str, daemon: &Daemon) -> String {
    let classes = classes(proto);
    let mut python = Command::new(PYTHON);
    // Nothing on this machine stands between the client and the daemon.
    for proxy in ["http_proxy", "https_proxy", "grpc_proxy"] {
        python.env_remove(proxy);
    }
    python
        .env("PYTHONPATH", classes.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(workspace().join(program))
        .arg(daemon.api().to_string());
    run(
        &mut python,
        "apt-get install python3-grpcio python3-protobuf",
    )
}

/// An example of the workspace, which is built beside the daemon.
fn example(name: &str) -> PathBuf {
    Path::new(PROGRAM).with_file_name("examples").join(name)
}

#[tokio::test]
async fn a_client_of_an_earlier_version_finds_everything_as_it_was() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let said = python(
        "e2e/clients/earlier.py",
        "e2e/clients/earlier.proto",
        &daemon,
    );
    assert!(
        said.ends_with("deletion: cascades, and can be repeated\n"),
        "{said}"
    );
}

#[tokio::test]
async fn the_python_program_of_the_readme_works() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let said = python("e2e/clients/declare.py", "proto/types.proto", &daemon);
    assert_eq!(said, "python has 1 real server(s)\n");
}

#[tokio::test]
async fn the_rust_program_of_the_readme_works() {
    let setup = Setup::new();
    let daemon = setup.start().await;
    let mut declare = Command::new(example("declare"));
    declare.arg(format!("http://{}", daemon.api()));
    let said = run(&mut declare, "cargo build --workspace --examples");
    assert_eq!(said, "rust has 1 real server(s)\n");
}

#[test]
fn the_readme_shows_the_programs_that_are_tested() {
    let read = |path: &str| std::fs::read_to_string(workspace().join(path)).unwrap();
    let readme = read("README.md");
    for program in [
        "crates/merlin-proto/examples/declare.rs",
        "e2e/clients/declare.py",
    ] {
        let shown = readme.contains(&read(program));
        assert!(shown, "README.md does not show {program} as it is");
    }
}
