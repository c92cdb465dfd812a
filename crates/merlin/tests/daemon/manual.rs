//! What the program says about itself, and what is installed beside it.

use std::process::Command;

use crate::support::process::{merlin, run};
use crate::support::{Refusal, Setup, workspace};

fn name(flag: &str) -> Option<&str> {
    flag.split(|c: char| !c.is_ascii_lowercase() && c != '-')
        .next()
}

/// Every flag of the daemon, as its help lists them.
fn flags() -> Vec<String> {
    let help = run(merlin().args(["run", "--help"]), "");
    let words = help.split_whitespace();
    let flags = words.filter_map(|word| word.strip_prefix("--"));
    let mut flags: Vec<_> = flags.filter_map(name).map(str::to_owned).collect();
    flags.sort();
    flags.dedup();
    assert!(flags.len() > 20, "{flags:?}");
    flags
}

#[test]
fn the_manual_page_is_in_section_8_and_has_every_flag_and_command() {
    let page = run(merlin().arg("man"), "");
    assert!(page.contains(".TH merlin 8 "), "{page}");
    let plain = page.replace('\\', "");
    for flag in flags() {
        assert!(
            plain.contains(&format!("--{flag}")),
            "no --{flag} in {plain}"
        );
    }
    for words in [
        "merlin-cluster(8)",
        "SIGHUP",
        "Exit status",
        "MERLIN_DATA_DIR",
    ] {
        assert!(plain.contains(words), "no {words} in {plain}");
    }

    let dir = tempfile::tempdir().unwrap();
    let mut write = merlin();
    run(write.args(["man", "--out-dir"]).arg(dir.path()), "");
    for name in [
        "merlin.8",
        "merlin-run.8",
        "merlin-cluster.8",
        "merlin-cluster-join.8",
    ] {
        assert!(dir.path().join(name).exists(), "{name}");
    }
    // What is wrong with a page, groff says on standard error.
    let groff = Command::new("groff")
        .args(["-man", "-ww", "-z"])
        .arg(dir.path().join("merlin.8"))
        .output()
        .expect("apt-get install groff-base");
    assert!(
        groff.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&groff.stderr)
    );

    let setup = Setup::new();
    let mut nowhere = merlin();
    nowhere
        .args(["man", "--out-dir"])
        .arg(setup.home().join("nowhere"));
    Refusal::of(&mut nowhere).expect(1, &["--out-dir", "nowhere"]);
}

#[test]
fn completions_know_the_flags_in_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(merlin().args(["completions", shell]), "");
        assert!(script.contains("reconcile-sync-period"), "{shell}");
    }
    Refusal::of(merlin().args(["completions", "cmd"])).expect(2, &["bash", "zsh"]);
}

#[test]
fn help_is_on_standard_output_and_tells_the_defaults() {
    let help = run(merlin().arg("--help"), "");
    let unwrapped = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for default in [
        "/var/lib/merlin",
        "127.0.0.1:4282",
        "0.0.0.0:4283",
        "0.0.0.0:4284",
        "1m",
    ] {
        assert!(
            unwrapped.contains(&format!("[default: {default}]")),
            "no {default} in {help}"
        );
    }
    assert_eq!(help, run(merlin().arg("-help"), ""));
}

/// Every setting, section, module and sysctl that is shipped has a comment above it.
#[test]
fn every_line_of_what_is_deployed_is_explained() {
    for file in [
        "systemd/merlin.service",
        "modules-load.d/merlin.conf",
        "sysctl.d/50-merlin.conf",
    ] {
        let text = std::fs::read_to_string(workspace().join("deploy").join(file)).unwrap();
        // Lines that stand together are explained together.
        let mut explained = false;
        for line in text.lines() {
            let begins_section = line.is_empty() || line.starts_with('[');
            explained = line.starts_with('#') || (explained && !line.is_empty());
            assert!(
                explained || begins_section,
                "{file}: nothing explains {line:?}"
            );
        }
    }
}
