//! Which of etcd's two stores keeps the records, where nobody said so.
//!
//! They do not see each other's keys, and both may hold records: those of etcd 2 are then what a move
//! to etcd 3 left behind. So records in etcd 3 decide, then those in etcd 2, and where there are none
//! they will be in etcd 3. Nothing is decided before both have answered: to begin with the wrong one
//! would be to begin with nothing.

use std::time::Duration;

use crate::config::Config;
use crate::publish::Publisher;
use crate::status::Backend;
use crate::{v2, v3};

const PAUSE: Duration = Duration::from_secs(1);

/// Tries until there is an answer.
pub(crate) async fn backend(config: &Config, publisher: &Publisher) -> Backend {
    if let Some(backend) = config.backend {
        return backend;
    }
    loop {
        match found(config).await {
            Ok(backend) => return backend,
            Err(reason) => publisher.away(&reason),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn found(config: &Config) -> Result<Backend, String> {
    let lost = |backend, name| {
        move |reason| {
            format!(
                "looking for records in {backend}: {reason}; if this etcd serves the other API \
                 only, say so with --store-backend {name}"
            )
        }
    };
    let v3 = v3::holds_records(config).await;
    if v3.map_err(lost(Backend::Etcd3, Backend::Etcd2))? {
        return Ok(Backend::Etcd3);
    }
    let v2 = v2::holds_records(config).await;
    Ok(match v2.map_err(lost(Backend::Etcd2, Backend::Etcd3))? {
        true => Backend::Etcd2,
        false => Backend::Etcd3,
    })
}
