//! What a scraper sees. Everything but request counts is read from the node when it asks, so the
//! figures cannot disagree with `meradm status`.

use std::fmt;
use std::sync::Arc;

use merlin_model::Verdict;
use merlin_raft::RaftStore;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, MetricEncoder,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tonic::Code;

use crate::node::{Node, verdicts};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Method {
    CreateService,
    UpdateService,
    DeleteService,
    CreateServer,
    UpdateServer,
    DeleteServer,
    List,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: Method,
    code: String,
}

/// Counts API requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests(Family<RequestLabels, Counter>);

impl Requests {
    pub(crate) fn count(&self, method: Method, code: Code) {
        self.0
            .get_or_create(&RequestLabels {
                method,
                code: format!("{code:?}"),
            })
            .inc();
    }
}

/// Everything there is to scrape.
#[derive(Clone, Debug)]
pub(crate) struct Metrics(Arc<Registry>);

impl Metrics {
    pub(crate) fn new(node: &Node, requests: Requests, per_server: bool) -> Self {
        let mut registry = Registry::with_prefix("merlin");
        registry.register(
            "api_requests",
            "API requests by method and gRPC code",
            requests.0,
        );
        registry.register_collector(Box::new(NodeCollector {
            node: node.clone(),
            per_server,
        }));
        Self(Arc::new(registry))
    }

    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.0)?;
        Ok(text)
    }
}

#[derive(Debug)]
struct NodeCollector {
    node: Node,
    per_server: bool,
}

impl Collector for NodeCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Output(encoder);
        let store = self.node.store().status();
        let catalog = self.node.catalog();
        let uptime = self.node.started().elapsed().as_secs_f64();
        out.gauge("uptime_seconds", "Time since the daemon started", uptime)?;
        out.gauge(
            "store_available",
            "Whether the store takes writes",
            flag(store.unavailable.is_none()),
        )?;
        self.encode_raft(&mut out)?;
        if let Some(lag) = store.lag {
            out.gauge(
                "store_lag_seconds",
                "For how long the catalog may have missed changes",
                lag.as_secs_f64(),
            )?;
            out.gauge(
                "store_records_passed_over",
                "Records in the store that cannot be used as they are",
                store.passed_over.len() as f64,
            )?;
            out.gauge(
                "store_held_removal_services",
                "Services that are gone from the store and kept until an operator accepts that",
                store.held.map_or(0, |held| held.services) as f64,
            )?;
        }
        out.gauge(
            "catalog_revision",
            "Revision of the catalog held",
            count(catalog.revision().0),
        )?;
        out.gauge(
            "catalog_services",
            "Virtual services declared",
            catalog.services().len() as f64,
        )?;
        let servers: usize = catalog
            .services()
            .map(|service| service.servers.len())
            .sum();
        out.gauge("catalog_servers", "Real servers declared", servers as f64)?;
        self.encode_reconciler(&mut out)?;
        self.encode_health(&mut out)
    }
}

impl NodeCollector {
    fn encode_raft(&self, out: &mut Output<'_>) -> fmt::Result {
        let Some(raft) = self.node.store().raft().map(RaftStore::status) else {
            return Ok(());
        };
        out.gauge("raft_term", "Term of the node's vote", count(raft.term))?;
        out.gauge(
            "raft_leader",
            "Whether this node leads",
            flag(raft.leader == Some(raft.node)),
        )?;
        out.gauge(
            "raft_members",
            "Members of the cluster",
            raft.members.len() as f64,
        )
    }

    fn encode_reconciler(&self, out: &mut Output<'_>) -> fmt::Result {
        let Some(status) = self.node.reconciler() else {
            return Ok(());
        };
        let counts = status.counts;
        out.gauge(
            "programmed_revision",
            "Newest revision the kernel holds in full, apart from failures",
            count(status.programmed.0),
        )?;
        out.gauge(
            "reconcile_failures",
            "Objects the kernel refuses",
            status.failures.len() as f64,
        )?;
        out.gauge(
            "foreign_services",
            "Services in the kernel that are left alone",
            status.foreign.len() as f64,
        )?;
        out.gauge(
            "dataplane_available",
            "Whether the table can be read and changed",
            flag(status.dataplane_error.is_none()),
        )?;
        if let Some(took) = status.last_pass {
            let help = "Duration of the last completed pass";
            out.gauge("reconcile_last_pass_seconds", help, took.as_secs_f64())?;
        }
        out.counter("reconcile_passes", "Completed passes", counts.passes)?;
        out.counter(
            "reconcile_quiet_checks",
            "Checks for drift that found the table untouched",
            counts.quiet_checks,
        )?;
        out.counter(
            "reconcile_operations",
            "Operations the kernel carried out",
            counts.operations,
        )?;
        out.counter(
            "reconcile_refusals",
            "Operations the kernel refused",
            counts.refusals,
        )?;
        out.counter(
            "drift_repaired",
            "Foreign changes that were undone",
            counts.drift_repaired,
        )?;
        out.counter(
            "dataplane_outages",
            "Failures of the whole data plane",
            counts.outages,
        )
    }

    fn encode_health(&self, out: &mut Output<'_>) -> fmt::Result {
        let probes = self.node.probes();
        out.counter("probes_started", "Health probes sent", probes.started)?;
        out.counter(
            "probes_succeeded",
            "Health probes that succeeded",
            probes.succeeded,
        )?;
        out.counter("probes_failed", "Health probes that failed", probes.failed)?;
        out.counter(
            "health_transitions",
            "Verdicts that changed",
            probes.transitions,
        )?;
        out.gauge(
            "probes_in_flight",
            "Health probes under way",
            count(probes.in_flight),
        )?;
        let health = self.node.health();
        let help = "Checked real servers by verdict";
        let mut family = out.family("health_servers", help)?;
        for (service, verdicts) in verdicts(&health) {
            for (verdict, number) in [
                ("up", verdicts.up),
                ("down", verdicts.down),
                ("unknown", verdicts.unknown),
            ] {
                let labels = [
                    ("service", service.to_string()),
                    ("verdict", verdict.to_owned()),
                ];
                sample(&mut family, &labels, count(number))?;
            }
        }
        if self.per_server {
            let mut family = out.family("health_server_up", "Whether a real server is up")?;
            for (service, server, health) in health.iter() {
                let labels = [
                    ("service", service.to_string()),
                    ("server", server.to_string()),
                ];
                sample(&mut family, &labels, flag(health.verdict == Verdict::Up))?;
            }
        }
        Ok(())
    }
}

/// Shorthands for the encoder.
struct Output<'a>(DescriptorEncoder<'a>);

impl Output<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(
            self.0
                .encode_descriptor(name, help, None, gauge.metric_type())?,
        )
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(
            self.0
                .encode_descriptor(name, help, None, counter.metric_type())?,
        )
    }

    fn family<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0
            .encode_descriptor(name, help, None, MetricType::Gauge)
    }
}

fn sample<const N: usize>(
    family: &mut MetricEncoder<'_>,
    labels: &[(&str, String); N],
    value: f64,
) -> fmt::Result {
    ConstGauge::new(value).encode(family.encode_family(labels)?)
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// Exact up to 2^53, which no count here reaches.
#[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
fn count(value: u64) -> f64 {
    value as f64
}
