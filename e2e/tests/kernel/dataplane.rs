//! The seam to the kernel, without a daemon.

use std::process::Command;

use anyhow::{Result, ensure};
use e2e::lab::{Lab, Shape};
use e2e::programs;

use crate::runner::Case;

pub(crate) fn cases() -> Vec<Case> {
    vec![Case {
        name: "dataplane::the_kernel_passes_the_conformance_suite",
        shape: Shape {
            balancers: 1,
            servers: 0,
        },
        run: the_kernel_passes_the_conformance_suite,
    }]
}

/// The suite that the table in memory passes too. It makes namespaces of its own.
fn the_kernel_passes_the_conformance_suite(_: &Lab) -> Result<()> {
    let suite = programs::example("merlin-ipvs", "ipvs-conformance")?;
    let output = Command::new(suite).output()?;
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
