//! Random histories of catalogs, verdicts, crashes and meddling on the kernel's own table: after
//! every step it holds what it should, and nothing is left to do.
//!
//! Build the walk first: `cargo build -p merlin-reconcile --example reconcile-walk`.

use std::time::Duration;

use anyhow::Result;
use e2e::guest::Guest;
use e2e::programs;

/// Steps of one walk.
const STEPS: &str = "300";

/// A namespace per walk: what one deletes would slow the next one down.
const SCRIPT: &str = r#"modprobe ip_vs && modprobe ipv6 && for seed in 1 2 3; do
    unshare -n sh -c 'ip link set lo up && exec "$WALK" "$STEPS" "$0"' $seed || exit 1
done"#;

#[test]
fn random_histories_end_in_the_wanted_table() -> Result<()> {
    let guest = Guest::new("sh")
        .args(["-c", SCRIPT])
        .env(
            "WALK",
            programs::example("merlin-reconcile", "reconcile-walk")?,
        )
        .env("STEPS", STEPS)
        .timeout(Duration::from_secs(120));
    assert_eq!(guest.run()?.code, 0);
    Ok(())
}
