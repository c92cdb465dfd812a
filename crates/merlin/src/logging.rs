//! The log on standard error: transitions, with fields.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, reload};

use crate::cli::LogFormat;

type Filter = reload::Handle<Targets, tracing_subscriber::Registry>;

/// Changes how much is logged while the daemon runs.
#[derive(Clone, Debug)]
pub(crate) struct Level(Filter);

impl Level {
    pub(crate) fn set(&self, debug: bool) {
        // Fails only once the subscriber is gone, when there is no log either.
        let _ = self.0.reload(targets(debug));
    }
}

fn targets(debug: bool) -> Targets {
    let own = if debug {
        LevelFilter::DEBUG
    } else {
        LevelFilter::INFO
    };
    Targets::new()
        .with_default(LevelFilter::WARN)
        // The daemon and its crates: the names of all of them start so.
        .with_target("merlin", own)
        // It repeats itself with every heartbeat that fails; merlin_raft tells who leads, once.
        .with_target(
            "openraft",
            if debug {
                LevelFilter::ERROR
            } else {
                LevelFilter::OFF
            },
        )
}

pub(crate) fn start(format: LogFormat, debug: bool) -> Level {
    let (filter, handle) = reload::Layer::new(targets(debug));
    let registry = tracing_subscriber::registry().with(filter);
    let to_stderr = fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            registry.with(to_stderr.with_ansi(ansi)).init();
        }
        LogFormat::Json => registry.with(to_stderr.json().flatten_event(true)).init(),
    }
    Level(handle)
}
