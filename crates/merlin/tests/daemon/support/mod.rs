//! What the tests share: daemons, clients of them, and ways to wait.

pub(crate) mod daemon;
pub(crate) mod mounts;
pub(crate) mod port;
pub(crate) mod process;
pub(crate) mod requests;
pub(crate) mod web;

use std::fmt::Debug;
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) use daemon::{Daemon, Refusal, Setup};

/// Far beyond what anything here takes on a busy machine, so that reaching it is a failure.
pub(crate) const AMPLE: Duration = Duration::from_secs(30);

/// Between two looks at something that changes by itself.
const LOOK: Duration = Duration::from_millis(10);

/// Looks until there is something to see, and says what was seen last when there never is.
pub(crate) async fn eventually<T, E: Debug>(mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + AMPLE;
    loop {
        match look().await {
            Ok(seen) => return seen,
            Err(last) => assert!(Instant::now() < deadline, "in vain, at last: {last:?}"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub(crate) fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
