//! One connection to one etcd member, and what can be asked on it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, Identity,
    KeyValue, KvClient, PutOptions, ResponseHeader, TlsOptions, Txn, TxnOp, TxnOpResponse,
    WatchOptions, WatchStream,
};
use merlin_model::Revision;
use tokio::time::timeout;

use super::error::CallError;
use crate::config::Config;
use crate::decide::{Guard, Write};
use crate::layout::Layout;
use crate::replica::Stored;

/// A member that accepts no connection by then is not worth waiting for while there are others.
const CONNECT: Duration = Duration::from_secs(2);
/// For calls that nobody's deadline bounds.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// A member that is frozen, or behind a cut cable, is noticed after the sum of these. etcd hangs up
/// on clients that ping more often than every five seconds.
const PING: Duration = Duration::from_millis(5_500);
const PONG: Duration = Duration::from_secs(2);
/// Keys of one page of a list: some 200 KiB.
const PAGE: i64 = 1_000;
/// etcd takes values of 1.5 MiB by default, and any number of them may come in one message.
const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) endpoint: String,
    /// Tells connections apart, also those to the same member.
    id: Arc<()>,
    client: Client,
    kv: KvClient,
}

/// Everything below the prefix at one revision.
pub(super) struct Listing {
    pub(super) cluster: u64,
    pub(super) revision: Revision,
    pub(super) records: Vec<(Vec<u8>, Stored)>,
}

/// What differs between the records and a copy of them.
pub(super) struct Newer {
    /// Revision at which this was so.
    pub(super) revision: Revision,
    pub(super) changed: bool,
    /// How many keys there are.
    pub(super) count: usize,
}

/// How a transaction ended.
pub(super) struct Outcome {
    /// Whether every guard held.
    pub(super) held: bool,
    pub(super) revision: Revision,
    /// If not: what the key that was asked for holds.
    pub(super) found: Option<Stored>,
}

impl Session {
    pub(super) async fn connect(endpoint: &str, config: &Config) -> Result<Self, CallError> {
        let options = options(endpoint, config).await?;
        let connecting = Client::connect([endpoint], Some(options));
        let client = timeout(PATIENCE, connecting).await;
        let client = client.map_err(|_| CallError::Timeout(PATIENCE))??;
        let kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
        Ok(Self {
            endpoint: endpoint.to_owned(),
            id: Arc::default(),
            client,
            kv,
        })
    }

    /// Whether both are the same connection.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.id, &other.id)
    }

    /// Lists all records as they are now, in pages of one revision.
    pub(super) async fn list(&self, layout: &Layout) -> Result<Listing, CallError> {
        let (from, end) = layout.records();
        let mut from = from.into_bytes();
        let mut listing: Option<Listing> = None;
        loop {
            let mut options = GetOptions::new().with_range(end.as_str()).with_limit(PAGE);
            if let Some(listing) = &listing {
                options = options.with_revision(wire(listing.revision));
            }
            let mut kv = self.kv.clone();
            let page = timeout(PATIENCE, kv.get(from.clone(), Some(options)));
            let mut page = page.await.map_err(|_| CallError::Timeout(PATIENCE))??;
            let header = header(page.header())?;
            let listing = listing.get_or_insert_with(|| Listing {
                cluster: header.cluster_id(),
                revision: revision(header.revision()),
                records: Vec::new(),
            });
            let (more, records) = (page.more(), page.take_kvs());
            if let (true, Some(last)) = (more, records.last()) {
                // The first key after the last one.
                from = last.key().to_vec();
                from.push(0);
            }
            listing.records.extend(records.iter().map(record));
            if !more {
                break;
            }
        }
        let mut listing =
            listing.ok_or_else(|| CallError::Refused("etcd sent no page".to_owned()))?;
        let deleted = self.last_deleted(layout, listing.revision).await?;
        listing.records.extend(deleted);
        Ok(listing)
    }

    /// The key that tells when a record was last deleted, if there is one and it may be read.
    async fn last_deleted(
        &self,
        layout: &Layout,
        at: Revision,
    ) -> Result<Option<(Vec<u8>, Stored)>, CallError> {
        let options = GetOptions::new().with_revision(wire(at));
        let mut kv = self.kv.clone();
        let got = timeout(PATIENCE, kv.get(layout.deleted(), Some(options))).await;
        match got.map_err(|_| CallError::Timeout(PATIENCE))? {
            Ok(got) => Ok(got.kvs().first().map(record)),
            Err(error) => match CallError::from(error) {
                error if error.is_denied() => Ok(None),
                error => Err(error),
            },
        }
    }

    /// The present revision, as fresh as a quorum knows it.
    pub(super) async fn revision(&self, layout: &Layout) -> Result<Revision, CallError> {
        let options = GetOptions::new().with_count_only();
        let mut kv = self.kv.clone();
        let got = timeout(PATIENCE, kv.get(layout.services(), Some(options)));
        let got = got.await.map_err(|_| CallError::Timeout(PATIENCE))??;
        Ok(revision(header(got.header())?.revision()))
    }

    /// How the records differ from a copy that is complete up to a revision.
    pub(super) async fn newer(&self, layout: &Layout, than: Revision) -> Result<Newer, CallError> {
        let (from, end) = layout.records();
        let options = GetOptions::new()
            .with_range(end)
            .with_keys_only()
            .with_limit(1)
            .with_min_mod_revision(wire(than) + 1);
        let mut kv = self.kv.clone();
        let got = timeout(PATIENCE, kv.get(from, Some(options)));
        let got = got.await.map_err(|_| CallError::Timeout(PATIENCE))??;
        Ok(Newer {
            revision: revision(header(got.header())?.revision()),
            changed: !got.kvs().is_empty(),
            count: usize::try_from(got.count()).unwrap_or_default(),
        })
    }

    /// Watches all records from a revision on.
    pub(super) async fn watch(
        &self,
        layout: &Layout,
        from: Revision,
    ) -> Result<WatchStream, CallError> {
        let (key, end) = layout.records();
        let options = WatchOptions::new()
            .with_range(end)
            .with_start_revision(wire(from))
            .with_progress_notify();
        let mut client = self.client.watch_client();
        client = client.max_decoding_message_size(MAX_MESSAGE);
        let watching = timeout(PATIENCE, client.watch(key, Some(options)));
        Ok(watching.await.map_err(|_| CallError::Timeout(PATIENCE))??)
    }

    /// Does all of the writes if all of the guards hold, otherwise looks a key up.
    pub(super) async fn commit(
        &self,
        guards: &[Guard],
        writes: Vec<TxnOp>,
        otherwise: &str,
        patience: Duration,
    ) -> Result<Outcome, CallError> {
        let compares: Vec<_> = guards.iter().map(compare).collect();
        // Also makes a transaction without writes one that a quorum confirms: etcd takes one
        // that does nothing at all for a local affair.
        let look_up = TxnOp::get(otherwise, None);
        let txn = Txn::new()
            .when(compares)
            .and_then(writes)
            .or_else([look_up]);
        let mut kv = self.kv.clone();
        let answer = timeout(patience, kv.txn(txn)).await;
        let answer = answer.map_err(|_| CallError::Timeout(patience))??;
        let found = match answer.op_responses().into_iter().next() {
            Some(TxnOpResponse::Get(got)) => got.kvs().first().map(|kv| record(kv).1),
            _ => None,
        };
        Ok(Outcome {
            held: answer.succeeded(),
            revision: revision(header(answer.header())?.revision()),
            found,
        })
    }

    /// Makes a lease, after which keys are gone that were put on it.
    pub(super) async fn lease(&self, time_to_live: Duration) -> Result<i64, CallError> {
        let seconds = i64::try_from(time_to_live.as_secs()).unwrap_or(i64::MAX);
        let mut leases = self.client.lease_client();
        let granted = timeout(PATIENCE, leases.grant(seconds, None)).await;
        Ok(granted.map_err(|_| CallError::Timeout(PATIENCE))??.id())
    }
}

/// What is read anew for every connection, and what every connection has.
async fn options(endpoint: &str, config: &Config) -> Result<ConnectOptions, CallError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT)
        .with_keep_alive(PING, PONG)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(user) = &config.user {
        options = options.with_user(&user.name, &user.password);
    }
    if endpoint.starts_with("https://") {
        let mut tls = TlsOptions::new();
        if let Some(path) = &config.tls.ca {
            tls = tls.ca_certificate(Certificate::from_pem(read(path).await?));
        }
        if let Some((certificate, key)) = &config.tls.identity {
            let identity = Identity::from_pem(read(certificate).await?, read(key).await?);
            tls = tls.identity(identity);
        }
        options = options.with_tls(tls);
    }
    Ok(options)
}

async fn read(path: &std::path::Path) -> Result<Vec<u8>, CallError> {
    let read = tokio::fs::read(path).await;
    read.map_err(|error| CallError::Refused(format!("{}: {error}", path.display())))
}

fn compare(guard: &Guard) -> Compare {
    match guard {
        Guard::Absent { key } => Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
        Guard::Unchanged { key, since } => {
            Compare::mod_revision(key.as_str(), CompareOp::Equal, wire(*since))
        }
        // Holds for every key of the range, and where there is none.
        Guard::Quiet { prefix, since } => {
            Compare::mod_revision(prefix.as_str(), CompareOp::Less, wire(*since) + 1).with_prefix()
        }
    }
}

pub(super) fn operation(write: Write) -> TxnOp {
    match write {
        Write::Put { key, value } => TxnOp::put(key, value, None),
        Write::Delete { key } => TxnOp::delete(key, None),
        Write::DeleteAll { prefix } => {
            TxnOp::delete(prefix, Some(DeleteOptions::new().with_prefix()))
        }
    }
}

pub(super) fn put_on_lease(key: &str, value: Vec<u8>, lease: i64) -> TxnOp {
    TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
}

pub(super) fn header(header: Option<&ResponseHeader>) -> Result<&ResponseHeader, CallError> {
    header.ok_or_else(|| CallError::Unknown("etcd's answer has no header".to_owned()))
}

pub(super) fn record(kv: &KeyValue) -> (Vec<u8>, Stored) {
    let stored = Stored {
        value: kv.value().to_vec().into(),
        created: revision(kv.create_revision()),
        changed: revision(kv.mod_revision()),
    };
    (kv.key().to_vec(), stored)
}

/// etcd counts in signed numbers, from 1.
pub(super) fn revision(wire: i64) -> Revision {
    Revision(u64::try_from(wire).unwrap_or_default())
}

fn wire(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Session").field(&self.endpoint).finish()
    }
}
